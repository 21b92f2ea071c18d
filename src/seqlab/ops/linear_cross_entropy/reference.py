"""A linear map and a cross-entropy, one after the other: what every backend is held to."""

import torch
import torch.nn.functional as F
from torch import Tensor

from seqlab.ops.cross_entropy import cross_entropy


def why_unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """None: plain PyTorch runs everywhere."""
    return None


def loss(x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: Tensor, ignore_index: int) -> Tensor:
    """The loss, a scalar, of x (N, D), weight (V, D), bias (V,), targets (N,) and scale (N,)."""
    logits = F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))  # (N, V)
    return (cross_entropy(logits, targets, ignore_index=ignore_index) * scale.detach()).sum()
