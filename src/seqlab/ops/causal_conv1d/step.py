"""One position of the causal convolution, for generating token by token. Symbols as in ``reference.py``."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from seqlab.ops.causal_conv1d.contract import check_arguments
from seqlab.ops.contract import accumulation_dtype


def causal_conv1d_update(
    state: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Literal["silu"] | None = None,
) -> tuple[Tensor, Tensor]:
    """Advance the convolution by one position.

    Args:
        state: (batch, d_conv - 1, d_inner) the inputs before x, the latest last; not changed.
        x: (batch, d_inner) the input.
        weight: (d_inner, d_conv).
        bias: (d_inner,).
        activation: "silu" to pass the sum through silu.

    Returns:
        y (batch, d_inner) and the new state, both in x's dtype.

    Raises:
        ValueError: a shape, dtype, device or activation that does not fit.
    """
    check_arguments(("batch", "d_inner"), {"x": x, "weight": weight, "bias": bias, "state": state}, activation)
    dtype = accumulation_dtype(x.dtype)
    window = torch.cat([state.to(x.dtype), x.unsqueeze(1)], dim=1)  # (Bt, K, D)
    y = (window.to(dtype) * weight.t().to(dtype)).sum(dim=1)  # (Bt, D)
    if bias is not None:
        y = y + bias.to(dtype)
    if activation == "silu":
        y = F.silu(y)
    return y.to(x.dtype), window[:, 1:]
