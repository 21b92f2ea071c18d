"""One position of the selective scan, for generating token by token.

Symbols as in ``reference.py``; x is the input u_t, and h (Bt, D, N) the state.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from seqlab.ops.contract import accumulation_dtype, check_dtypes, check_shapes, check_state

SHAPES = {
    "x": ("batch", "d_inner"),
    "delta": ("batch", "d_inner"),
    "A": ("d_inner", "d_state"),
    "B": ("batch", "d_state"),
    "C": ("batch", "d_state"),
    "D": ("d_inner",),
    "z": ("batch", "d_inner"),
    "delta_bias": ("d_inner",),
    "state": ("batch", "d_inner", "d_state"),
}


def selective_state_update(
    state: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """Advance the state by one position (arXiv:2312.00752, Algorithm 2, one t of ``selective_scan``).

    Args:
        state: (batch, d_inner, d_state) float32 (float64 if x is); not changed.
        x, delta, z: (batch, d_inner).
        A: (d_inner, d_state).
        B, C: (batch, d_state).
        D, delta_bias: (d_inner,).
        delta_softplus: whether the step sizes are softplus(delta + delta_bias).

    Returns:
        y (batch, d_inner) in x's dtype and the new state.

    Raises:
        ValueError: a shape, dtype or device that does not fit.
    """
    tensors = {
        "x": x,
        "delta": delta,
        "A": A,
        "B": B,
        "C": C,
        "D": D,
        "z": z,
        "delta_bias": delta_bias,
        "state": state,
    }
    check_shapes(SHAPES, tensors, {})
    check_dtypes(tensors)
    out_dtype, dtype = x.dtype, accumulation_dtype(x.dtype)
    check_state("state", state, x.dtype)
    x, delta, A, B, C = (tensor.to(dtype) for tensor in (x, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype)
    if delta_softplus:
        delta = F.softplus(delta)

    A_bar = torch.exp(delta[:, :, None] * A)  # (Bt, D, N)
    new_state = A_bar * state + (delta * x)[:, :, None] * B[:, None, :]  # (Bt, D, N)
    y = (new_state * C[:, None, :]).sum(dim=2)  # (Bt, D)
    if D is not None:
        y = y + D.to(dtype) * x
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(out_dtype), new_state
