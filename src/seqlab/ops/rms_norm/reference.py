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
