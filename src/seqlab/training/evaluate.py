"""One pass over a whole split."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from seqlab.training.metrics import collect


class Evaluation(NamedTuple):
    """Metrics by name, and the mean loss at each position of the window."""

    metrics: dict[str, float]
    loss_by_position: list[float]


class LossByPosition:
    """Sums of the loss and counts for each place in the window, as far as the longest window seen."""

    def __init__(self, device: torch.device):
        self.total = torch.zeros(0, dtype=torch.float64, device=device)
        self.count = torch.zeros(0, dtype=torch.int64, device=device)

    def update(self, loss: Tensor, mask: Tensor) -> None:
        """Add losses (B, L), zero where the mask (B, L) is."""
        missing = loss.shape[1] - len(self.total)
        if missing > 0:
            self.total = nn.functional.pad(self.total, (0, missing))
            self.count = nn.functional.pad(self.count, (0, missing))
        self.total[: loss.shape[1]] += loss.sum(dim=0, dtype=torch.float64)
        self.count[: loss.shape[1]] += mask.sum(dim=0)

    def compute(self) -> list[float]:
        """The means; not a number where no position counted."""
        return (self.total / self.count).tolist()


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    data: Any,
    split: str,
    *,
    batch_size: int,
    device: torch.device,
    autocast: Callable[[], Any],
    on_batch: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Measure a model on a whole split, once and in order; the model's mode is put back afterwards.

    Args:
        model: maps inputs to outputs, on ``device``.
        data: a data object.
        split: ``validation`` or ``test``.
        batch_size: windows at a time; it changes the speed and not the result.
        autocast: the precision's context.
        on_batch: called after each batch, for a progress bar and to stop early by raising.
    """
    training = model.training
    model.eval()
    metrics = collect(data.metrics).to(device)
    by_position = LossByPosition(device)
    try:
        for batch in data.evaluation_batches(split, batch_size):
            inputs, targets = (part.to(device, non_blocking=True) for part in batch)
            with autocast():
                outputs = model(inputs)
            loss, mask = data.loss(outputs, targets), data.mask(targets)
            by_position.update(loss, mask)
            metrics.update(**counted_positions(outputs, targets, loss, mask, tokens=targets.ndim == 2))
            on_batch()
    finally:
        model.train(training)
    values = {name: float(value) for name, value in metrics.compute().items()}
    return Evaluation({"loss": values["loss"]} | values, by_position.compute())


def counted_positions(
    outputs: Tensor, targets: Tensor, loss: Tensor, mask: Tensor, *, tokens: bool
) -> dict[str, Tensor]:
    """The positions under the mask in a row: what metrics see."""
    parts = [part.flatten(0, 1) for part in (outputs, targets, loss)]  # (B L, ...) each
    if not mask.all():  # a copy of the outputs only where it drops something
        parts = [part[mask.flatten()] for part in parts]
    preds, target, loss = parts
    if not tokens:
        preds, target = preds.flatten(), target.flatten()
    return {"preds": preds, "target": target, "loss": loss}
