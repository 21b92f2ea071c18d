"""The exponential moving average of a model's weights (Polyak and Juditsky 1992; in training Izmailov et al. 2018)."""

import copy

import torch
from torch import Tensor, nn


class Average:
    """a <- decay a + (1 - decay) w for every trained weight w after each step that is taken; a starts as w does.

    These are the values of torch's ``get_ema_multi_avg_fn``. Its ``AveragedModel`` asks the device at each update
    whether it is the first, which no CUDA graph can capture, and has no way to leave out a step that only the device
    knows was not taken.

    Args:
        model: what is trained. A parameter that is frozen is shared with ``self.model``.
        decay: between 0 and 1.

    Attributes:
        model: a copy with the averaged weights, to be evaluated; its buffers follow those of the model.
    """

    def __init__(self, model: nn.Module, decay: float):
        frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
        self.model = copy.deepcopy(model, frozen).requires_grad_(False)
        for part in self.model.modules():
            if isinstance(part, nn.RNNBase):
                part.flatten_parameters()  # cuDNN wants them side by side
        pairs = [(a, w) for a, w in zip(self.model.parameters(), model.parameters(), strict=True) if a is not w]
        self.averages, self.weights = ([pair[i] for pair in pairs] for i in (0, 1))
        self.buffers = list(zip(self.model.buffers(), model.buffers(), strict=True))
        self.share = torch.tensor(1 - decay, device=self.averages[0].device)

    @torch.no_grad()
    def update(self, taken: Tensor | float = 1.0) -> None:
        """Take in the present weights, unless ``taken``, a number or a scalar on the device, is 0."""
        shares = [self.share * taken] * len(self.averages)
        torch._foreach_lerp_(self.averages, self.weights, shares)
        for average, buffer in self.buffers:
            average.copy_(buffer)

    def state(self) -> dict[str, list[Tensor]]:
        """The weights and buffers that are trained, of which ``model`` has the averages."""
        return {"weights": [w.detach() for w in self.weights], "buffers": [buffer for _, buffer in self.buffers]}

    @torch.no_grad()
    def load_state(self, state: dict[str, list[Tensor]]) -> None:
        """Restore what ``state`` returned."""
        for ours, saved in zip(self.weights, state["weights"], strict=True):
            ours.copy_(saved)
        for (_, ours), saved in zip(self.buffers, state["buffers"], strict=True):
            ours.copy_(saved)
