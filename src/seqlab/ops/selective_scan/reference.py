"""The selective scan one position after another, as the equations are written: the reference for all other backends.

Symbols (arXiv:2312.00752, Algorithm 2):

    Bt, L, D, N   batch, length, channels (d_inner), state size (d_state)
    u_t           (Bt, D) input at position t
    delta_t       (Bt, D) step size at position t
    A             (D, N) diagonal state matrices
    B_t, C_t      (Bt, N) input and output projections at position t
    h             (Bt, D, N) state
    D             (D,) skip
    z             (Bt, L, D) gate
    seq_idx       (Bt, L) integers; a sequence begins where they change
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from seqlab.ops.contract import accumulation_dtype


def why_unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """None: plain PyTorch runs everywhere."""
    return None


def scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    seq_idx: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y (Bt, L, D) in u's dtype and the final state (Bt, D, N); arguments as in ``selective_scan``."""
    out_dtype, dtype = u.dtype, accumulation_dtype(u.dtype)
    u, delta, A, B, C = (tensor.to(dtype) for tensor in (u, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype)
    if delta_softplus:
        delta = F.softplus(delta)

    h = u.new_zeros(u.shape[0], *A.shape) if initial_state is None else initial_state  # (Bt, D, N)
    outputs = []
    for t, (u_t, delta_t, B_t, C_t) in enumerate(
        zip(u.unbind(1), delta.unbind(1), B.unbind(1), C.unbind(1), strict=True)
    ):
        if seq_idx is not None and t > 0:
            goes_on = seq_idx[:, t] == seq_idx[:, t - 1]  # (Bt,)
            h = h.where(goes_on[:, None, None], 0)
        A_bar = torch.exp(delta_t[:, :, None] * A)  # (Bt, D, N)
        B_bar_u = (delta_t * u_t)[:, :, None] * B_t[:, None, :]  # (Bt, D, N)
        h = A_bar * h + B_bar_u
        outputs.append((h * C_t[:, None, :]).sum(dim=2))  # (Bt, D)
    y = torch.stack(outputs, dim=1)  # (Bt, L, D)

    if D is not None:
        y = y + D.to(dtype) * u
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(out_dtype), h
