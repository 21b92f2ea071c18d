"""The causal convolution by PyTorch's own grouped convolution, one group for each channel.

Symbols as in ``reference.py``.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from seqlab.ops.causal_conv1d import reference
from seqlab.ops.contract import accumulation_dtype


def why_unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """None: PyTorch has a convolution for every device and dtype of the contract."""
    return None


def conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, state: Tensor, seq_idx: Tensor | None
) -> Tensor:
    """y (Bt, L, D) in x's dtype; arguments as in ``causal_conv1d``, the state always given.

    Computed in float32 or float64, since PyTorch sums the gradient of a half-precision filter in half precision. A
    convolution cannot leave out taps at single positions, so packed sequences go to the reference.
    """
    if seq_idx is not None:
        return reference.conv(x, weight, bias, activation, state, seq_idx)
    window = torch.cat([state.transpose(1, 2), x.transpose(1, 2)], dim=2)  # (Bt, D, K - 1 + L)
    dtype = accumulation_dtype(x.dtype)
    window, weight = window.to(dtype), weight.to(dtype).unsqueeze(1)  # (D, 1, K)
    bias = None if bias is None else bias.to(dtype)
    kind = x.device.type
    with nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False):
        y = F.conv1d(window, weight, bias, groups=x.shape[2])  # (Bt, D, L)
    if activation == "silu":
        y = F.silu(y)
    return y.transpose(1, 2).to(x.dtype)  # (Bt, L, D)
