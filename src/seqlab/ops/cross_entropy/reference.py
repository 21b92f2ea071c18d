"""PyTorch's own cross-entropy of the logits in the dtype of the sums: what every backend is held to."""

import torch
import torch.nn.functional as F
from torch import Tensor

from seqlab.ops.contract import accumulation_dtype


def why_unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """None: plain PyTorch runs everywhere."""
    return None


def losses(logits: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
    """The losses (N,) of logits (N, V) and targets (N,), in float32 or float64."""
    logits = logits.to(accumulation_dtype(logits.dtype))
    return F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction="none")
