"""Metrics, and loss and accuracy by difficulty.

A metric is an object that is updated batch by batch, or a plain function whose values are averaged over positions. A
data set's YAML names its metrics, those here or any class of torchmetrics. Each is updated with those of the following
that are parameters of its ``update``:

- ``preds``: logits (P, V) at the positions that count; if a position has several targets, all outputs, flat;
- ``target``: token ids (P,) int64; if a position has several targets, all targets, flat (P,);
- ``loss``: the loss at each position, (P,), in nats for language;
- ``sequence``: the sequence of the batch that each position is in, (P,) int64, numbered from 0 without a gap;
- ``text_bytes``: the split's ``seqlab.data.protocol.TextBytes``.

Sums start as the number 0 and become tensors on the device of what is added.

Symbols: P positions that count, V vocabulary.
"""

import copy
import inspect
import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from seqlab.data.protocol import TextBytes
from seqlab.training.parallel import World

SliceTable = dict[str, dict[str, dict[str, float]]]
"""``{difficulty: {value: {loss, accuracy, count}}}``; difficulties are distance, number of pairs, ..."""

PositionFunction = Callable[[Tensor, Tensor], Tensor]


class Sums:
    """A metric whose state is sums over positions, ``names``, so that those of several processes can be added."""

    names: tuple[str, ...] = ("total", "count")

    def __init__(self) -> None:
        self.put(dict.fromkeys(self.names, 0))

    def sums(self) -> dict[str, Any]:
        """The sums by name, on the CPU."""
        values = {name: getattr(self, name) for name in self.names}
        return {name: value.cpu() if isinstance(value, Tensor) else value for name, value in values.items()}

    def put(self, sums: dict[str, Any]) -> None:
        """Set the sums."""
        for name, value in sums.items():
            setattr(self, name, value)


class MeanLoss(Sums):
    """The mean loss, summed in float64 for the precision of long splits."""

    def update(self, loss: Tensor) -> None:
        """Add losses (P,)."""
        self.total = self.total + loss.sum(dtype=torch.float64)
        self.count += loss.numel()

    def compute(self) -> Tensor:
        """The value over everything added, a float64 scalar."""
        return self.total / self.count


class Perplexity(MeanLoss):
    """The exponential of the mean loss in nats."""

    @override
    def compute(self) -> Tensor:
        return super().compute().exp()


class BitsPerCharacter(MeanLoss):
    """The mean loss in bits; the tokens are characters."""

    @override
    def compute(self) -> Tensor:
        return super().compute() / math.log(2)


class BitsPerByte(MeanLoss):
    """The loss of a text in bits, divided by the bytes (UTF-8) that are predicted, whatever the tokens are.

    A word that the vocabulary does not have costs 8 bits for each of its bytes besides, since ``<unk>`` does not say
    which it is; so a small vocabulary gains nothing. Over a whole split the bytes are exact; over a part of it they are
    the tokens' share of the split's.
    """

    names = *MeanLoss.names, "bytes", "unknown"

    def update(self, loss: Tensor, text_bytes: TextBytes) -> None:
        """Add losses (P,) of a split's tokens."""
        super().update(loss)
        self.bytes += loss.numel() * text_bytes.per_token
        self.unknown += loss.numel() * text_bytes.per_token * text_bytes.unknown

    @override
    def compute(self) -> Tensor:
        return (self.total / math.log(2) + 8 * self.unknown) / self.bytes


class MeanSquaredError(MeanLoss):
    """The mean of (prediction - target)^2, or its root where ``squared`` is false."""

    def __init__(self, squared: bool = True):
        super().__init__()
        self.squared = squared

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add predictions (P,) and targets (P,)."""
        super().update((preds - target).square())

    @override
    def compute(self) -> Tensor:
        return super().compute() if self.squared else super().compute().sqrt()


class MeanAbsoluteError(MeanLoss):
    """The mean of |prediction - target|."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add predictions (P,) and targets (P,)."""
        super().update((preds - target).abs())


class R2Score(Sums):
    """The coefficient of determination: 1 - squared error / squared distance of the targets from their mean."""

    names = "error", "total", "squares", "count"

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add predictions (P,) and targets (P,)."""
        self.error = self.error + (preds - target).square().sum(dtype=torch.float64)
        self.total = self.total + target.sum(dtype=torch.float64)
        self.squares = self.squares + target.double().square().sum()
        self.count += target.numel()

    def compute(self) -> Tensor:
        """The value over everything added, a float64 scalar."""
        return 1 - self.error / (self.squares - self.total**2 / self.count)


class CalibrationError(Sums):
    """Expected calibration error of the top-1 prediction (Guo et al. 2017, equation 3), in ``n_bins`` equal bins.

    The loss is cross-entropy, so it gives, with the target's logit, the log of the softmax's denominator, whose
    computation over a vocabulary would be the expensive part.
    """

    names = "gaps", "count"

    def __init__(self, n_bins: int = 15):
        super().__init__()
        self.n_bins = n_bins

    def update(self, preds: Tensor, target: Tensor, loss: Tensor) -> None:
        """Add logits (P, V), targets (P,) and losses (P,)."""
        top, predicted = preds.max(dim=-1)
        own = preds.gather(-1, target[:, None])[:, 0]
        confidence = (top.float() - own.float() - loss).exp().clamp(max=1)
        gap = (predicted == target).double() - confidence  # (P,)
        bins = (confidence * self.n_bins).long().clamp(max=self.n_bins - 1)
        inside = bins[:, None] == torch.arange(self.n_bins, device=bins.device)  # (P, n_bins)
        self.gaps = self.gaps + (inside * gap[:, None]).sum(dim=0)
        self.count += len(gap)

    def compute(self) -> Tensor:
        """The value over everything added, a float64 scalar."""
        return self.gaps.abs().sum() / self.count


class ExactSequences(Sums):
    """The share of sequences whose answers are all right, of those that have an answer."""

    names = "exact", "count"

    def update(self, preds: Tensor, target: Tensor, sequence: Tensor) -> None:
        """Add logits (P, V), targets (P,) and the sequences (P,) that they are in."""
        wrong = preds.argmax(dim=-1) != target
        answers, mistakes = (torch.zeros(len(sequence), dtype=torch.int64, device=wrong.device) for _ in range(2))
        answers.index_add_(
            0, sequence, torch.ones_like(sequence)
        )  # (P,) suffices: there are no more sequences than answers
        mistakes.index_add_(0, sequence, wrong.long())
        self.exact = self.exact + ((answers > 0) & (mistakes == 0)).sum()
        self.count = self.count + (answers > 0).sum()

    def compute(self) -> Tensor:
        """The value over everything added, a float32 scalar."""
        return self.exact / self.count


class PositionMean(MeanLoss):
    """The mean of a function of ``preds`` and ``target`` to values (P,)."""

    def __init__(self, function: PositionFunction):
        super().__init__()
        self.function = function

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add predictions, (P, V) or (P,), and targets (P,)."""
        super().update(self.function(preds, target).float())


def top_k_accuracy(preds: Tensor, target: Tensor, *, k: int) -> Tensor:
    """Whether the target is among the k largest logits: (P, V) and (P,) to (P,) bool."""
    largest = preds.topk(min(k, preds.shape[-1]), dim=-1, sorted=False).indices  # (P, k)
    return (largest == target[:, None]).any(dim=-1)


def within_tolerance(preds: Tensor, target: Tensor, *, tolerance: float) -> Tensor:
    """Whether a prediction is within ``tolerance`` of its target: (P,) and (P,) to (P,) bool."""
    return (preds - target).abs() <= tolerance


class Metrics:
    """The mean loss and copies of the given metrics; see the module for what each is updated with.

    Args:
        kinds: by name, metrics that were never updated, or functions of ``preds`` and ``target``.
        device: of the states of torchmetrics.
    """

    def __init__(self, kinds: dict[str, Any], device: torch.device):
        self.metrics: dict[str, Any] = {"loss": MeanLoss()}
        for name, kind in kinds.items():
            fresh = copy.deepcopy(kind) if hasattr(kind, "update") else PositionMean(kind)
            self.metrics[name] = fresh.to(device) if hasattr(fresh, "to") else fresh

    def update(self, **answers: Any) -> None:
        """Add the answers of a batch, all that the module lists."""
        for metric in self.metrics.values():
            wanted = inspect.signature(metric.update).parameters
            metric.update(**{name: value for name, value in answers.items() if name in wanted})

    def add_up(self, world: World) -> None:
        """Take in what the other processes have added; a class of torchmetrics does so itself in ``compute``."""
        ours = {name: metric for name, metric in self.metrics.items() if isinstance(metric, Sums)}
        found = world.gather({name: metric.sums() for name, metric in ours.items()})
        for name, metric in ours.items():
            metric.put({part: sum(one[name][part] for one in found) for part in metric.names})

    def compute(self) -> dict[str, float]:
        """Each metric's value by its name; one with several values names them itself."""
        found: dict[str, Any] = {}
        for name, metric in self.metrics.items():
            value = metric.compute()
            found |= value if isinstance(value, dict) else {name: value}
        return {name: float(value) for name, value in found.items()}


class Slices:
    """Mean loss and accuracy for each value of each difficulty; only ``compute`` waits for the device."""

    def __init__(self) -> None:
        self.parts: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)

    def update(self, difficulty: dict[str, Tensor], *, preds: Tensor, target: Tensor, loss: Tensor) -> None:
        """Add the answers of a batch.

        Args:
            difficulty: values (P,) int64 by name, on the CPU.
            preds, target, loss: logits (P, V), token ids (P,) and losses (P,) of the same answers, on the device.
        """
        if not difficulty:
            return
        measured = torch.stack((loss.double(), (preds.argmax(dim=-1) == target).double()), dim=1)  # (P, 2)
        for name, values in difficulty.items():
            found, place, count = values.unique(return_inverse=True, return_counts=True)
            sums = torch.zeros(len(found), 2, dtype=torch.float64, device=loss.device)
            sums.index_add_(0, place.to(loss.device, non_blocking=True), measured)
            self.parts[name].append((found, count, sums))

    def add_up(self, world: World) -> None:
        """Take in what the other processes have added."""
        own = {name: [tuple(part.cpu() for part in one) for one in parts] for name, parts in self.parts.items()}
        found = world.gather(own)
        self.parts = {name: [one for other in found for one in other.get(name, [])] for name in found[0]}

    def compute(self) -> SliceTable:
        """For each difficulty and each of its values, as text in ascending order: mean loss, accuracy, answers."""
        return {name: table_of(*map(torch.cat, zip(*parts, strict=True))) for name, parts in self.parts.items()}


def table_of(values: Tensor, counts: Tensor, sums: Tensor) -> dict[str, dict[str, float]]:
    """The means over all entries of each value: values (S,), counts (S,), sums of loss and of right answers (S, 2)."""
    found, place = values.unique(return_inverse=True)
    count = torch.zeros(len(found), dtype=torch.int64).index_add_(0, place, counts)
    loss, accuracy = torch.zeros(len(found), 2, dtype=torch.float64).index_add_(0, place, sums.cpu()).T / count
    rows = zip(found.tolist(), loss.tolist(), accuracy.tolist(), count.tolist(), strict=True)
    return {str(value): {"loss": a, "accuracy": b, "count": c} for value, a, b, c in rows}
