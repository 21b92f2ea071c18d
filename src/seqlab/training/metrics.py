"""Metrics: torchmetrics objects, or plain functions of predictions and targets that are averaged over positions.

A data set's YAML names its metrics. Each is updated with what its signature asks for of

- ``preds``: outputs at the positions that count, (P, d_output), or all values in a row for regression;
- ``target``: what they should be, (P,) or in a row;
- ``loss``: the loss at each position, (P,), in nats for language;
- ``sequence``: which sequence of the batch each position is in, (P,), numbered from 0 without a gap.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from seqlab.training.lean_import import as_if_not_installed

with as_if_not_installed("matplotlib", "transformers"):
    from torchmetrics import Metric, MetricCollection
    from torchmetrics.classification import BinaryCalibrationError

PositionFunction = Callable[[Tensor, Tensor], Tensor]


class MeanLoss(Metric):
    """The mean loss, summed in float64 so that a long split loses nothing."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, loss: Tensor) -> None:
        self.total += loss.sum(dtype=torch.float64)
        self.count += loss.numel()

    def compute(self) -> Tensor:
        return self.total / self.count


class Perplexity(MeanLoss):
    """The exponential of the mean loss in nats."""

    def compute(self) -> Tensor:
        return super().compute().exp()


class BitsPerCharacter(MeanLoss):
    """The mean loss in bits; the tokens are characters."""

    def compute(self) -> Tensor:
        return super().compute() / math.log(2)


class CalibrationError(BinaryCalibrationError):
    """Expected calibration error of the top-1 prediction (Guo et al. 2017, equation 3), in ``n_bins`` equal bins.

    The loss is cross-entropy, so with the target's logit it gives the log of the softmax's denominator, which over
    a vocabulary is the expensive part.
    """

    def __init__(self, n_bins: int = 15):
        super().__init__(n_bins=n_bins, norm="l1", validate_args=False)

    def update(self, preds: Tensor, target: Tensor, loss: Tensor) -> None:
        top, predicted = preds.max(dim=-1)
        own = preds.gather(-1, target[:, None])[:, 0]
        confidence = (top.float() - own.float() - loss).exp()
        super().update(confidence.clamp(max=1), (predicted == target).long())


class ExactSequences(Metric):
    """The share of sequences all of whose answers are right; one without an answer does not count."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("exact", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor, sequence: Tensor) -> None:
        wrong = preds.argmax(dim=-1) != target
        answers, mistakes = (torch.zeros(len(sequence), dtype=torch.int64, device=wrong.device) for _ in range(2))
        answers.index_add_(0, sequence, torch.ones_like(sequence))  # (P,): there are no more sequences than answers
        mistakes.index_add_(0, sequence, wrong.long())
        self.exact += ((answers > 0) & (mistakes == 0)).sum()
        self.count += (answers > 0).sum()

    def compute(self) -> Tensor:
        return self.exact / self.count


class PositionMean(MeanLoss):
    """The mean over positions of a function of predictions and targets."""

    def __init__(self, function: PositionFunction):
        super().__init__()
        self.function = function

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(self.function(preds, target).float())


def top_k_accuracy(preds: Tensor, target: Tensor, *, k: int) -> Tensor:
    """Whether the target is among the k largest logits, (P, V) and (P,) to (P,)."""
    largest = preds.topk(min(k, preds.shape[-1]), dim=-1, sorted=False).indices  # (P, k)
    return (largest == target[:, None]).any(dim=-1)


def within_tolerance(preds: Tensor, target: Tensor, *, tolerance: float) -> Tensor:
    """Whether a value lies within ``tolerance`` of what it should be."""
    return (preds - target).abs() <= tolerance


def collect(metrics: dict[str, Any]) -> MetricCollection:
    """Fresh metrics of these kinds, and the mean loss, under one ``update`` that gives each what it asks for."""
    ready = {"loss": MeanLoss()}
    for name, metric in metrics.items():
        ready[name] = metric.clone() if isinstance(metric, Metric) else PositionMean(metric)
    return MetricCollection(ready, compute_groups=False)
