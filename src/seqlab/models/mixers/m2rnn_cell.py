"""The recurrence of M²RNN, a nonlinear network whose state is a matrix (Mishra et al. 2026, arXiv:2603.14360).

    Z_t = tanh(H_{t-1} W + k_t v_t^T)
    H_t = f_t H_{t-1} + (1 - f_t) Z_t
    y_t = H_t^T q_t

Symbols: B batch, L length, N heads, K width of queries and keys, which all heads share, V width of a head's values;
q and k (B, L, K), v and y (B, L, N, V), W (N, V, V), f (B, L, N) in [0, 1], H (B, N, K, V) the state.

Each state is a nonlinear function of the one before, so that positions follow one another in time. Of the states the
backward pass gets one in ``SPAN`` and computes the others again. Its gradient is written out, with A = H_{t-1} W + k_t
v_t^T and G_t that of the loss by H_t, which comes from y_t and from t + 1:

    dA_t    = (1 - f_t) (1 - Z_t^2) G_t
    G_{t-1} = q_{t-1} dy_{t-1}^T + f_t G_t + dA_t W^T
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override

from seqlab.ops.contract import accumulation_dtype

SPAN = 16
"""Positions whose states are held at once: with those kept L / SPAN + SPAN states, fewest where it is sqrt L."""


class Inputs(NamedTuple):
    """The tensors of a sequence, or without L those of one position."""

    q: Tensor  # (B, L, K)
    k: Tensor  # (B, L, K)
    v: Tensor  # (B, L, N, V)
    f: Tensor  # (B, L, N)


def m2rnn_scan(
    inputs: Inputs,
    W: Tensor,
    state: Tensor | None = None,
    *,
    seq_idx: Tensor | None = None,
    gradient_clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """All positions, at least one; differentiable once.

    Sums are in float32, or in float64 if v is, also under autocast.

    Args:
        inputs: in float64, float32, bfloat16 or float16.
        W: (N, V, V).
        state: (B, N, K, V) before the first position; zeros if None.
        seq_idx: (B, L) integers for packed sequences: a new one, with a state of zeros, begins where the number differs
            from that of the position before. The states are of the first and the last.
        gradient_clip: the largest magnitude of each number in the gradient by a state; any if None.

    Returns:
        y (B, L, N, V) in v's dtype, and the state after the last position, in float32, or in float64 if v is.
    """
    dtype = accumulation_dtype(inputs.v.dtype)
    q, k, v, f = (t.to(dtype) for t in inputs)
    if v.is_meta:
        return _shapes_alone(inputs, W, dtype)
    H = v.new_zeros(len(v), v.shape[2], k.shape[2], v.shape[3]) if state is None else state
    goes_on = None if seq_idx is None else F.pad(seq_idx[:, 1:] == seq_idx[:, :-1], (1, 0), value=True).mT  # (L, B)
    along_time = (q.transpose(0, 1), k.transpose(0, 1), v.permute(1, 2, 0, 3), f.permute(1, 2, 0))  # L first, then N
    with torch.autocast(v.device.type, enabled=False):
        H = H.transpose(0, 1).flatten(1, 2)  # (N, B K, V), which one product of matrices for each head takes
        y, H = _Recurrence.apply(*along_time, W.to(dtype), H, goes_on, gradient_clip)
    H = H.unflatten(1, (len(v), -1)).transpose(0, 1).contiguous()  # (B, N, K, V)
    return y.permute(2, 0, 1, 3).to(inputs.v.dtype), H


def m2rnn_update(inputs: Inputs, W: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One position: tensors as in ``Inputs`` without L, to y (B, N, V) in v's dtype and the next state (B, N, K, V)."""
    if inputs.v.is_meta:  # which knows no autocast
        return inputs.v, state
    q, k, v, f = (t.to(state.dtype) for t in inputs)
    with torch.autocast(v.device.type, enabled=False):
        Z = torch.tanh(state @ W.to(state.dtype) + k[:, None, :, None] * v[:, :, None])
    state = torch.lerp(Z, state, f[..., None, None])  # f H + (1 - f) Z
    return (state * q[:, None, :, None]).sum(dim=2).to(inputs.v.dtype), state


class _Span(NamedTuple):
    """Some positions, T, with the size of their state."""

    q: Tensor  # (T, B, K)
    k: Tensor  # (T, B, K)
    v: Tensor  # (T, N, B, V)
    f: Tensor  # (T, N, B K, 1)
    goes_on: Tensor | None  # (T, B K, 1) whether a position is of the sequence of the one before

    def states(self, H: Tensor, W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """H_{t-1}, 0 where a sequence begins, Z_t and H_t, (T, N, B K, V) each, from H (N, B K, V) before them."""
        Z = _outer(self.k, self.v)
        states = H.new_empty(len(Z) + 1, *H.shape)
        states[0] = H
        for t, written in enumerate(Z):
            H = states[t] if self.goes_on is None else states[t].where(self.goes_on[t], 0)
            written.baddbmm_(H, W).tanh_()
            torch.lerp(written, H, self.f[t], out=states[t + 1])  # f H + (1 - f) Z
        before = states[:-1] if self.goes_on is None else states[:-1].where(self.goes_on[:, None], 0)
        return before, Z, states[1:]


def _spans(q: Tensor, k: Tensor, v: Tensor, f: Tensor, goes_on: Tensor | None) -> Iterator[_Span]:
    """All positions, from q and k (L, B, K), v (L, N, B, V), f (L, N, B) and goes_on (L, B)."""
    d_key = k.shape[2]
    for start in range(0, len(k), SPAN):
        here = slice(start, start + SPAN)
        wide_f = f[here].repeat_interleave(d_key, dim=2).unsqueeze(3)
        same = None if goes_on is None else goes_on[here].repeat_interleave(d_key, dim=1).unsqueeze(2)
        yield _Span(q[here], k[here], v[here], wide_f, same)


def _outer(k: Tensor, v: Tensor) -> Tensor:
    """k_t v_t^T (T, N, B K, V) of k (T, B, K) and v (T, N, B, V)."""
    return (k[:, None, :, :, None] * v[:, :, :, None]).flatten(2, 3)


class _Recurrence(torch.autograd.Function):
    """y (L, N, B, V) and the last H (N, B K, V); arguments as in ``_spans``, with W and H (N, B K, V) before them."""

    @override
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        q, k, v, f, W, H, goes_on, ctx.gradient_clip = arguments
        starts, outputs = [], []
        for span in _spans(q, k, v, f, goes_on):
            starts.append(H)
            _, _, states = span.states(H, W)
            H = states[-1]
            outputs.append((span.q[:, None, :, None] @ states.unflatten(2, k.shape[1:])).squeeze(3))  # (T, N, B, V)
        ctx.save_for_backward(q, k, v, f, goes_on, W, torch.stack(starts))
        return torch.cat(outputs), H.clone()  # without the other states of its span

    @override
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dH: Tensor) -> tuple[Tensor | None, ...]:
        *along_time, W, starts = ctx.saved_tensors
        dW, found = torch.zeros_like(W), []
        spans = list(zip(_spans(*along_time), dy.split(SPAN), starts, strict=True))
        for span, dy_here, H in reversed(spans):
            *gradients, dW_here, dH = _span_backward(span, H, W, dy_here, dH, ctx.gradient_clip)
            found.append(gradients)
            dW += dW_here
        return *(torch.cat(parts[::-1]) for parts in zip(*found, strict=True)), dW, dH, None, None


def _span_backward(
    span: _Span, H: Tensor, W: Tensor, dy: Tensor, dH: Tensor, gradient_clip: float | None
) -> tuple[Tensor, ...]:
    """The gradients of q, k, v and f, and of W and H before the span, from dy (T, N, B, V) and dH after it."""
    before, Z, after = span.states(H, W)
    read, slope = _outer(span.q, dy), (1 - span.f) * (1 - Z * Z)
    G, dA = torch.empty_like(Z), torch.empty_like(Z)
    for t in reversed(range(len(Z))):
        torch.add(dH, read[t], out=G[t])
        if gradient_clip is not None:
            G[t].clamp_(-gradient_clip, gradient_clip)
        torch.mul(G[t], slope[t], out=dA[t])
        dH = torch.baddbmm(span.f[t] * G[t], dA[t], W.mT)
        dH = dH if span.goes_on is None else dH.where(span.goes_on[t], 0)
    by_key = span.k.shape[1:]
    dq = (after.unflatten(2, by_key) @ dy.unsqueeze(4)).squeeze(4).sum(dim=1)  # (T, B, K)
    df = (G * (before - Z)).unflatten(2, by_key).sum(dim=(3, 4))  # (T, N, B)
    dW = before.transpose(0, 1).flatten(1, 2).mT @ dA.transpose(0, 1).flatten(1, 2)  # (N, V, V)
    dA = dA.unflatten(2, by_key)
    dk = (dA @ span.v.unsqueeze(4)).squeeze(4).sum(dim=1)  # (T, B, K)
    return dq, dk, (span.k[:, None, :, None] @ dA).squeeze(3), df, dW, dH


def _shapes_alone(inputs: Inputs, W: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The outputs on the meta device, which depend on every argument; a FLOP counter sees no matrix products."""
    every = sum(t.sum() for t in (*inputs, W)).to(dtype)
    v, k = inputs.v, inputs.k
    return (v * every).to(v.dtype), v[:, -1, :, None] * k[:, -1, None, :, None] * every


def m2rnn_flops(batch: int, length: int, n_heads: int, d_key: int, d_value: int) -> int:
    """Multiplications, additions and hyperbolic tangents of the recurrence, forward, each counted as one.

    For one position and one head, with K = d_key and V = d_value:

    =========  ==================  =======================================  ================
    candidate  H W                 K V^2 products, K V (V - 1) sums         2 K V^2 - K V
               tanh(H W + k v^T)   K V products, additions and tangents     3 K V
    update     f H + (1 - f) Z     2 K V products, K V + 1 additions        3 K V + 1
    readout    H^T q               K V products, (K - 1) V sums             2 K V - V
    =========  ==================  =======================================  ================

    together 2 K V^2 + 7 K V - V + 1. A backward pass is usually taken as twice the forward.
    """
    square = d_key * d_value
    return batch * length * n_heads * (2 * square * d_value + 7 * square - d_value + 1)
