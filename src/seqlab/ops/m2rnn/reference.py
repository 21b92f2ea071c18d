"""M²RNN one position after another, as the equations are written: the reference for all other backends.

Symbols (Mishra et al. 2026, arXiv:2603.14360):

    B, L, N, K, V   batch, length, heads, width of queries and keys, width of a head's values
    q_t, k_t        (B, K) query and key at position t, which all heads share
    v_t             (B, N, V) value
    f_t             (B, N) how much of the state is kept
    W               (N, V, V) how a state enters the next one
    Z_t             (B, N, K, V) what the state moves to
    H               (B, N, K, V) state
    seq_idx         (B, L) integers; a sequence begins where they change
"""

import torch
from torch import Tensor

from seqlab.ops.contract import accumulation_dtype
from seqlab.ops.m2rnn.interface import Inputs


def why_unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """None: plain PyTorch runs everywhere."""
    return None


def forward(inputs: Inputs, initial_state: Tensor | None, gradient_clip: float | None = None) -> tuple[Tensor, Tensor]:
    """y (B, L, N, V) in q's dtype and the final state (B, N, K, V); arguments as in ``m2rnn``."""
    dtype = accumulation_dtype(inputs.q.dtype)
    q, k, v, f, W = (tensor.to(dtype) for tensor in inputs[:-1])
    H = v.new_zeros(len(v), v.shape[2], k.shape[2], v.shape[3]) if initial_state is None else initial_state
    outputs = []
    for t in range(k.shape[1]):
        if inputs.seq_idx is not None and t > 0:
            goes_on = inputs.seq_idx[:, t] == inputs.seq_idx[:, t - 1]  # (B,)
            H = H.where(goes_on[:, None, None, None], 0)
        carried = (H[..., None] * W[:, None]).sum(dim=3)  # H W, whose gradient autocast would round in a product
        Z = torch.tanh(carried + k[:, t, None, :, None] * v[:, t, :, None])  # (B, N, K, V)
        keep = f[:, t, :, None, None]
        H = keep * H + (1 - keep) * Z
        if gradient_clip is not None and H.requires_grad:
            H.register_hook(lambda gradient: gradient.clamp(-gradient_clip, gradient_clip))
        outputs.append((H * q[:, t, None, :, None]).sum(dim=2))  # (B, N, V)
    return torch.stack(outputs, dim=1).to(inputs.q.dtype), H
