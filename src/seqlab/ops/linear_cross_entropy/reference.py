"""A linear map and a cross-entropy, one after the other: what every backend is held to."""

import torch
import torch.nn.functional as F
from torch import Tensor

from seqlab.ops.cross_entropy import cross_entropy
from seqlab.ops.linear_cross_entropy.operator import for_each, log_joint


def why_unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """None: plain PyTorch runs everywhere."""
    return None


def loss(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    log_prior: Tensor | None,
    targets: Tensor,
    scale: Tensor,
    ignore_index: int,
) -> Tensor:
    """The loss, a scalar; arguments as in ``operator.py``."""
    logits = F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))  # (N K, V)
    losses = cross_entropy(logits, for_each(targets, log_prior), ignore_index=ignore_index)
    if log_prior is not None:
        losses = -log_joint(losses, log_prior).logsumexp(1).where(targets != ignore_index, 0)
    return (losses * scale.detach()).sum()
