"""M²RNN in plain PyTorch, all heads and sequences at once: of the states the backward pass gets one in ``SPAN``.

Its gradient is written out, with A = H_{t-1} W + k_t v_t^T and G_t that of the loss by H_t, which comes from y_t and
from t + 1:

    dA_t    = (1 - f_t) (1 - Z_t^2) G_t
    G_{t-1} = q_{t-1} dy_{t-1}^T + f_t G_t + dA_t W^T

Symbols as in ``reference.py``; states are (N, B K, V) here, which one product of matrices for each head takes.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqlab.ops.contract import accumulation_dtype
from seqlab.ops.derivatives import owned
from seqlab.ops.m2rnn.interface import SPAN, Gradients, Inputs


def why_unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """None: plain PyTorch runs everywhere."""
    return None


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


def _spans(inputs: Inputs) -> Iterator[_Span]:
    """All positions, in the dtype of sums."""
    dtype, d_key = accumulation_dtype(inputs.q.dtype), inputs.k.shape[2]
    q, k, v, f = (tensor.to(dtype) for tensor in inputs[:4])
    q, k, v, f = q.transpose(0, 1), k.transpose(0, 1), v.permute(1, 2, 0, 3), f.permute(1, 2, 0)  # L first, then N
    ids, goes_on = inputs.seq_idx, None
    if ids is not None:
        goes_on = F.pad(ids[:, 1:] == ids[:, :-1], (1, 0), value=True).mT  # (L, B)
    for start in range(0, len(k), SPAN):
        here = slice(start, start + SPAN)
        wide_f = f[here].repeat_interleave(d_key, dim=2).unsqueeze(3)
        same = None if goes_on is None else goes_on[here].repeat_interleave(d_key, dim=1).unsqueeze(2)
        yield _Span(q[here], k[here], v[here], wide_f, same)


def _outer(k: Tensor, v: Tensor) -> Tensor:
    """k_t v_t^T (T, N, B K, V) of k (T, B, K) and v (T, N, B, V)."""
    return (k[:, None, :, :, None] * v[:, :, :, None]).flatten(2, 3)


def _first_state(inputs: Inputs, initial_state: Tensor | None, dtype: torch.dtype) -> Tensor:
    """(N, B K, V)."""
    if initial_state is not None:
        return initial_state.transpose(0, 1).flatten(1, 2)
    (batch, _, d_key), (n_heads, d_value) = inputs.k.shape, inputs.v.shape[2:]
    return inputs.v.new_zeros(n_heads, batch * d_key, d_value, dtype=dtype)


def forward(inputs: Inputs, initial_state: Tensor | None, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """y (B, L, N, V) in q's dtype, the final state (B, N, K, V), and with ``keep`` the states before each span."""
    by_key, dtype = (len(inputs.k), inputs.k.shape[2]), accumulation_dtype(inputs.q.dtype)
    W, H = inputs.W.to(dtype), _first_state(inputs, initial_state, dtype)
    starts, outputs = [], []
    for span in _spans(inputs):
        starts.append(H)
        _, _, states = span.states(H, W)
        H = states[-1]
        outputs.append((span.q[:, None, :, None] @ states.unflatten(2, by_key)).squeeze(3))  # (T, N, B, V)
        if not keep:
            starts.clear()
    y = torch.cat(outputs).permute(2, 0, 1, 3).to(inputs.q.dtype)  # (B, L, N, V)
    kept = torch.stack(starts).unflatten(2, by_key) if keep else H.new_empty(0)
    return owned(y), owned(H.unflatten(1, by_key).transpose(0, 1)), kept  # without the other states of its span


def backward(
    inputs: Inputs, starts: Tensor, dy: Tensor, d_final_state: Tensor | None, gradient_clip: float | None
) -> Gradients:
    """The gradients for dy (B, L, N, V) and d_final_state (B, N, K, V)."""
    by_key, dtype = starts.shape[2:4], starts.dtype
    W, dH = inputs.W.to(dtype), _first_state(inputs, d_final_state, dtype)
    dW, found = torch.zeros_like(W), []
    spans = list(zip(_spans(inputs), dy.to(dtype).permute(1, 2, 0, 3).split(SPAN), starts.flatten(2, 3), strict=True))
    for span, dy_here, H in reversed(spans):
        *gradients, dW_here, dH = _span_backward(span, H, W, dy_here, dH, gradient_clip)
        found.append(gradients)
        dW += dW_here
    dq, dk, dv, df = (torch.cat(parts[::-1]) for parts in zip(*found, strict=True))
    laid_out = (dq.transpose(0, 1), dk.transpose(0, 1), dv.permute(2, 0, 1, 3), df.permute(2, 0, 1), dW)
    d_initial = dH.unflatten(1, by_key).transpose(0, 1)
    return Gradients(*(d.to(tensor.dtype) for d, tensor in zip(laid_out, inputs[:-1], strict=True)), d_initial)


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
