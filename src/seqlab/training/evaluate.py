"""One pass over a whole split.

What counts is known on the CPU, where batches are made, so nothing here waits for the device before the end.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from seqlab.data import DataSet
from seqlab.models.protocols import Prefills
from seqlab.models.sequence_model import SequenceModel
from seqlab.training.metrics import Metrics, Slices, SliceTable

LONG = 8192
"""Positions up to which sequences go through the model at once. Longer ones go in pieces, the model's state passed on
from one to the next, so that activations and logits take the memory of a piece; outputs are equal within rounding."""

PIECE = 2**18
PIECE_ON_CPU = 2**14
LOGITS = 2**28
"""Positions and logits of a piece at most, those of all sequences of the batch together. On a CPU, pieces as long as a
GPU's would gain nothing, and keep the wish to stop waiting for minutes."""


class Evaluation(NamedTuple):
    """Metrics by name, the mean loss at each position of the window, and metrics by difficulty if the data has any."""

    metrics: dict[str, float]
    loss_by_position: list[float]
    slices: SliceTable


class LossByPosition:
    """Sums of the loss and counts for each place in the window, as far as the longest window seen."""

    def __init__(self, device: torch.device):
        self.total = torch.zeros(0, dtype=torch.float64, device=device)
        self.count = torch.zeros(0, dtype=torch.int64)

    def update(self, loss: Tensor, mask: Tensor, start: int) -> None:
        """Add losses (B, L) from place ``start`` on, zero where the mask (B, L) is; the mask is on the CPU."""
        end = start + loss.shape[1]
        missing = end - len(self.total)
        if missing > 0:
            self.total = nn.functional.pad(self.total, (0, missing))
            self.count = nn.functional.pad(self.count, (0, missing))
        self.total[start:end] += loss.sum(dim=0, dtype=torch.float64)
        self.count[start:end] += mask.sum(dim=0)

    def compute(self) -> list[float]:
        """The means; not a number where no position counted."""
        return (self.total.cpu() / self.count).tolist()


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    data: DataSet,
    split: str,
    *,
    batch_size: int,
    most: int | None = None,
    device: torch.device,
    autocast: Callable[[], Any],
    on_batch: Callable[[], None] = lambda: None,
    on_piece: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Measure a model on a split, once and in order; the model's mode is put back afterwards.

    Args:
        model: maps inputs to outputs, on ``device``.
        data: has the split, its loss and its metrics.
        split: ``validation``, ``test`` or one of the data's further tests.
        batch_size: windows at a time; it changes the speed and not the result of a whole split.
        most: read this many batches at most; None is the whole split.
        autocast: the precision's context.
        on_batch: called after each batch, for a progress bar.
        on_piece: called after each piece of a batch, a whole batch that goes at once too, to stop early by raising.
    """
    training = model.training
    model.eval()
    metrics = Metrics(data.metrics, device)
    by_position, slices = LossByPosition(device), Slices()
    try:
        for batch in islice(data.evaluation_batches(split, batch_size), most):
            mask = data.mask(batch.targets)  # (B, L), on the CPU
            inputs, targets = (part.to(device, non_blocking=True) for part in batch)
            size = piece_size(model, *inputs.shape[:2], data.d_output, PIECE_ON_CPU if device.type == "cpu" else PIECE)
            seen = []
            for start, places, outputs in pieces(model, inputs, mask, size, autocast):
                here = slice(start, start + size)
                if places is None:
                    loss, answers = at_every_position(data, outputs, targets[:, here], mask[:, here])
                else:
                    loss, answers = at_places(data, outputs, targets[:, here], places)
                by_position.update(loss, mask[:, here], start)
                seen.append(answers)
                on_piece()
            answers = seen[0] if len(seen) == 1 else {k: torch.cat([part[k] for part in seen]) for k in seen[0]}
            metrics.update(**answers, sequence=in_answers(numbered(mask), mask, size).to(device, non_blocking=True))
            values = {name: in_answers(value, mask, size) for name, value in data.slices(batch).items()}
            slices.update(values, **answers)
            on_batch()
    finally:
        model.train(training)
    return Evaluation(metrics.compute(), by_position.compute(), slices.compute())


def piece_size(model: nn.Module, batch_size: int, length: int, d_output: int, most: int) -> int:
    """How many positions of the sequences go through the model at once; all where it would go on step by step."""
    layers = model.layers if isinstance(model, SequenceModel) else ()
    by_pieces = isinstance(model, Prefills) and all(isinstance(layer.mixer.inner, Prefills) for layer in layers)
    return max(1, min(most, LOGITS // d_output) // batch_size) if by_pieces and length > LONG else length


def pieces(
    model: nn.Module, inputs: Tensor, mask: Tensor, size: int, autocast: Callable[[], Any]
) -> Iterator[tuple[int, Tensor | None, Tensor]]:
    """Where each piece of the sequences begins, and the model's outputs at its places under the mask, or at all (None).

    All are made only where half of a whole batch counts, or where the model cannot choose.
    """
    length = inputs.shape[1]
    if size >= length:
        few = isinstance(model, Prefills) and 2 * mask.sum() <= mask.numel()
        places = places_of(mask, inputs.device) if few else None
        with autocast():
            outputs = model(inputs) if places is None else model(inputs, places)
        yield 0, places, outputs
        return
    model.check_length(length)  # now, and not after half of it
    state = model.initial_state(len(inputs))
    for start in range(0, length, size):
        places = places_of(mask[:, start : start + size], inputs.device)
        with autocast():
            outputs, state = model.prefill(inputs[:, start : start + size], state, places=places, chunk=size)
        yield start, places, outputs


def at_every_position(
    data: DataSet, outputs: Tensor, targets: Tensor, mask: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses (B, L), and in a row what metrics see, the positions under the mask (B, L), which is on the CPU."""
    loss = data.loss(outputs, targets)
    parts = [part.flatten(0, 1) for part in (outputs, targets, loss)]  # (B L, ...) each
    if not mask.all():  # a copy of the outputs only where it drops something
        places = places_of(mask, loss.device)
        parts = [part[places] for part in parts]
    return loss, in_a_row(*parts)


def at_places(data: DataSet, outputs: Tensor, targets: Tensor, places: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The same of outputs (P, ...) at ``places`` alone, with each answer as a sequence of its own: a data object need
    not know of pieces."""
    target = targets.flatten(0, 1)[places]
    loss = torch.zeros(targets.shape[:2], device=outputs.device)
    answered = data.loss(outputs[:, None], target[:, None])[:, 0] if len(places) else loss.new_zeros(0)
    loss.view(-1)[places] = answered
    return loss, in_a_row(outputs, target, answered)


def in_a_row(preds: Tensor, target: Tensor, loss: Tensor) -> dict[str, Tensor]:
    """What metrics see of P answers: values (P, d_output), which are no tokens, one by one."""
    if target.ndim > 1:
        preds, target = preds.flatten(), target.flatten()
    return {"preds": preds, "target": target, "loss": loss}


def places_of(mask: Tensor, device: torch.device) -> Tensor:
    """Where a mask (B, L) on the CPU is true, in the flat batch: (P,) on the device."""
    return mask.flatten().nonzero()[:, 0].to(device, non_blocking=True)


def numbered(mask: Tensor) -> Tensor:
    """For each position (B, L) which sequence of the batch it is in, of those that have any under the mask."""
    return (mask.any(dim=1).cumsum(dim=0) - 1)[:, None].expand(mask.shape)


def in_answers(values: Tensor, mask: Tensor, size: int) -> Tensor:
    """Values (B, L) at the positions under the mask (B, L) in a row (P,), in the order of the pieces' answers."""
    return torch.cat([one[here] for one, here in zip(values.split(size, 1), mask.split(size, 1), strict=True)])
