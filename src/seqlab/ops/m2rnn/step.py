"""One position of M²RNN, for generating token by token.

Symbols as in ``reference.py``.
"""

import torch
from torch import Tensor

from seqlab.ops.contract import accumulation_dtype, check_dtypes, check_given, check_shapes, check_state

SHAPES = {
    "q": ("batch", "d_key"),
    "k": ("batch", "d_key"),
    "v": ("batch", "n_heads", "d_value"),
    "f": ("batch", "n_heads"),
    "W": ("n_heads", "d_value", "d_value"),
    "state": ("batch", "n_heads", "d_key", "d_value"),
}


def m2rnn_update(state: Tensor, q: Tensor, k: Tensor, v: Tensor, f: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
    """Advance the state by one position (arXiv:2603.14360, one t of ``m2rnn``).

    Args:
        state: (batch, n_heads, d_key, d_value) float32 (float64 if q is); not changed.
        q, k: (batch, d_key).
        v: (batch, n_heads, d_value).
        f: (batch, n_heads).
        W: (n_heads, d_value, d_value).

    Returns:
        y (batch, n_heads, d_value) in q's dtype and the new state.

    Raises:
        ValueError: a shape, dtype or device that does not fit.
    """
    tensors = {"q": q, "k": k, "v": v, "f": f, "W": W, "state": state}
    check_given(tensors, *tensors)
    check_shapes(SHAPES, tensors, {})
    check_dtypes(tensors)
    check_state("state", state, q.dtype)
    if q.is_meta:  # which knows no autocast
        return v.to(q.dtype), state
    out_dtype, dtype = q.dtype, accumulation_dtype(q.dtype)
    q, k, v, f, W = (tensor.to(dtype) for tensor in (q, k, v, f, W))
    with torch.autocast(q.device.type, enabled=False):
        Z = torch.tanh(state @ W + k[:, None, :, None] * v[:, :, None])  # (B, N, K, V)
    new_state = torch.lerp(Z, state, f[..., None, None])  # f H + (1 - f) Z
    return (new_state * q[:, None, :, None]).sum(dim=2).to(out_dtype), new_state
