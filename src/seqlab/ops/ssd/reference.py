"""State-space duality one position after another, as the equations are written: the reference for all other backends.

Symbols (arXiv:2405.21060, section 2.1 and equation 2, A a scalar for each head):

    Bt, L, H, P   batch, length, heads, channels of a head (d_head)
    G, N          groups of heads that share B and C, state size (d_state)
    x_t           (Bt, H, P) input at position t
    dt_t          (Bt, H) step size at position t
    A             (H,) decay
    B_t, C_t      (Bt, G, N) input and output projections at position t
    h             (Bt, H, P, N) state
    D             (H,) skip
    seq_idx       (Bt, L) integers; a sequence begins where they change
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from seqlab.ops.contract import accumulation_dtype
from seqlab.ops.ssd.interface import Inputs


def why_unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """None: plain PyTorch runs everywhere."""
    return None


def forward(inputs: Inputs, initial_state: Tensor | None) -> tuple[Tensor, Tensor]:
    """y (Bt, L, H, P) in x's dtype and the final state (Bt, H, P, N); arguments as in ``ssd``."""
    out_dtype, dtype = inputs.x.dtype, accumulation_dtype(inputs.x.dtype)
    x, dt, A, B, C = (tensor.to(dtype) for tensor in inputs[:5])
    if inputs.dt_bias is not None:
        dt = dt + inputs.dt_bias.to(dtype)
    if inputs.dt_softplus:
        dt = F.softplus(dt)
    heads = x.shape[2] // B.shape[2]  # of a group
    B, C = (t.repeat_interleave(heads, dim=2) for t in (B, C))  # (Bt, L, H, N)

    shape = (x.shape[0], *x.shape[2:], B.shape[3])
    h = x.new_zeros(shape) if initial_state is None else initial_state  # (Bt, H, P, N)
    outputs = []
    for t in range(x.shape[1]):
        if inputs.seq_idx is not None and t > 0:
            goes_on = inputs.seq_idx[:, t] == inputs.seq_idx[:, t - 1]  # (Bt,)
            h = h.where(goes_on[:, None, None, None], 0)
        decay = torch.exp(dt[:, t] * A)  # (Bt, H)
        drive = dt[:, t, :, None] * x[:, t]  # (Bt, H, P)
        h = decay[:, :, None, None] * h + drive[..., None] * B[:, t, :, None, :]  # (Bt, H, P, N)
        outputs.append((h * C[:, t, :, None, :]).sum(dim=3))  # (Bt, H, P)
    y = torch.stack(outputs, dim=1)  # (Bt, L, H, P)
    if inputs.D is not None:
        y = y + inputs.D.to(dtype)[:, None] * x
    return y.to(out_dtype), h
