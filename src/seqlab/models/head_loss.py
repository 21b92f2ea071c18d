"""The cross-entropy of a model's outputs without its logits, where these would take much memory.

Symbols: B batch, L length.
"""

from typing import Any

import torch
from torch import Tensor, nn

from seqlab.models.hooks import has_hooks
from seqlab.models.linear import Linear
from seqlab.models.mixture_of_softmaxes import MixtureOfSoftmaxes
from seqlab.models.sequence_model import SequenceModel
from seqlab.ops.linear_cross_entropy import linear_cross_entropy, pays


def reads_hidden(model: nn.Module) -> bool:
    """Whether a model's outputs are nothing but its head of its ``hidden``, so that they need not all be computed.

    So they are of a ``SequenceModel``, but not if ``forward`` is another, of a subclass for one, or somebody looks at
    the outputs through a hook.
    """
    plain = getattr(model.forward, "__func__", None) is SequenceModel.forward
    return plain and not has_hooks(model) and not has_hooks(model.head)


def skips_logits(model: nn.Module, inputs: Tensor, positions: int, label_smoothing: float = 0.0) -> bool:
    """Whether ``head_loss`` is for this model and tokens (B, L): one that ``reads_hidden``, in float32, with so many
    logits at the ``positions`` of which the loss is that it pays to hold only some of them at a time.

    Of a mixture of softmaxes it always does, but the smoothed loss needs log p at all words.
    """
    if not reads_hidden(model):
        return False
    mixture = type(model.head) is MixtureOfSoftmaxes
    if label_smoothing if mixture else type(model.head) is not Linear:
        return False
    weight, kind = model.head.weight, inputs.device.type
    if weight.dtype != torch.float32:
        return False
    if mixture:
        return not inputs.is_meta
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    return pays(positions, *weight.shape, dtype, inputs.device)


def head_loss(head: Linear, hidden: Tensor, targets: Tensor, scale: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The sum over positions of cross-entropy times scale, a scalar.

    Args:
        head: a model's.
        hidden: (..., D), what it reads: of (B, L) positions, or of those that can have a label.
        targets, scale: (...) each.
        label_smoothing: share of each target that goes to all words alike.
    """
    how: dict[str, Any] = {"label_smoothing": label_smoothing, "backend": "chunked"}
    if isinstance(head, MixtureOfSoftmaxes):
        hidden, how["log_prior"] = head.latents(hidden)
    return linear_cross_entropy(hidden, head.weight, head.bias, targets, scale, **how)
