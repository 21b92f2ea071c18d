"""One position of the delta rule: what the reference repeats, and generating token by token does.

Symbols as in ``reference.py``.
"""

import torch
from torch import Tensor

from seqlab.ops.contract import accumulation_dtype, check_dtypes, check_state
from seqlab.ops.delta_rule.interface import check_rule, erased_and_written

SHAPES = {
    "q": ("batch", "n_heads", "d_key"),
    "k": ("batch", "n_heads", "d_key"),
    "v": ("batch", "n_heads", "d_value"),
    "beta": ("batch", "n_heads"),
    "g": ("batch", "n_heads"),
    "w": ("batch", "n_heads", "d_value"),
    "state": ("batch", "n_heads", "d_key", "d_value"),
}


def advanced(
    S: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor | None, g: Tensor | None, w: Tensor | None
) -> tuple[Tensor, Tensor]:
    """y_t (Bt, H, V) and the next S (Bt, H, K, V), all in one dtype: the decay first, then the correction."""
    if g is not None:
        decay = torch.exp(g)
        S = S * (decay[..., None, None] if g.dim() == 2 else decay[..., None])  # (Bt, H, 1 or K, 1)
    erase, u = erased_and_written(k, v, beta, w)
    if erase is not None:
        u = u - (S * erase[..., None]).sum(dim=2)  # (Bt, H, V)
    S = S + k[..., None] * u[:, :, None]  # (Bt, H, K, V)
    return (S * q[..., None]).sum(dim=2), S


def delta_rule_update(
    state: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None = None,
    g: Tensor | None = None,
    w: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Advance the state by one position (arXiv:2412.06464, equation 10, one t of ``delta_rule``).

    Args:
        state: (batch, n_heads, d_key, d_value) float32 (float64 if q is); not changed.
        q, k: (batch, n_heads, d_key).
        v: (batch, n_heads, d_value).
        beta, g: (batch, n_heads) or (batch, n_heads, d_key).
        w: (batch, n_heads, d_value).

    Returns:
        y (batch, n_heads, d_value) in q's dtype and the new state.

    Raises:
        ValueError: a shape, dtype or device that does not fit.
    """
    tensors = {"q": q, "k": k, "v": v, "beta": beta, "g": g, "w": w, "state": state}
    check_rule(SHAPES, tensors)
    check_dtypes(tensors)
    check_state("state", state, q.dtype)
    dtype = accumulation_dtype(q.dtype)
    y, new_state = advanced(state, *(None if tensor is None else tensor.to(dtype) for tensor in (q, k, v, beta, g, w)))
    return y.to(q.dtype), new_state
