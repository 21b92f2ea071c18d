"""The selective scan in plain PyTorch, a chunk of positions at a time, with its gradient written out.

The expanded states (Bt, L, N, D) are N times the input, so they are never held whole: the forward pass saves the state
at the boundaries between chunks, and the backward pass recomputes each chunk's states from there. Inside a chunk the
recurrence is linear, so neighbours combine in pairs and the depth is logarithmic. Nothing is divided by a decay, so
that decays may underflow.

Symbols (arXiv:2312.00752, Algorithm 2; state before channels inside this file, so that the innermost axis is long):

    Bt, L, D, N   batch, length, channels (d_inner), state size (d_state)
    T             positions in a chunk; t counts them from 1, and 0 is the boundary before the chunk
    dt            (Bt, T, D) step sizes, after bias and softplus
    a             (Bt, T, N, D) decays exp(dt A); a_t leads from position t - 1 to t
    h             (Bt, T + 1, N, D) states, h_t = a_t h_{t-1} + dt_t B_t u_t
    g             (Bt, T + 1, N, D) gradients of the loss w.r.t. the states, g_t = C_t dy_t + a_{t+1} g_{t+1}
    y             (Bt, T, D) outputs before the gate, y_t = sum over n of C_t h_t, plus D u_t
    d...          gradient of the loss w.r.t. what follows the d
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqlab.ops.contract import accumulation_dtype
from seqlab.ops.selective_scan.interface import Gradients, Inputs

CHUNK_ELEMENTS = {"cpu": 2**21, "accelerator": 2**24}
"""Elements of one chunk's expansion (Bt, T, N, D): small enough for the caches of a CPU (of 1 to 128 positions, 4 to
16 ran fastest at Bt, L, D, N = 64, 128, 256, 16 in float32), large enough to keep a GPU busy between launches."""

SHORTEST_CHUNK = 8
"""Fewer positions would make the boundary states the largest tensor of all."""

SEQUENTIAL = 16
"""Up to so many positions are processed one by one: one pass over memory instead of about three."""


def why_unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """None: plain PyTorch runs everywhere."""
    return None


def saved_shape(inputs: Inputs) -> tuple[int, ...]:
    """The shape (chunks, Bt, N, D) of the states at the boundary before each chunk."""
    batch, length, d_inner = inputs.u.shape
    d_state = inputs.A.shape[1]
    return -(-length // _chunk_length(inputs.u, d_state)), batch, d_state, d_inner


class _Chunk(NamedTuple):
    """The inputs of T positions in the accumulation dtype."""

    u: Tensor  # (Bt, T, D)
    raw: Tensor  # (Bt, T, D) delta + bias, before softplus
    dt: Tensor  # (Bt, T, D)
    drive: Tensor  # (Bt, T, D) dt u
    A: Tensor  # (N, D)
    B: Tensor  # (Bt, T, N)
    C: Tensor  # (Bt, T, N)
    fresh: Tensor | None  # (Bt, T) whether a position begins a sequence, and resets the state


def forward(inputs: Inputs, initial_state: Tensor | None, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """y (Bt, L, D) in u's dtype, the final state (Bt, D, N) and, if ``keep``, the states at boundaries."""
    u, D, z = inputs.u, inputs.D, inputs.z
    batch, _, d_inner = u.shape
    d_state = inputs.A.shape[1]
    chunks = _chunks(u, d_state)
    dtype = accumulation_dtype(u.dtype)

    if initial_state is None:
        initial_state = torch.zeros(batch, d_inner, d_state, dtype=dtype, device=u.device)
    state = initial_state.transpose(1, 2)  # (Bt, N, D)
    out = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    boundaries = torch.empty(saved_shape(inputs) if keep else (0,), dtype=dtype, device=u.device)
    longest = chunks[0].stop
    a_space = torch.empty(batch, longest, d_state, d_inner, dtype=dtype, device=u.device)
    h_space = torch.empty(batch, longest + 1, d_state, d_inner, dtype=dtype, device=u.device)

    for index, span in enumerate(chunks):
        chunk = _read_chunk(inputs, span)
        if keep:
            boundaries[index] = state
        length = span.stop - span.start
        a, h = a_space[:, :length], h_space[:, : length + 1]
        _states(chunk, state, a, h)
        state = h[:, length].clone()  # (Bt, N, D)
        y = h[:, 1:].mul_(chunk.C.unsqueeze(3)).sum(dim=2)  # (Bt, T, D)
        if D is not None:
            y.addcmul_(chunk.u, D.to(dtype))
        if z is not None:
            y.mul_(F.silu(z[:, span].to(dtype)))
        out[:, span] = y
    return out, state.transpose(1, 2).contiguous(), boundaries


def backward(
    inputs: Inputs, boundaries: Tensor, d_out: Tensor, d_final_state: Tensor | None, deterministic: bool
) -> Gradients:
    """The gradients for d_out (Bt, L, D) and d_final_state (Bt, D, N). Always deterministic."""
    batch, _, d_inner = inputs.u.shape
    d_state = inputs.A.shape[1]
    chunks = _chunks(inputs.u, d_state)
    dtype, device = boundaries.dtype, boundaries.device

    du, d_delta, dB, dC = (
        torch.empty(t.shape, dtype=t.dtype, device=device) for t in (inputs.u, inputs.delta, inputs.B, inputs.C)
    )
    dz = None if inputs.z is None else torch.empty(inputs.z.shape, dtype=inputs.z.dtype, device=device)
    dA = torch.zeros(d_state, d_inner, dtype=dtype, device=device)
    dD, d_bias = torch.zeros(2, d_inner, dtype=dtype, device=device)
    longest = chunks[0].stop
    a_space, work = torch.empty(2, batch, longest, d_state, d_inner, dtype=dtype, device=device)
    h_space, g_space = torch.empty(2, batch, longest + 1, d_state, d_inner, dtype=dtype, device=device)

    if d_final_state is None:
        carry = torch.zeros(batch, d_state, d_inner, dtype=dtype, device=device)
    else:
        carry = d_final_state.transpose(1, 2)  # (Bt, N, D)
    for index, span in reversed(list(enumerate(chunks))):
        chunk = _read_chunk(inputs, span)
        length = span.stop - span.start
        a, h, g, chunk_work = a_space[:, :length], h_space[:, : length + 1], g_space[:, : length + 1], work[:, :length]
        _states(chunk, boundaries[index], a, h)
        dy = d_out[:, span].to(dtype)  # (Bt, T, D)
        if dz is not None:
            dy, dz[:, span] = _gate_gradients(inputs, chunk, span, dy, h, chunk_work)
        _state_gradients(chunk, dy, carry, a, g)
        carry = g[:, 0]  # (Bt, N, D), read by the next chunk before it is overwritten
        d_drive, d_dt, dA_chunk, dB[:, span], dC[:, span] = _chunk_gradients(chunk, dy, a, h, g, chunk_work)

        dA += dA_chunk
        dD += (dy * chunk.u).sum(dim=(0, 1))
        d_dt.addcmul_(d_drive, chunk.u)
        if inputs.delta_softplus:
            d_dt = torch.ops.aten.softplus_backward(d_dt, chunk.raw, beta=1, threshold=20)
        d_bias += d_dt.sum(dim=(0, 1))
        d_delta[:, span] = d_dt
        du_chunk = d_drive * chunk.dt
        du[:, span] = du_chunk if inputs.D is None else du_chunk.addcmul_(dy, inputs.D.to(dtype))

    return Gradients(
        du,
        d_delta,
        dA.t().to(inputs.A.dtype),  # (D, N)
        dB,
        dC,
        None if inputs.D is None else dD.to(inputs.D.dtype),
        dz,
        None if inputs.delta_bias is None else d_bias.to(inputs.delta_bias.dtype),
        carry.transpose(1, 2).clone(memory_format=torch.contiguous_format),  # (Bt, D, N)
    )


def _chunk_length(u: Tensor, d_state: int) -> int:
    """Positions of every chunk but the last, which may be shorter."""
    batch, _, d_inner = u.shape
    elements = CHUNK_ELEMENTS["cpu" if u.device.type == "cpu" else "accelerator"]
    return max(SHORTEST_CHUNK, elements // (batch * d_inner * d_state))


def _chunks(u: Tensor, d_state: int) -> list[slice]:
    length, longest = u.shape[1], _chunk_length(u, d_state)
    return [slice(start, min(start + longest, length)) for start in range(0, length, longest)]


def _read_chunk(inputs: Inputs, span: slice) -> _Chunk:
    """The positions of one chunk, with their step sizes."""
    dtype = accumulation_dtype(inputs.u.dtype)
    u, raw, B, C = (t[:, span].to(dtype) for t in (inputs.u, inputs.delta, inputs.B, inputs.C))
    if inputs.delta_bias is not None:
        raw = raw + inputs.delta_bias.to(dtype)
    dt = F.softplus(raw) if inputs.delta_softplus else raw
    fresh = None
    if inputs.seq_idx is not None:
        first = max(span.start, 1)  # position 0 belongs to the sequence of the initial state
        changes = inputs.seq_idx[:, first : span.stop] != inputs.seq_idx[:, first - 1 : span.stop - 1]
        fresh = F.pad(changes, (first - span.start, 0))
    return _Chunk(u, raw, dt, dt * u, inputs.A.t().to(dtype).contiguous(), B, C, fresh)


def _states(chunk: _Chunk, start: Tensor, a: Tensor, h: Tensor) -> None:
    """Fill in the decays a (Bt, T, N, D) and, from ``start`` (Bt, N, D), the states h (Bt, T + 1, N, D)."""
    torch.mul(chunk.dt.unsqueeze(2), chunk.A, out=a).exp_()  # (Bt, T, N, D)
    h[:, 0] = start
    torch.mul(chunk.drive.unsqueeze(2), chunk.B.unsqueeze(3), out=h[:, 1:])  # (Bt, T, N, D)
    _accumulate(h, a, chunk.fresh)


def _gate_gradients(
    inputs: Inputs, chunk: _Chunk, span: slice, d_out: Tensor, h: Tensor, work: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of y and z (Bt, T, D). y is recomputed: saved, it would be as large as the input.

    ``work`` (Bt, T, N, D) is overwritten.
    """
    y = torch.mul(h[:, 1:], chunk.C.unsqueeze(3), out=work).sum(dim=2)  # (Bt, T, D)
    if inputs.D is not None:
        y.addcmul_(chunk.u, inputs.D.to(y.dtype))
    z = inputs.z[:, span].to(y.dtype)  # (Bt, T, D)
    return d_out * F.silu(z), torch.ops.aten.silu_backward(d_out * y, z)


def _state_gradients(chunk: _Chunk, dy: Tensor, carry: Tensor, a: Tensor, g: Tensor) -> None:
    """Fill in g (Bt, T + 1, N, D); ``carry`` (Bt, N, D) is the last state's gradient from later chunks.

    g_0 is the gradient of the state that the chunk started from.
    """
    torch.mul(dy.unsqueeze(2), chunk.C.unsqueeze(3), out=g[:, 1:])  # (Bt, T, N, D)
    g[:, -1] += carry
    g[:, 0] = 0
    _accumulate(g, a, chunk.fresh, backwards=True)


def _chunk_gradients(
    chunk: _Chunk, dy: Tensor, a: Tensor, h: Tensor, g: Tensor, work: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of drive and dt (Bt, T, D), the latter through the decays alone, A (N, D), B and C (Bt, T, N).

    ``a`` and ``work`` (Bt, T, N, D) are overwritten.
    """
    g = g[:, 1:]  # (Bt, T, N, D)
    dC = torch.mul(h[:, 1:], dy.unsqueeze(2), out=work).sum(dim=3)  # (Bt, T, N)
    dB = torch.mul(g, chunk.drive.unsqueeze(2), out=work).sum(dim=3)  # (Bt, T, N)
    d_drive = torch.mul(g, chunk.B.unsqueeze(3), out=work).sum(dim=2)  # (Bt, T, D)
    d_exponent = torch.mul(g, a, out=work).mul_(h[:, :-1])  # (Bt, T, N, D), by dt A
    if chunk.fresh is not None:
        d_exponent.masked_fill_(chunk.fresh[:, :, None, None], 0)
    d_dt = torch.mul(d_exponent, chunk.A, out=a).sum(dim=2)  # (Bt, T, D)
    dA = d_exponent.mul_(chunk.dt.unsqueeze(2)).sum(dim=(0, 1))  # (N, D)
    return d_drive, d_dt, dA, dB, dC


def _accumulate(x: Tensor, links: Tensor, cut: Tensor | None, backwards: bool = False) -> None:
    """Solve x_{t+1} += links_t x_t for all t in order, in place; backwards, x_t += links_t x_{t+1} from the end.

    x is (Bt, K, N, D) and links (Bt, K - 1, N, D). A long sequence is halved: each pair of neighbours is joined into
    one element, the pairs are solved as a sequence of their own, and the elements between them follow from their
    neighbours. That is about three passes over memory in 3 log2(K) launches. Links that are ``cut`` (Bt, K - 1) carry
    nothing, not even infinity or NaN.
    """
    length = x.shape[1]
    if length <= SEQUENTIAL + 1:
        for t in range(length - 1):
            source, target = (length - 1 - t, length - 2 - t) if backwards else (t, t + 1)
            link = min(source, target)
            _carry(x[:, target], links[:, link], x[:, source], None if cut is None else cut[:, link])
        return
    even, odd = x[:, 0::2], x[:, 1::2]
    within, between = links[:, 0::2], links[:, 1::2]
    pairs, gaps = odd.shape[1], between.shape[1]
    cut_within, cut_between = (None, None) if cut is None else (cut[:, 0::2], cut[:, 1::2])
    if backwards:
        _carry(even[:, :pairs], within, odd, cut_within)
        joined = None if cut is None else cut_within[:, :gaps] | cut_between
        _accumulate(even, within[:, :gaps] * between, joined, backwards)
        _carry(odd[:, :gaps], between, even[:, 1:], cut_between)
    else:
        _carry(odd, within, even[:, :pairs], cut_within)
        joined = None if cut is None else cut_between[:, : pairs - 1] | cut_within[:, 1:]
        _accumulate(odd, between[:, : pairs - 1] * within[:, 1:], joined, backwards)
        _carry(even[:, 1:], between, odd[:, :gaps], cut_between)


def _carry(target: Tensor, links: Tensor, source: Tensor, cut: Tensor | None) -> None:
    """target += links source, but nothing where the link is cut: multiplying by 0 would make NaN of infinity."""
    if cut is None:
        target.addcmul_(links, source)
    else:
        target.add_((links * source).masked_fill_(cut[..., None, None], 0))
