"""One position of state-space duality, for generating token by token.

Symbols as in ``reference.py``, with h (Bt, H, P, N) the state.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from seqlab.ops.contract import accumulation_dtype, check_dtypes, check_shapes, check_state
from seqlab.ops.ssd.interface import check_groups

SHAPES = {
    "x": ("batch", "n_heads", "d_head"),
    "dt": ("batch", "n_heads"),
    "A": ("n_heads",),
    "B": ("batch", "n_groups", "d_state"),
    "C": ("batch", "n_groups", "d_state"),
    "D": ("n_heads",),
    "dt_bias": ("n_heads",),
    "state": ("batch", "n_heads", "d_head", "d_state"),
}


def ssd_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    *,
    dt_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """Advance the state by one position (arXiv:2405.21060, equation 2 with scalar A, one t of ``ssd``).

    Args:
        state: (batch, n_heads, d_head, d_state) float32 (float64 if x is); not changed.
        x: (batch, n_heads, d_head).
        dt: (batch, n_heads).
        A, D, dt_bias: (n_heads,).
        B, C: (batch, n_groups, d_state).
        dt_softplus: whether the step sizes are softplus(dt + dt_bias).

    Returns:
        y (batch, n_heads, d_head) in x's dtype and the new state.

    Raises:
        ValueError: a shape, dtype or device that does not fit.
    """
    tensors = {"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "dt_bias": dt_bias, "state": state}
    sizes = {}
    check_shapes(SHAPES, tensors, sizes)
    check_groups(sizes)
    check_dtypes(tensors)
    out_dtype, dtype = x.dtype, accumulation_dtype(x.dtype)
    check_state("state", state, x.dtype)
    x, dt, A, B, C = (tensor.to(dtype) for tensor in (x, dt, A, B, C))
    if dt_bias is not None:
        dt = dt + dt_bias.to(dtype)
    if dt_softplus:
        dt = F.softplus(dt)

    heads = x.shape[1] // B.shape[1]  # of a group
    B, C = (t.repeat_interleave(heads, dim=1) for t in (B, C))  # (Bt, H, N)
    decay = torch.exp(dt * A)[:, :, None, None]  # (Bt, H, 1, 1)
    new_state = decay * state + (dt[:, :, None] * x)[..., None] * B[:, :, None, :]  # (Bt, H, P, N)
    y = (new_state * C[:, :, None, :]).sum(dim=3)  # (Bt, H, P)
    if D is not None:
        y = y + D.to(dtype)[:, None] * x
    return y.to(out_dtype), new_state
