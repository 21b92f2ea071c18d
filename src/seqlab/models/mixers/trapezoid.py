"""The scan of Mamba-3: a state-space model discretised by the exponential trapezoid (arXiv:2603.15569).

With R inputs and R outputs of one state, the rank of its MIMO form (R = 1 is SISO):

    h_t = alpha_t h_{t-1} + sum over r of beta_t x_{r,t-1} k_{r,t-1}^T + gamma_t x_{r,t} k_{r,t}^T
    y_{r,t} = h_t q_{r,t} + D x_{r,t}

    alpha = exp(delta A)    beta = (1 - lam) delta alpha    gamma = lam delta

Symbols, the paper's: B batch, L length, R rank, H heads, P channels of a head, N state size; x (B, L, R, H, P) inputs,
delta (B, L, H) step size, A (B, L, H) decay, below 0, lam (B, L, H) the weight of the trapezoid's right end, in [0, 1],
k and q (B, L, R, H, N) keys and queries, which are the input and output maps after their rotation, D (H,) skip, h
(B, H, P, N) state.

``trapezoidal_scan`` is one state-space duality (``seqlab.ops.ssd``). With s_t = h_t - gamma_t x_t k_t^T, what has come
to position t from those before it, the recurrence becomes, for one rank,

    s_t = alpha_t s_{t-1} + c_t x_{t-1} k_{t-1}^T        c_t = alpha_t gamma_{t-1} + beta_t
    y_t = s_t q_t + (gamma_t k_t^T q_t + D) x_t

whose input at t is that of position t - 1. The first position begins with s_0 = h_0 and gamma_0 = 0: the state after
earlier ones has their gamma x k^T in it. The paper keeps x_t and k_t in place, with a factor gamma_t +
(1 - lam_{t+1}) delta_{t+1}, and takes the second term from the output again; the rounding of that difference would
carry the next position's input into y_t.

R ranks are R L positions of that scan, those of one position after another, of which the first alone decays. There the
output of rank r has met the inputs of the ranks up to r, so the others' are added, c_t (k_{i,t-1}^T q_{r,t}) x_{i,t-1}
for i > r, beside gamma_t (k_{i,t}^T q_{r,t}) x_{i,t} for every i. Ranks as further heads would be R R of them, one for
each pair, each with a state of its own.
"""

from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqlab.ops import ssd
from seqlab.ops.contract import accumulation_dtype

LEAST_STEP = 1e-20
"""Least step that ``ssd`` gets, whose decay is 1 in float64 too: the input is divided by it."""


Pair = tuple[Tensor, Tensor]


class ScanState(NamedTuple):
    """What the next position needs, all in float32, or in float64 if x is."""

    h: Tensor  # (B, H, P, N)
    k: Tensor  # (B, R, H, N), the last keys
    x: Tensor  # (B, R, H, P), the last inputs


class Inputs(NamedTuple):
    """The tensors of a scan, or without L those of one position; A, delta and lam in float32, or float64 if x is."""

    x: Tensor  # (B, L, R, H, P)
    delta: Tensor  # (B, L, H)
    A: Tensor  # (B, L, H)
    lam: Tensor  # (B, L, H)
    k: Tensor  # (B, L, R, H, N)
    q: Tensor  # (B, L, R, H, N)
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
        y (B, L, R, H, P) in x's dtype, and the state after the last position.

    Raises:
        ValueError: a shape, dtype or device that does not fit, or a backend that does not exist or cannot run.
    """
    x, delta, A, lam, k, q, D = inputs
    rank, gamma = x.shape[2], lam * delta  # gamma (B, L, H)
    before_x, before_k, before_gamma = _before(inputs, gamma, state, seq_idx)
    step = -(delta * A)
    from_before = torch.exp(-step) * (before_gamma + (1 - lam) * delta)  # (B, L, H), c
    # ssd has one A for all positions and multiplies its input by the step. So A is -1, the step -delta A.
    step = F.pad(step.clamp(min=LEAST_STEP).unsqueeze(2), (0, 0, 0, rank - 1), value=LEAST_STEP)  # (B, L, R, H)
    driven = (from_before.unsqueeze(2) / step).unsqueeze(4) * before_x
    rounded = x.dtype if x.dtype == torch.bfloat16 else accumulation_dtype(x.dtype)  # float16 may be too narrow
    s, last = ssd(
        driven.flatten(1, 2).to(rounded),
        step.flatten(1, 2),
        step.new_full((step.shape[3],), -1.0),
        before_k.flatten(1, 2).to(x.dtype),
        q.flatten(1, 2).to(x.dtype),
        initial_state=None if state is None else state.h,
        return_final_state=True,
        seq_idx=None if seq_idx is None else seq_idx.repeat_interleave(rank, dim=1),
        backend=backend,
    )
    s = s.unflatten(1, (-1, rank))  # (B, L, R, H, P)
    if rank == 1:
        at_once = gamma.unsqueeze(2) * (k * q).sum(dim=4) + D  # (B, L, 1, H)
        y = torch.addcmul(s, at_once.unsqueeze(4), x)
    else:
        y = s + _from_other_ranks((before_k, k), q, (before_x, x), (from_before, gamma)) + D.unsqueeze(1) * x
    k, x = (t[:, -1].to(last.dtype, copy=True) for t in (k, x))  # (B, R, H, ...), which keep no other position
    return y.to(inputs.x.dtype), ScanState(last + _outer(gamma[:, -1], x, k), k, x)


def _from_other_ranks(k: Pair, q: Tensor, x: Pair, scale: Pair) -> Tensor:
    """The outputs (B, L, R, H, P) for inputs that the scan of R L positions has not met.

    k, x and their factors (B, L, H) are those of the position before, of which the later ranks are left, and the own.
    """
    exact = nullcontext() if q.is_meta else torch.autocast(q.device.type, enabled=False)
    with exact:
        met = [torch.einsum("blrhn,blihn->blhri", q, keys) for keys in k]  # (B, L, H, R, R)
        before, own = (each * factor[..., None, None] for each, factor in zip(met, scale, strict=True))
        weights = torch.cat((before.triu(diagonal=1), own), dim=4)  # (B, L, H, R, 2 R)
        return torch.einsum("blhri,blihp->blrhp", weights, torch.cat(x, dim=2).to(weights.dtype))


def _before(
    inputs: Inputs, gamma: Tensor, state: ScanState | None, seq_idx: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """x, k and gamma of the position before, in their shapes, 0 where a sequence begins."""
    x, k, gamma = (F.pad(t[:, :-1], (0, 0) * (t.ndim - 2) + (1, 0)) for t in (inputs.x, inputs.k, gamma))
    if state is not None:
        first_x, first_k = state.x.to(x.dtype).unsqueeze(1), state.k.to(k.dtype).unsqueeze(1)  # (B, 1, R, H, ...)
        x, k = torch.cat((first_x, x[:, 1:]), dim=1), torch.cat((first_k, k[:, 1:]), dim=1)
    if seq_idx is not None:
        begins = F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0))[:, :, None]  # (B, L, 1)
        x, k = (t.masked_fill(begins[..., None, None], 0) for t in (x, k))
        gamma = gamma.masked_fill(begins, 0)
    return x, k, gamma


def trapezoidal_update(inputs: Inputs, state: ScanState) -> tuple[Tensor, ScanState]:
    """One position: tensors as in ``Inputs`` without L, to y (B, R, H, P) in x's dtype and the next state."""
    dtype = state.h.dtype
    x, delta, A, lam, k, q, D = (t.to(dtype) for t in inputs)
    alpha = torch.exp(delta * A)  # (B, H)
    beta, gamma = (1 - lam) * delta * alpha, lam * delta
    h = alpha[..., None, None] * state.h + _outer(beta, state.x, state.k) + _outer(gamma, x, k)  # (B, H, P, N)
    y = torch.stack([(h * query.unsqueeze(2)).sum(dim=3) for query in q.unbind(1)], dim=1) + D[:, None] * x
    return y.to(inputs.x.dtype), ScanState(h, k, x)


def _outer(scale: Tensor, x: Tensor, k: Tensor) -> Tensor:
    """The sum over the ranks of scale x k^T: (B, H), (B, R, H, P), (B, R, H, N) to (B, H, P, N)."""
    x = scale[:, None, :, None] * x
    return sum(inputs.unsqueeze(3) * keys.unsqueeze(2) for inputs, keys in zip(x.unbind(1), k.unbind(1), strict=True))


def reference(
    inputs: Inputs, state: ScanState | None = None, *, seq_idx: Tensor | None = None
) -> tuple[Tensor, ScanState]:
    """``trapezoidal_scan`` in float64, one position after another, as the equations are written.

    Arguments as there; y is (B, L, R, H, P), also in float64.
    """
    x, delta, A, lam, k, q, D = (t.double() for t in inputs)
    batch, length, rank, heads, channels = x.shape
    d_state = k.shape[4]
    shapes = (heads, channels, d_state), (rank, heads, d_state), (rank, heads, channels)
    zeros = ScanState(*(x.new_zeros(batch, *shape) for shape in shapes))
    h, last_k, last_x = zeros if state is None else (t.double() for t in state)
    outputs = []
    for t in range(length):
        if seq_idx is not None and t > 0:
            goes_on = (seq_idx[:, t] == seq_idx[:, t - 1])[:, None, None, None]  # (B, 1, 1, 1)
            h, last_k, last_x = (part.where(goes_on, 0) for part in (h, last_k, last_x))
        alpha = torch.exp(delta[:, t] * A[:, t])  # (B, H)
        beta = (1 - lam[:, t]) * delta[:, t] * alpha
        gamma = lam[:, t] * delta[:, t]
        h = alpha[:, :, None, None] * h  # (B, H, P, N)
        for r in range(rank):
            h = h + beta[:, :, None, None] * last_x[:, r, :, :, None] * last_k[:, r, :, None, :]
            h = h + gamma[:, :, None, None] * x[:, t, r, :, :, None] * k[:, t, r, :, None, :]
        y = [(h * q[:, t, r, :, None, :]).sum(dim=3) + D[:, None] * x[:, t, r] for r in range(rank)]  # (B, H, P) each
        outputs.append(torch.stack(y, dim=1))
        last_k, last_x = k[:, t], x[:, t]
    return torch.stack(outputs, dim=1), ScanState(h, last_k, last_x)
