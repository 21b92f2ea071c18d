"""Evaluation: one pass over a whole split.

Masks are made on the CPU, as batches are, so nothing here waits for the device before the end.

Symbols: B batch, L length, P answers (positions under the mask), n targets of a position.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from seqlab.data import Batch, DataSet
from seqlab.models.protocols import Prefills
from seqlab.models.sequence_model import SequenceModel
from seqlab.training.carried import OneStream, reader
from seqlab.training.metrics import Metrics, Slices, SliceTable
from seqlab.training.parallel import ALONE, World
from seqlab.training.sharding import whole

LONG = 8192
"""The longest sequences that go through the model at once, in positions. Longer ones go in pieces, with the model's
state passed on, so that activations and logits take the memory of a piece; outputs are equal within rounding."""

PIECE = 2**18
PIECE_ON_CPU = 2**14
LOGITS = 2**28
"""The largest numbers of positions and of logits in a piece, all sequences of the batch together. On a CPU, longer
pieces would gain nothing, and would delay a request to stop by minutes."""


class Evaluation(NamedTuple):
    """Metrics by name, the mean loss at each position of the window, and metrics by difficulty if the data has it."""

    metrics: dict[str, float]
    loss_by_position: list[float]
    slices: SliceTable


class LossByPosition:
    """The mean loss at each position of the window, up to the longest window seen."""

    def __init__(self, device: torch.device):
        self.total = torch.zeros(0, dtype=torch.float64, device=device)
        self.count = torch.zeros(0, dtype=torch.int64)

    def update(self, loss: Tensor, mask: Tensor, start: int) -> None:
        """Add losses (B, L), from position ``start`` on; they are 0 where the mask (B, L), on the CPU, is false."""
        end = start + loss.shape[1]
        missing = end - len(self.total)
        if missing > 0:
            self.total = nn.functional.pad(self.total, (0, missing))
            self.count = nn.functional.pad(self.count, (0, missing))
        self.total[start:end] += loss.sum(dim=0, dtype=torch.float64)
        self.count[start:end] += mask.sum(dim=0)

    def add_up(self, world: World) -> None:
        """Take in what the other processes have added."""
        found = world.gather((self.total.cpu(), self.count))
        longest = max(len(count) for _, count in found)
        self.total, self.count = (
            sum(nn.functional.pad(one[i], (0, longest - len(one[i]))) for one in found) for i in (0, 1)
        )

    def compute(self) -> list[float]:
        """The mean losses, NaN where the mask was always false."""
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
    world: World = ALONE,
) -> Evaluation:
    """Measure a model on a split, once and in order, in evaluation mode; its mode is restored afterwards.

    Of several processes, each takes its share of every batch's rows, and all return the metrics of all rows. Where the
    model carries its state on (``DataSet.carries``), each reads the whole split, as one text.

    Args:
        model: maps inputs to outputs, on ``device``.
        data: has the split, its loss and its metrics.
        split: ``validation``, ``test`` or one of the data's further tests.
        batch_size: windows at a time; it changes the speed and not the result of a whole split.
        most: the largest number of batches to read; None reads the whole split.
        device: where to compute.
        autocast: makes the context of the precision.
        on_batch: called after each batch, for a progress bar.
        on_piece: called after each piece of a batch, or each whole batch; may raise to stop early.
        world: the processes that evaluate together.
    """
    training = model.training
    model.eval()
    read, together = reader(model, data), world
    world = ALONE if data.carries else world  # every process reads the one text
    metrics = Metrics(data.metrics, device)
    by_position, slices = LossByPosition(device), Slices()
    try:
        for every in islice(data.evaluation_batches(split, batch_size), most):
            batch = world.share(every)
            idle = not len(batch.inputs)
            if idle:  # it goes along with the others, which may need it to gather weights, and counts nothing
                batch = Batch(*(part[:1] for part in every))
            mask = data.mask(batch.targets)  # (B, L), on the CPU
            most_rows, length = -(-len(every.inputs) // world.size), mask.shape[1]
            size = piece_size(read, most_rows, length, data.d_output, PIECE_ON_CPU if device.type == "cpu" else PIECE)
            seen = []
            for here, loss, answers in measured(read, data, batch, mask, size, device=device, autocast=autocast):
                if not idle:
                    by_position.update(loss, mask[:, here], here.start)
                    seen.append(answers)
                on_piece()
            on_batch()
            if idle:
                continue
            answers = seen[0] if len(seen) == 1 else {k: torch.cat([part[k] for part in seen]) for k in seen[0]}
            sequence = in_answers(numbered(mask), mask, size).to(device, non_blocking=True)
            metrics.update(**answers, sequence=sequence, text_bytes=data.text_bytes(split))
            values = {name: in_answers(value, mask, size) for name, value in data.slices(batch).items()}
            slices.update(values, **answers)
        for sums in (metrics, by_position, slices) if world.size > 1 else ():
            sums.add_up(world)
    finally:
        model.train(training)
    found = Evaluation(metrics.compute(), by_position.compute(), slices.compute())
    return together.once(lambda: found) if data.carries else found


def measured(
    model: nn.Module | OneStream,
    data: DataSet,
    batch: Batch,
    mask: Tensor,
    size: int,
    *,
    device: torch.device,
    autocast: Callable[[], Any],
) -> Iterator[tuple[slice, Tensor, dict[str, Tensor]]]:
    """Run a batch with its mask (B, L), which is on the CPU, in pieces of ``size`` positions.

    Yields:
        Of each piece its place in L, its losses (B, piece) and its answers for the metrics (``in_a_row``).
    """
    inputs, targets = Batch(*batch).to(device)
    for start, places, outputs in pieces(model, inputs, mask, size, autocast):
        here = slice(start, start + size)
        if places is None:
            loss, answers = at_every_position(data, outputs, targets[:, here], mask[:, here])
        else:
            loss, answers = at_places(data, outputs, targets[:, here], places)
        yield here, loss, answers


def piece_size(model: nn.Module | OneStream, batch_size: int, length: int, d_output: int, most: int) -> int:
    """The number of positions that go through the model at once; all if a mixer has no ``prefill``.

    And all where documents are apart, since states that are passed on would join them again.
    """
    layers = model.layers if isinstance(model, SequenceModel) else ()
    apart = getattr(model, "separator", None) is not None
    by_pieces = (
        not apart and isinstance(model, Prefills) and all(isinstance(layer.mixer.inner, Prefills) for layer in layers)
    )
    return max(1, min(most, LOGITS // d_output) // batch_size) if by_pieces and length > LONG else length


def pieces(
    model: nn.Module | OneStream, inputs: Tensor, mask: Tensor, size: int, autocast: Callable[[], Any]
) -> Iterator[tuple[int, Tensor | None, Tensor]]:
    """Run inputs (B, L) or (B, L, d_input) in pieces of ``size`` positions.

    Yields:
        The first position of a piece, its answers' places (P,) by the mask (B, L), and the outputs there
        (P, d_output). For whole sequences of which most positions count, or if the model cannot select places, None
        and all outputs (B, L, d_output).
    """
    length = inputs.shape[1]
    if size >= length:
        few = isinstance(model, Prefills) and 2 * mask.sum() <= mask.numel()
        places = places_of(mask, inputs.device) if few else None
        with autocast():
            outputs = model(inputs) if places is None else model(inputs, places)
        yield 0, places, outputs
        return
    model.check_length(length)  # before half of it is computed
    state = whole(model.initial_state(len(inputs)))  # made like the weights, of which a process may have parts
    for start in range(0, length, size):
        places = places_of(mask[:, start : start + size], inputs.device)
        with autocast():
            outputs, state = model.prefill(inputs[:, start : start + size], state, places=places, chunk=size)
        yield start, places, outputs


def at_every_position(
    data: DataSet, outputs: Tensor, targets: Tensor, mask: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses (B, L), and the answers for the metrics: what is under the mask (B, L), which is on the CPU.

    Outputs are (B, L, d_output); targets are (B, L), or (B, L, n) if a position has several.
    """
    loss = data.loss(outputs, targets)
    parts = [part.flatten(0, 1) for part in (outputs, targets, loss)]  # (B L, ...) each
    if not mask.all():  # a copy of the outputs only where it drops something
        places = places_of(mask, loss.device)
        parts = [part[places] for part in parts]
    return loss, in_a_row(*parts)


def at_places(data: DataSet, outputs: Tensor, targets: Tensor, places: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """As ``at_every_position``, from outputs (P, d_output) at ``places`` (P,) of the flat targets.

    Each answer is passed to ``data.loss`` as a sequence of its own, so that a data set need not know of pieces.
    """
    target = targets.flatten(0, 1)[places]
    loss = torch.zeros(targets.shape[:2], device=outputs.device)
    answered = data.loss(outputs[:, None], target[:, None])[:, 0] if len(places) else loss.new_zeros(0)
    loss.view(-1)[places] = answered
    return loss, in_a_row(outputs, target, answered)


def in_a_row(preds: Tensor, target: Tensor, loss: Tensor) -> dict[str, Tensor]:
    """The answers for the metrics: outputs (P, d_output), targets (P,) or (P, n) and losses (P,).

    If a position has several targets, they and the outputs are flattened, to (P n,) and (P d_output,).
    """
    if target.ndim > 1:
        preds, target = preds.flatten(), target.flatten()
    return {"preds": preds, "target": target, "loss": loss}


def places_of(mask: Tensor, device: torch.device) -> Tensor:
    """The indices, in the flat batch, at which a mask (B, L) on the CPU is true: (P,) int64 on the device."""
    return mask.flatten().nonzero()[:, 0].to(device, non_blocking=True)


def numbered(mask: Tensor) -> Tensor:
    """The number of each position's sequence, counting sequences with an answer under the mask: (B, L) to (B, L)."""
    return (mask.any(dim=1).cumsum(dim=0) - 1)[:, None].expand(mask.shape)


def in_answers(values: Tensor, mask: Tensor, size: int) -> Tensor:
    """Values (B, L) under the mask (B, L), flat (P,), in the order of the pieces' answers."""
    return torch.cat([one[here] for one, here in zip(values.split(size, 1), mask.split(size, 1), strict=True)])
