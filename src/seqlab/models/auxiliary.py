"""What a model's parts say besides its outputs: losses of their own, and how busy their experts are.

A part that has a loss of its own leaves it, times its weight, in ``auxiliary_loss`` at each forward pass in training,
and ``None`` before; one with experts keeps in ``expert_share`` (n_experts,) the share of all visits that each had in
the last such pass. A loss that has a share of visits for a factor is linear in it, and its derivative, (n_experts,),
is left in ``loss_by_share``: so what the loss of a part of a batch is under the shares of all parts is known.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


def auxiliary_losses(model: nn.Module, shares: dict[nn.Module, Tensor] | None = None) -> Tensor | None:
    """The sum of what the parts left in the last forward pass, or ``None``; it is taken, so that no graph stays.

    Args:
        model: all of it.
        shares: of the visits, to take for those of the pass, by the module that has experts.
    """
    total = None
    for module in model.modules():
        loss = vars(module).get("auxiliary_loss")  # which costs less than asking a module for what it lacks
        if loss is not None:
            if shares and vars(module).get("loss_by_share") is not None:
                loss = loss + torch.dot(shares[module] - module.expert_share, module.loss_by_share)
            total = loss if total is None else total + loss
            module.auxiliary_loss = None
        if vars(module).get("loss_by_share") is not None:
            module.loss_by_share = None
    return total


def experts_of(model: nn.Module) -> list[nn.Module]:
    """The parts that have experts."""
    return [module for module in model.modules() if hasattr(module, "expert_share")]


def balances(model: nn.Module) -> bool:
    """Whether some part has a loss of the shares of visits."""
    return any(getattr(module, "balance_weight", 0) for module in experts_of(model))


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
    """The load in the last training pass, or of its whole batch; ``None`` without experts. Waits for the device."""
    layers = [module.expert_share for module in experts_of(model)]
    if not layers:
        return None
    counts = [len(layer) for layer in layers]
    shares = [part.tolist() for part in torch.cat(layers).cpu().split(counts)]
    return ExpertLoad(max(map(max, shares)), sum(share.count(0.0) for share in shares), shares)
