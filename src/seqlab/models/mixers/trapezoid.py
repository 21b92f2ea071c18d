"""The scan of Mamba-3: a state-space model discretised by the exponential trapezoid (arXiv:2603.15569).

    h_t = alpha_t h_{t-1} + beta_t x_{t-1} k_{t-1}^T + gamma_t x_t k_t^T
    y_t = h_t q_t + D x_t

    alpha = exp(delta A)    beta = (1 - lam) delta alpha    gamma = lam delta

Symbols, the paper's: B batch, L length, H heads, P channels of a head, N state size; x (B, L, H, P) input, delta
(B, L, H) step size, A (B, L, H) decay, below 0, lam (B, L, H) the weight of the trapezoid's right end, in [0, 1], k and
q (B, L, H, N) keys and queries, which are the input and output maps after their rotation, D (H,) skip, h (B, H, P, N)
state.

``trapezoidal_scan`` is one state-space duality (``seqlab.ops.ssd``). With s_t = h_t - gamma_t x_t k_t^T, what has come
to position t from those before it, the recurrence becomes

    s_t = alpha_t s_{t-1} + (alpha_t gamma_{t-1} + beta_t) x_{t-1} k_{t-1}^T
    y_t = s_t q_t + (gamma_t k_t^T q_t + D) x_t

whose input at t is that of position t - 1. The first position begins with s_0 = h_0 and gamma_0 = 0: the state after
earlier ones has their gamma x k^T in it. The paper keeps x_t and k_t in place, with a factor gamma_t +
(1 - lam_{t+1}) delta_{t+1}, and takes the second term from the output again; the rounding of that difference would
carry the next position's input into y_t.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqlab.ops import ssd
from seqlab.ops.contract import accumulation_dtype

LEAST_STEP = 1e-20
"""Least step that ``ssd`` gets, whose decay is 1 in float64 too: the input is divided by it."""


class ScanState(NamedTuple):
    """What the next position needs, all in float32, or in float64 if x is."""

    h: Tensor  # (B, H, P, N)
    k: Tensor  # (B, H, N), the last key
    x: Tensor  # (B, H, P), the last input


class Inputs(NamedTuple):
    """The tensors of a scan, or without L those of one position; A, delta and lam in float32, or float64 if x is."""

    x: Tensor  # (B, L, H, P)
    delta: Tensor  # (B, L, H)
    A: Tensor  # (B, L, H)
    lam: Tensor  # (B, L, H)
    k: Tensor  # (B, L, H, N)
    q: Tensor  # (B, L, H, N)
    D: Tensor  # (H,)


def trapezoidal_scan(
    inputs: Inputs, state: ScanState | None = None, *, seq_idx: Tensor | None = None, backend: str = "auto"
) -> tuple[Tensor, ScanState]:
    """All positions at once, by ``ssd``.

    Args:
        inputs: x in float64, float32, bfloat16 or float16, at least one position long.
        state: before the first position; zeros if None.
        seq_idx: (B, L) integers for packed sequences, as ``ssd`` takes them; the states belong to the first and last.
        backend: one of ``seqlab.ops.ssd.BACKENDS``, or ``auto``.

    Returns:
        y (B, L, H, P) in x's dtype, and the state after the last position.

    Raises:
        ValueError: a shape, dtype or device that does not fit, or a backend that does not exist or cannot run.
    """
    x, delta, A, lam, k, q, D = inputs
    gamma = lam * delta  # (B, L, H)
    before_x, before_k, before_gamma = _before(inputs, gamma, state, seq_idx)
    step = -(delta * A)
    from_before = torch.exp(-step) * (before_gamma + (1 - lam) * delta)  # (B, L, H), alpha gamma_{t-1} + beta
    # ssd has one A for all positions and multiplies its input by the step. So A is -1, the step -delta A.
    step = step.clamp(min=LEAST_STEP)
    driven = (from_before / step).unsqueeze(3) * before_x  # (B, L, H, P)
    rounded = x.dtype if x.dtype == torch.bfloat16 else accumulation_dtype(x.dtype)  # float16 may be too narrow
    minus_one = step.new_full((step.shape[2],), -1.0)
    s, last = ssd(
        driven.to(rounded),
        step,
        minus_one,
        before_k.to(x.dtype),
        q.to(x.dtype),
        initial_state=None if state is None else state.h,
        return_final_state=True,
        seq_idx=seq_idx,
        backend=backend,
    )
    at_once = gamma * (k * q).sum(dim=3) + D  # (B, L, H)
    y = torch.addcmul(s, at_once.unsqueeze(3), x)
    k, x = (t[:, -1].to(last.dtype, copy=True) for t in (k, x))  # (B, H, N), (B, H, P), which keep no other position
    return y.to(inputs.x.dtype), ScanState(last + _outer(gamma[:, -1], x, k), k, x)


def _before(
    inputs: Inputs, gamma: Tensor, state: ScanState | None, seq_idx: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """x, k and gamma (B, L, H, P), (B, L, H, N), (B, L, H) of the position before, 0 where a sequence begins."""
    x, k, gamma = (F.pad(t[:, :-1], (0, 0) * (t.ndim - 2) + (1, 0)) for t in (inputs.x, inputs.k, gamma))
    if state is not None:
        first_x, first_k = state.x.to(x.dtype).unsqueeze(1), state.k.to(k.dtype).unsqueeze(1)  # (B, 1, H, ...)
        x, k = torch.cat((first_x, x[:, 1:]), dim=1), torch.cat((first_k, k[:, 1:]), dim=1)
    if seq_idx is not None:
        begins = F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0))[:, :, None]  # (B, L, 1)
        x, k = x.masked_fill(begins[..., None], 0), k.masked_fill(begins[..., None], 0)
        gamma = gamma.masked_fill(begins, 0)
    return x, k, gamma


def trapezoidal_update(inputs: Inputs, state: ScanState) -> tuple[Tensor, ScanState]:
    """One position: tensors as in ``Inputs`` without L, to y (B, H, P) in x's dtype and the next state."""
    dtype = state.h.dtype
    x, delta, A, lam, k, q, D = (t.to(dtype) for t in inputs)
    alpha = torch.exp(delta * A)  # (B, H)
    beta, gamma = (1 - lam) * delta * alpha, lam * delta
    h = alpha[..., None, None] * state.h + _outer(beta, state.x, state.k) + _outer(gamma, x, k)  # (B, H, P, N)
    y = (h * q.unsqueeze(2)).sum(dim=3) + D[:, None] * x  # (B, H, P)
    return y.to(inputs.x.dtype), ScanState(h, k, x)


def _outer(scale: Tensor, x: Tensor, k: Tensor) -> Tensor:
    """scale x k^T: (B, H), (B, H, P), (B, H, N) to (B, H, P, N)."""
    return (scale.unsqueeze(2) * x).unsqueeze(3) * k.unsqueeze(2)


def reference(
    inputs: Inputs, state: ScanState | None = None, *, seq_idx: Tensor | None = None
) -> tuple[Tensor, ScanState]:
    """``trapezoidal_scan`` in float64, one position after another, as the equations are written.

    Arguments as there; y is (B, L, H, P), also in float64.
    """
    x, delta, A, lam, k, q, D = (t.double() for t in inputs)
    batch, length, heads, channels = x.shape
    zeros = ScanState(
        *(x.new_zeros(batch, heads, *shape) for shape in ((channels, k.shape[3]), k.shape[3:], (channels,)))
    )
    h, last_k, last_x = zeros if state is None else (t.double() for t in state)
    outputs = []
    for t in range(length):
        if seq_idx is not None and t > 0:
            goes_on = (seq_idx[:, t] == seq_idx[:, t - 1])[:, None, None]  # (B, 1, 1)
            h, last_k, last_x = h.where(goes_on[..., None], 0), last_k.where(goes_on, 0), last_x.where(goes_on, 0)
        alpha = torch.exp(delta[:, t] * A[:, t])  # (B, H)
        beta = (1 - lam[:, t]) * delta[:, t] * alpha
        gamma = lam[:, t] * delta[:, t]
        h = alpha[:, :, None, None] * h  # (B, H, P, N)
        h = h + beta[:, :, None, None] * last_x[:, :, :, None] * last_k[:, :, None, :]
        h = h + gamma[:, :, None, None] * x[:, t, :, :, None] * k[:, t, :, None, :]
        outputs.append((h * q[:, t, :, None, :]).sum(dim=3) + D[:, None] * x[:, t])  # (B, H, P)
        last_k, last_x = k[:, t], x[:, t]
    return torch.stack(outputs, dim=1), ScanState(h, last_k, last_x)
