"""Parametrisations by which one learning rate serves models of several widths (muP) and depths (CompleteP).

A model is compared with the base model, which differs in its widths alone; at its size the learning rate was tuned. For
each parameter, with the ratios of its fan-in and fan-out to those of the same parameter in the base model:

| parameter                                             | initial scale         | rate with Adam |
|-------------------------------------------------------|-----------------------|----------------|
| embedding, learned positions                          | standard              | 1              |
| vectors and what else has no fan-in that grows        | standard              | 1              |
| matrices of mixers and feed-forwards                  | standard              | 1 / fan-in     |
| head of its own                                       | standard / root of it | 1 / fan-in     |
| head that shares the embedding's matrix               | that of the embedding | 1              |

This is table 3 of Yang et al. 2022 ("Tensor Programs V", arXiv:2203.03466). torch's initial variance of a linear map,
1 / (3 fan-in), goes with the width as it should. A shared head needs its input divided by the ratio of widths: the
weights of the norm before it are, and their rates, which with Adam is the same. Softmax attention divides its logits by
the width of a head and not by its root (definition 4.1 there); at the base both are equal. Weight decay times rate is
equal for all parameters that decay (table 1 of Dey et al. 2025). Adam's epsilon is not scaled, nor are initial biases.

Vectors are biases and norms, and of Mamba's own parameters A_log, D, dt_bias and the depthwise convolution: their
fan-in is 1, the state size or the convolution's width, and none of these grows with the model. The rows of ``x_proj``
and ``in_proj`` that make B, C and dt lead from a growing width to a fixed one, and so does a router: their rate is
1 / fan-in as that of every matrix, and their initial scale is the standard one, so that the scan selects as much at any
width. That B, C and dt are multiplied with each other and with the state is beyond the theory of table 3, and Vankadara
et al. 2024 ("On Feature Learning in Structured State Space Models", NeurIPS 2024) say that muP fails for it. Their
limit is another, as here the state does not grow; ``scripts/coordinate_check.py`` shows what moves.

CompleteP divides each half layer's output by the ratio of depths: its output projection is, and its rates.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from seqlab.errors import UserError
from seqlab.models.layer import Branch
from seqlab.models.mixers.attention import Attention
from seqlab.models.mixers.parallel import side_by_side
from seqlab.models.mixture_of_experts import ExpertMaps
from seqlab.models.mixture_of_softmaxes import MixtureOfSoftmaxes
from seqlab.models.sequence_model import SequenceModel


class Rates(NamedTuple):
    """A parameter's factors on the learning rate, by the kind of update; a parameter without ``rates`` has 1."""

    adam: float = 1.0
    muon: float = 1.0
    sgd: float = 1.0


def fans(module: nn.Module, parameter: Tensor) -> tuple[int, int]:
    """Fan-out and fan-in of a module's own parameter of any shape; the fan-in of what is no matrix counts as 1."""
    if isinstance(module, nn.Embedding):  # its fan-in is the vocabulary, which does not grow
        return parameter.shape[1], 1
    if isinstance(module, ExpertMaps):
        return parameter.shape[2], parameter.shape[1]
    return (parameter.shape[0], parameter.shape[1]) if parameter.ndim == 2 else (parameter.numel(), 1)


def rates(fan: tuple[int, int], base: tuple[int, int], factor: float = 1.0) -> Rates:
    """The rates of a parameter from its fan-out and fan-in and those in the base model.

    Adam's and SGD's are those of table 3. Muon's update here has singular values of 0.2 sqrt(max(fan-out, fan-in)),
    where the change's norm should go as sqrt(fan-out / fan-in) (Yang et al. 2023, arXiv:2310.17813, condition 1).

    Args:
        fan: fan-out and fan-in.
        base: in the base model.
        factor: what the parameter itself is multiplied by, in place of a multiplier in the forward pass.
    """
    out, into = (one / other for one, other in zip(fan, base, strict=True))
    muon = (out / into / (max(fan) / max(base))) ** 0.5
    return Rates(factor / into, factor * muon, factor**2 * out / into)


def parametrise(model: nn.Module, base: nn.Module, depths: float | None = None) -> None:
    """Scale a new model's parameters as its module's docstring says, and give each its ``rates``.

    Args:
        model: as it was initialised.
        base: the base model, of as many layers; only its shapes are read.
        depths: the ratio of the model's number of layers to the base's, for CompleteP; ``None`` for muP.

    Raises:
        UserError: the model cannot be parametrised so.
    """
    if not isinstance(model, SequenceModel):
        rule = "is for seqlab's own SequenceModel, whose parts it knows"
        raise UserError("parametrisation", type(model).__name__, rule, "Set parametrisation=standard")
    if isinstance(model.head, MixtureOfSoftmaxes):
        rule = "makes a head for which muP has no rule here"
        raise UserError("model.softmaxes", model.head.softmaxes, rule, "Set parametrisation=standard, or leave it out")
    modules = dict(base.named_modules())
    factors = dict(factors_of_head(model, base)) | dict(factors_of_depth(model, depths))
    for place, module in model.named_modules():
        other = modules[place]
        if isinstance(module, Attention):
            module.sharpness = (other.d_head / module.d_head) ** 0.5
        for name, p in module.named_parameters(recurse=False):
            if module is model.head and p is model.embed.weight:
                continue  # it is the embedding's
            initial, factor = factors.get(id(p), (1.0, 1.0))
            p.rates = rates(fans(module, p), fans(other, getattr(other, name)), factor)
            with torch.no_grad():
                p.mul_(initial)


def factors_of_head(model: SequenceModel, base: SequenceModel) -> Iterator[tuple[int, tuple[float, float]]]:
    """By a parameter's id, the factors on its initial value and on its rate: what leads to the head.

    Raises:
        UserError: the head shares the embedding's matrix, and no norm with weights is before it.
    """
    ratio = model.head.in_features / base.head.in_features
    if model.head.weight is not model.embed.weight:
        yield id(model.head.weight), (ratio**-0.5, 1.0)
        return
    weights = list(model.norm.parameters())
    if not weights and ratio != 1:
        rule = "muP scales a shared head by the norm before it, and there is none"
        raise UserError("model.tie_embeddings", True, rule, "Set model.tie_embeddings=false")
    yield from ((id(p), (1 / ratio, 1 / ratio)) for p in weights)


def factors_of_depth(model: SequenceModel, depths: float | None) -> Iterator[tuple[int, tuple[float, float]]]:
    """By a parameter's id, the factors on its initial value and on its rate: half layers' output projections.

    The model has divided the weights by the square root of its number of half layers, and not the biases.

    Raises:
        UserError: a half layer has no output projection, or there are no residual connections.
    """
    if depths is None or depths == 1:
        return
    for branch in (module for module in model.modules() if isinstance(module, Branch)):
        for part in side_by_side(branch.inner):
            projection = getattr(part, "out_proj", None)
            if projection is None or not branch.residual:
                rule = f"{type(part).__name__} has no residual connection with an output projection to scale"
                raise UserError(
                    "parametrisation", "completep", rule, "Set parametrisation=mup, or n_layers to the base's"
                )
            for name, p in projection.named_parameters(recurse=False):
                yield id(p), (1 / depths if name == "bias" else depths**-0.5, 1 / depths)
