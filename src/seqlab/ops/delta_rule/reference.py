"""The delta rule one position after another, as the equations are written: the reference for all other backends.

Symbols (arXiv:2412.06464, equation 10, its S transposed; arXiv:2510.26692, equation 1; arXiv:2605.22791):

    Bt, L, H, K, V   batch, length, heads, width of a head's keys and values
    q_t, k_t         (Bt, H, K) query and key at position t
    v_t              (Bt, H, V) value
    beta_t           (Bt, H) the share of its error that the memory corrects, or (Bt, H, K) of what it erases
    g_t              (Bt, H) or (Bt, H, K) logarithm of the decay
    w_t              (Bt, H, V) the share of v_t that is written, beta_t unless given
    S                (Bt, H, K, V) state: what each key is to recall
    u_t              (Bt, H, V) the correction, w_t * v_t - (beta_t * k_t)^T S
    seq_idx          (Bt, L) integers; a sequence begins where they change
"""

import torch
from torch import Tensor

from seqlab.ops.contract import accumulation_dtype
from seqlab.ops.delta_rule.interface import Inputs
from seqlab.ops.delta_rule.step import advanced


def why_unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """None: plain PyTorch runs everywhere."""
    return None


def forward(inputs: Inputs, initial_state: Tensor | None) -> tuple[Tensor, Tensor]:
    """y (Bt, L, H, V) in q's dtype and the final state (Bt, H, K, V); arguments as in ``delta_rule``."""
    out_dtype, dtype = inputs.q.dtype, accumulation_dtype(inputs.q.dtype)
    along_time = [None if tensor is None else tensor.to(dtype) for tensor in inputs[:-1]]
    q, _, v, *_ = along_time
    S = q.new_zeros(*q.shape[:1], *q.shape[2:], v.shape[3]) if initial_state is None else initial_state
    outputs = []
    for t in range(q.shape[1]):
        if inputs.seq_idx is not None and t > 0:
            goes_on = inputs.seq_idx[:, t] == inputs.seq_idx[:, t - 1]  # (Bt,)
            S = S.where(goes_on[:, None, None, None], 0)
        y, S = advanced(S, *(None if tensor is None else tensor[:, t] for tensor in along_time))
        outputs.append(y)
    return torch.stack(outputs, dim=1).to(out_dtype), S  # (Bt, L, H, V)
