"""Averages of a model's weights in training, which are evaluated, kept and tested in their place.

Two rules say how much of the present weights an average takes in after each step: an exponential moving average
(Polyak and Juditsky 1992; in training Izmailov et al. 2018), and NT-ASGD's, the plain mean since validation stopped
getting better (Merity et al. 2017, arXiv:1708.02182, algorithm 1).
"""

import copy
import logging
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from seqlab.training.sharding import own, part_of

log = logging.getLogger(__name__)


def copy_of(model: nn.Module) -> nn.Module:
    """A copy of a model for averages of its weights; a parameter that is frozen is shared with the model."""
    frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
    copied = copy.deepcopy(model, frozen).requires_grad_(False)
    for part in copied.modules():
        if isinstance(part, nn.RNNBase):
            part.flatten_parameters()  # cuDNN wants them side by side
    return copied


class Average:
    """a <- decay a + (1 - decay) w for every trained weight w after each step that is taken; a starts as w does.

    These are the values of torch's ``get_ema_multi_avg_fn``. Its ``AveragedModel`` asks the device at each update
    whether it is the first, which no CUDA graph can capture, and has no way to leave out a step that only the device
    knows was not taken.

    Args:
        model: what is trained.
        averaged: ``copy_of`` it; if processes share out the weights, those of both.
        decay: from 0 on, below 1.

    Attributes:
        model: ``averaged``, with the averaged weights, to be evaluated; its buffers follow those of the model.
        share: of the present weights in the next average, a scalar on the device.
    """

    def __init__(self, model: nn.Module, averaged: nn.Module, decay: float):
        self.model = averaged
        both = list(zip(averaged.parameters(), model.parameters(), strict=True))
        self.averages, self.weights = ([pair[i] for pair in both if pair[1].requires_grad] for i in (0, 1))
        self.frozen = [(a, w) for a, w in both if not (w.requires_grad or a is w)]  # of each model its own parts
        self.buffers = list(zip(self.model.buffers(), model.buffers(), strict=True))
        self.share = torch.tensor(1 - decay, device=self.averages[0].device)

    @torch.no_grad()
    def update(self, taken: Tensor | float = 1.0) -> None:
        """Take in the present weights, unless ``taken``, a number or a scalar on the device, is 0."""
        shares = [self.share * taken] * len(self.averages)
        torch._foreach_lerp_(list(map(own, self.averages)), list(map(own, self.weights)), shares)
        for average, buffer in self.buffers:
            average.copy_(buffer)

    def validated(self, loss: float, step: int) -> None:
        """Take note of the validation loss after a number of steps."""

    def state(self) -> dict[str, Any]:
        """The weights and buffers that are trained, of which ``model`` has the averages."""
        return {"weights": [w.detach() for w in self.weights], "buffers": [buffer for _, buffer in self.buffers]}

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what ``state`` returned; ``model`` has its weights already, also those that are frozen."""
        for average, weight in self.frozen:
            own(weight).copy_(own(average))
        for ours, saved in zip(self.weights, state["weights"], strict=True):
            ours.copy_(part_of(saved, ours))
        for (_, ours), saved in zip(self.buffers, state["buffers"], strict=True):
            ours.copy_(saved)


class NonMonotonic(Average):
    """The weights as they are until validation has not improved for a while, then the mean of all from there on.

    That is so at the first validation loss which is above the best of those before the last ``patience`` losses. From
    then on a = (w_T + ... + w_k) / (k - T + 1), of the weights at the trigger T and after each step taken since.

    Args:
        model: what is trained.
        averaged: ``copy_of`` it.
        patience: n of algorithm 1, in evaluations; there 5.

    Attributes:
        count: weights in the average, a scalar on the device, where a captured step counts.
        counts: 1 there if it goes up, and 0 before the trigger.
    """

    def __init__(self, model: nn.Module, averaged: nn.Module, patience: int):
        super().__init__(model, averaged, decay=0.0)
        self.patience, self.losses = patience, []
        self.count, self.counts = torch.ones_like(self.share), torch.zeros_like(self.share)

    @override
    @torch.no_grad()
    def update(self, taken: Tensor | float = 1.0) -> None:
        self.count.add_(self.counts * taken)
        self.share.copy_(self.count.reciprocal())
        super().update(taken)

    @override
    def validated(self, loss: float, step: int) -> None:
        before = self.losses[: -self.patience]
        self.losses.append(loss)
        if before and loss > min(before) and not self.counts:
            self.counts.fill_(1.0)
            log.info("Step %d: validation no longer improves; from here on the mean of the weights is evaluated.", step)

    @override
    def state(self) -> dict[str, Any]:
        return super().state() | {"losses": list(self.losses), "count": self.count, "counts": self.counts}

    @override
    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.losses = list(state["losses"])
        self.count.copy_(state["count"])
        self.counts.copy_(state["counts"])
