"""The causal convolution as its sum is written: what every backend is held to.

Symbols:

    Bt, L, D, K   batch, length, channels (d_inner), taps (d_conv)
    x             (Bt, L, D) input
    weight        (D, K) filters, the last tap for the current position
    state         (Bt, K - 1, D) the inputs before x
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from seqlab.ops.contract import accumulation_dtype


def why_unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """None: plain PyTorch runs everywhere."""
    return None


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, state: Tensor) -> Tensor:
    """y (Bt, L, D) in x's dtype; arguments as in ``causal_conv1d``, the state always given."""
    length, dtype = x.shape[1], accumulation_dtype(x.dtype)
    window = torch.cat([state, x], dim=1).to(dtype)  # (Bt, K - 1 + L, D)
    weight = weight.to(dtype)
    y = sum(weight[:, k] * window[:, k : k + length] for k in range(weight.shape[1]))  # (Bt, L, D)
    if bias is not None:
        y = y + bias.to(dtype)
    if activation == "silu":
        y = F.silu(y)
    return y.to(x.dtype)
