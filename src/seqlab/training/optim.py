"""Optimizers of a model: which parameters have weight decay, and which optimizer updates which.

Each function returns a list of torch optimizers; the trainer steps them together.

In ``conf/`` every matrix decays, embeddings and learned positions too, tied to the head or not, so that two models that
differ in tying differ in nothing else. ``decay_lookups=False``, as in runs before that setting existed, exempts tables
that are only looked up and not shared with a head.
"""

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import nn
from torch.optim import Optimizer

from seqlab.errors import UserError
from seqlab.models.mixture_of_experts import ExpertMaps
from seqlab.training.lean_optimizers import SGD, Adam, AdamW, Muon
from seqlab.training.muon_of_stacks import MuonOfStacks

Parameters = list[nn.Parameter]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[list[Fraction], Field(min_length=2, max_length=2)]
LayerDecay = Annotated[float, Field(gt=0, le=1)] | None
ByDepth = dict[nn.Parameter, float]


def floats(numbers: Iterable[float]) -> tuple[float, ...]:
    """Numbers as torch's optimizers take them, which refuse integers such as 0 among floats."""
    return tuple(map(float, numbers))


def trainable(model: nn.Module) -> Parameters:
    """The parameters that require a gradient, or in their place their factors (``seqlab.training.lora``)."""
    return [part for p in model.parameters() for part in trained_of(p)]


def trained_of(p: nn.Parameter) -> Iterable[nn.Parameter]:
    """What of a parameter is trained: itself, its factors if it has any, nothing if it is frozen."""
    return getattr(p, "factors", (p,)) if p.requires_grad else ()


def decays(parameter: nn.Parameter, *, lookups: bool) -> bool:
    """Whether a parameter has weight decay: not vectors (norms, biases, skips), nor those with ``no_weight_decay``.

    A table that is only looked up and never multiplied with has ``lookup``; it decays if ``lookups`` is true.
    """
    spared = getattr(parameter, "no_weight_decay", False) or (getattr(parameter, "lookup", False) and not lookups)
    return parameter.ndim >= 2 and not spared


def layer_factors(model: nn.Module, decay: float | None) -> ByDepth:
    """Factors on the learning rate by depth: decay^(n - i) of layer i in 0 .. n - 1, and decay^(n + 1) before it.

    The rate falls from the head, which has all of it, to the embedding (Howard and Ruder 2018, arXiv:1801.06146,
    section 3.2; in these powers Bao et al. 2022, arXiv:2106.08254). A head that shares the embedding's matrix has its
    rate.

    Args:
        model: whose layers are ``layers``; what is before them is ``embed`` and ``positions``.
        decay: above 0, at most 1; ``None`` gives no factors.

    Raises:
        UserError: the model has no layers.
    """
    if decay is None:
        return {}
    if not len(layers := getattr(model, "layers", ())):
        raise UserError(
            "optimizer.layer_decay", decay, "is for a model of layers, and this one has none", "Leave it out"
        )
    before = [part for name in ("embed", "positions") if (part := getattr(model, name, None)) is not None]
    powers = [(len(layers) - i, layer) for i, layer in enumerate(layers)] + [(len(layers) + 1, part) for part in before]
    return {one: decay**power for power, part in powers for p in part.parameters() for one in trained_of(p)}


def groups_of(
    parameters: Iterable[nn.Parameter],
    lr: float,
    *,
    layers: ByDepth,
    kind: str = "adam",
    decay: float | None = None,
    lookups: bool = True,
) -> list[dict[str, Any]]:
    """Parameter groups of one decay and one learning rate each, in a fixed order: first those with decay.

    Args:
        parameters: to be updated.
        lr: the learning rate, of which ``rates`` (``seqlab.models.parametrisation``) are factors.
        layers: further factors on it (``layer_factors``), which weight decay goes with.
        kind: which of the parameters' rates.
        decay: the weight decay; what decays in a step, rate times decay, is the same at every one of the ``rates``.
            ``None``: no groups by decay.
        lookups: whether tables that are only looked up decay.
    """
    found: dict[tuple[bool, float, float], Parameters] = {}
    for p in parameters:
        spared = decay is not None and not decays(p, lookups=lookups)
        factor = getattr(p.rates, kind) if hasattr(p, "rates") else 1.0
        found.setdefault((spared, factor, layers.get(p, 1.0)), []).append(p)
    groups = []
    for key in sorted(found, key=lambda key: key[0]):
        spared, factor, by_depth = key
        group: dict[str, Any] = {"params": found[key]}
        if decay is not None:
            group["weight_decay"] = 0.0 if spared else decay / factor
        factor *= by_depth
        groups.append(group if factor == 1 else group | {"lr": lr * factor, "factor": factor})
    return groups


def decayed_share(optimizers: Iterable[Optimizer]) -> float:
    """The share of the trained elements that have weight decay."""
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
    layer_decay: LayerDecay = None,
) -> list[Optimizer]:
    """Adam with decoupled decay (Loshchilov and Hutter 2019), all parameters in one fused call."""
    layers = layer_factors(model, layer_decay)
    groups = groups_of(trainable(model), lr, layers=layers, decay=weight_decay, lookups=decay_lookups)
    return [AdamW(groups, lr=lr, betas=floats(betas), eps=eps, fused=True)]


def adam(
    model: nn.Module,
    *,
    lr: PositiveFloat = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: PositiveFloat = 1e-8,
    layer_decay: LayerDecay = None,
) -> list[Optimizer]:
    """Adam without decay (Kingma and Ba 2015)."""
    groups = groups_of(trainable(model), lr, layers=layer_factors(model, layer_decay))
    return [Adam(groups, lr=lr, betas=floats(betas), eps=eps, fused=True)]


def sgd(
    model: nn.Module,
    *,
    lr: PositiveFloat = 0.1,
    momentum: Fraction = 0.9,
    nesterov: bool = True,
    weight_decay: NonNegativeFloat = 0.0,
    decay_lookups: bool = False,
    layer_decay: LayerDecay = None,
) -> list[Optimizer]:
    """Stochastic gradient descent with momentum, Nesterov's (Sutskever et al. 2013) if ``nesterov``."""
    how = {"kind": "sgd", "decay": weight_decay, "lookups": decay_lookups}
    groups = groups_of(trainable(model), lr, layers=layer_factors(model, layer_decay), **how)
    return [SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov and momentum > 0)]


def weights_in_layers(model: nn.Module, kind: type[nn.Module]) -> Parameters:
    """What is trained of the weights of the layers' modules of a kind."""
    return [one for m in model.layers.modules() if isinstance(m, kind) for one in trained_of(m.weight)]


def all_but(model: nn.Module, taken: Parameters) -> Parameters:
    """The parameters that are trained and not ``taken``."""
    ids = set(map(id, taken))
    return [p for p in trainable(model) if id(p) not in ids]


def muon(
    model: nn.Module,
    *,
    lr: PositiveFloat = 1e-3,
    momentum: Fraction = 0.95,
    betas: Betas = (0.9, 0.95),
    eps: PositiveFloat = 1e-8,
    weight_decay: NonNegativeFloat = 0.1,
    decay_lookups: bool = False,
    layer_decay: LayerDecay = None,
) -> list[Optimizer]:
    """Muon (Jordan et al. 2024) for the weights of the layers' linear maps, AdamW for the rest.

    The rest is the embedding, the head, the depthwise convolutions, A_log, the weights of torch's LSTM and GRU, and all
    vectors. Muon's update is scaled to AdamW's size (Liu et al. 2025, section 2.2), so that both have one learning
    rate. Each expert's matrix is updated separately.
    """
    maps, stacks = weights_in_layers(model, nn.Linear), weights_in_layers(model, ExpertMaps)
    how = {"layers": layer_factors(model, layer_decay), "decay": weight_decay}
    rest = groups_of(all_but(model, maps + stacks), lr, lookups=decay_lookups, **how)
    hidden, stacks = (groups_of(found, lr, kind="muon", **how) for found in (maps, stacks))
    own = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
    optimizers: list[Optimizer] = [AdamW(rest, lr=lr, betas=floats(betas), eps=eps, fused=True)] if rest else []
    if hidden:
        optimizers.append(Muon(hidden, adjust_lr_fn="match_rms_adamw", **own))
    if stacks:
        optimizers.append(MuonOfStacks(stacks, **own))
    return optimizers


def soap(
    model: nn.Module,
    *,
    lr: PositiveFloat = 3e-3,
    betas: Betas = (0.95, 0.95),
    eps: PositiveFloat = 1e-8,
    precondition_frequency: PositiveInt = 10,
    weight_decay: NonNegativeFloat = 0.1,
    decay_lookups: bool = False,
    layer_decay: LayerDecay = None,
) -> list[Optimizer]:
    """SOAP (Vyas et al. 2024, algorithm 3) for the weights of the layers' linear maps, AdamW for the rest.

    Experts are in the rest. SOAP's first step only finds its basis and changes no weight.

    Raises:
        UserError: pytorch-optimizer is not installed, or the model has a parametrisation.
    """
    try:
        from seqlab.training.soap_of_parts import SOAPOfParts
    except ImportError as error:
        rule = f"is of pytorch-optimizer, which cannot be imported ({error})"
        raise UserError("optimizer", "soap", rule, "Install it with pip install 'seqlab[soap]'") from error
    if any(hasattr(p, "rates") for p in model.parameters()):
        rule = "has rates for Adam, SGD and Muon, and none for SOAP"
        raise UserError("parametrisation", "mup", rule, "Set parametrisation=standard, or another optimizer")
    maps = weights_in_layers(model, nn.Linear)
    how = {"layers": layer_factors(model, layer_decay), "decay": weight_decay}
    rest = groups_of(all_but(model, maps), lr, lookups=decay_lookups, **how)
    own = {"lr": lr, "betas": floats(betas), "eps": eps}
    optimizers: list[Optimizer] = [AdamW(rest, fused=True, **own)] if rest else []
    if maps:
        optimizers.append(SOAPOfParts(groups_of(maps, lr, **how), precondition_frequency=precondition_frequency, **own))
    return optimizers
