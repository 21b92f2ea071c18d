"""What a model's parts say besides its outputs: losses of their own, and how busy their experts are.

A part that has a loss of its own leaves it, times its weight, in ``auxiliary_loss`` at each forward pass in training,
and ``None`` before; one with experts keeps in ``expert_share`` (n_experts,) the share of all visits that each had in
the last such pass.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


def auxiliary_losses(model: nn.Module) -> Tensor | None:
    """The sum of what the parts left in the last forward pass, or ``None``; it is taken, so that no graph stays."""
    total = None
    for module in model.modules():
        loss = vars(module).get("auxiliary_loss")  # which costs less than asking a module for what it lacks
        if loss is not None:
            total = loss if total is None else total + loss
            module.auxiliary_loss = None
    return total


class ExpertLoad(NamedTuple):
    """How the visits spread over the experts, of all layers that have any.

    largest_share: of the visits of one layer that one expert had; 1 / n_experts is perfect balance.
    dead: experts that nobody visited, in all layers together.
    shares: of each layer, of each expert.
    """

    largest_share: float
    dead: int
    shares: list[list[float]]


def expert_load(model: nn.Module) -> ExpertLoad | None:
    """The load in the last training pass, ``None`` for a model without experts; waits for the device."""
    layers = [module.expert_share for module in model.modules() if hasattr(module, "expert_share")]
    if not layers:
        return None
    counts = [len(layer) for layer in layers]
    shares = [part.tolist() for part in torch.cat(layers).cpu().split(counts)]
    return ExpertLoad(max(map(max, shares)), sum(share.count(0.0) for share in shares), shares)
