"""PyTorch's own RMSNorm in the dtype of the sums: what every backend is held to."""

import torch
import torch.nn.functional as F
from torch import Tensor

from seqlab.ops.contract import accumulation_dtype


def why_unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """None: plain PyTorch runs everywhere."""
    return None


def norm(x: Tensor, weight: Tensor, eps: float, out_dtype: torch.dtype) -> Tensor:
    """y (..., D) in ``out_dtype`` of x (..., D) and weight (D,)."""
    dtype = accumulation_dtype(x.dtype)
    return F.rms_norm(x.to(dtype), weight.shape, weight.to(dtype), eps).to(out_dtype)


def gated_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float, groups: int) -> Tensor:
    """y (..., W) in x's dtype of x and gate (..., W) and weight (W,)."""
    dtype = accumulation_dtype(x.dtype)
    gated = (x.to(dtype) * F.silu(gate.to(dtype))).unflatten(-1, (groups, -1))  # (..., G, D)
    normal = F.rms_norm(gated, gated.shape[-1:], eps=eps).flatten(-2)  # (..., W)
    return (normal * weight.to(dtype)).to(x.dtype)
