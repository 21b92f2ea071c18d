"""Optimizers, built for a model: which parameters decay, and which update serves which.

Each function returns a list of torch optimizers; the trainer steps them together.

Every matrix decays, whatever it is for: an embedding does whether it is tied to the head or not, so that two models
that differ in tying differ in nothing else, and so do learned positions. ``decay_lookups=False`` is what runs did
before that was a setting: tables that are only looked up, which no head shares, go without.
"""

from collections.abc import Iterable
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import nn
from torch.optim import Optimizer

from seqlab.models.mixture_of_experts import ExpertMaps
from seqlab.training.muon_of_stacks import MuonOfStacks

Parameters = list[nn.Parameter]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[list[Fraction], Field(min_length=2, max_length=2)]


def floats(numbers: Iterable[float]) -> tuple[float, ...]:
    """Numbers as torch's optimizers take them, which refuse a whole one (0) among the others."""
    return tuple(map(float, numbers))


def trainable(model: nn.Module) -> Parameters:
    return [p for p in model.parameters() if p.requires_grad]


def decays(parameter: nn.Parameter, *, lookups: bool) -> bool:
    """Weight decay is for matrices; vectors (norms, biases, skips) and what says ``no_weight_decay`` go without.

    A table that is looked up alone, and never multiplied with, says so in ``lookup``; it decays where ``lookups``.
    """
    spared = getattr(parameter, "no_weight_decay", False) or (getattr(parameter, "lookup", False) and not lookups)
    return parameter.ndim >= 2 and not spared


def decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float, *, lookups: bool) -> list[dict[str, Any]]:
    """Parameter groups with and without decay, in a fixed order."""
    with_decay, without = [], []
    for parameter in parameters:
        (with_decay if decays(parameter, lookups=lookups) else without).append(parameter)
    groups = [{"params": with_decay, "weight_decay": weight_decay}, {"params": without, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def decayed_share(optimizers: Iterable[Optimizer]) -> float:
    """Of all numbers that are trained, the share that weight decay shrinks."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    sizes = [sum(p.numel() for p in group["params"]) for group in groups]
    return sum(n for n, group in zip(sizes, groups, strict=True) if group["weight_decay"] > 0) / sum(sizes)


def adamw(
    model: nn.Module,
    *,
    lr: PositiveFloat = 1e-3,
    betas: Betas = (0.9, 0.95),
    eps: PositiveFloat = 1e-8,
    weight_decay: NonNegativeFloat = 0.1,
    decay_lookups: bool = False,
) -> list[Optimizer]:
    """Adam with decoupled decay (Loshchilov and Hutter 2019), all parameters in one fused call."""
    groups = decay_groups(trainable(model), weight_decay, lookups=decay_lookups)
    return [torch.optim.AdamW(groups, lr=lr, betas=floats(betas), eps=eps, fused=True)]


def adam(
    model: nn.Module, *, lr: PositiveFloat = 1e-3, betas: Betas = (0.9, 0.999), eps: PositiveFloat = 1e-8
) -> list[Optimizer]:
    """Adam without decay (Kingma and Ba 2015)."""
    return [torch.optim.Adam(trainable(model), lr=lr, betas=floats(betas), eps=eps, fused=True)]


def sgd(
    model: nn.Module,
    *,
    lr: PositiveFloat = 0.1,
    momentum: Fraction = 0.9,
    nesterov: bool = True,
    weight_decay: NonNegativeFloat = 0.0,
    decay_lookups: bool = False,
) -> list[Optimizer]:
    """Stochastic gradient descent with momentum (``nesterov`` looks ahead along it, and does nothing without it)."""
    groups = decay_groups(trainable(model), weight_decay, lookups=decay_lookups)
    return [torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov and momentum > 0)]


def muon(
    model: nn.Module,
    *,
    lr: PositiveFloat = 1e-3,
    momentum: Fraction = 0.95,
    betas: Betas = (0.9, 0.95),
    eps: PositiveFloat = 1e-8,
    weight_decay: NonNegativeFloat = 0.1,
    decay_lookups: bool = False,
) -> list[Optimizer]:
    """Muon (Jordan et al. 2024) for the layers' linear maps, AdamW for the rest.

    Muon's update is scaled to AdamW's size (Liu et al. 2025, section 2.2), so that one rate serves both. The maps of
    experts are taken one by one.
    """
    hidden, stacks = (
        [m.weight for m in model.layers.modules() if isinstance(m, kind) and m.weight.requires_grad]
        for kind in (nn.Linear, ExpertMaps)
    )
    taken = {id(p) for p in hidden + stacks}
    rest = decay_groups((p for p in trainable(model) if id(p) not in taken), weight_decay, lookups=decay_lookups)
    optimizers: list[Optimizer] = [torch.optim.AdamW(rest, lr=lr, betas=floats(betas), eps=eps, fused=True)]
    if hidden:
        optimizers.append(
            torch.optim.Muon(
                hidden, lr=lr, momentum=momentum, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    if stacks:
        optimizers.append(MuonOfStacks(stacks, lr=lr, momentum=momentum, weight_decay=weight_decay))
    return optimizers
