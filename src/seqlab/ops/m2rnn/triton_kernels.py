"""The recurrence of M²RNN on a GPU, device code: all positions in one kernel, forward and backward.

The rows of H, one for each key channel, do not meet in H W: a program has BK of them, of one head of one sequence, with
all value columns, and holds them in registers from position to position. What is a sum over all rows, or over heads
that share q and k, is written in shares, which are then added in a fixed order. The next position is read before it is
needed, as it was stored: a conversion would wait for it.

Symbols as in ``reference.py``, and

    S, SPAN     spans, positions of a span
    P           programs of a head of a sequence, K / BK
    c, n        key channels of a program, value channels
    DOT         the dtype that enters matrix products; sums are in float32

Scratch memory: y and dv (P, B, L, N, V), df (P, B, L, N), dq and dk (N, B, L, K), dW (P, B, N, V, V); starts, the state
before each span, (S, N, B, K, V); states, for each program and each position of a span H before it and Z,
(B, N, P, SPAN, 2, BK, BV).
"""

from typing import NamedTuple

import triton
import triton.language as tl

from seqlab.ops.selective_scan.triton_lanes import INTERPRETED, reciprocal

TWICE_LOG2E = tl.constexpr(2 * 1.4426950408889634)
NEAR = tl.constexpr(0.5)

SIZES = ["L", "B", "N", "f_sb", "f_st", "f_sh", "seq_sb", "seq_st"]
"""Integers for which no kernel is recompiled when they are 1 or a multiple of 16."""


@triton.jit
def exponential_of_twice(x):
    """e^(2 x), 0 where it is subnormal."""
    if INTERPRETED:
        return tl.exp2(x * TWICE_LOG2E)
    else:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x * TWICE_LOG2E], tl.float32, is_pure=True, pack=1
        )


@triton.jit
def tanh(x, DOT: tl.constexpr):
    """Within 4e-7 of it, relatively; within 5e-4, an eighth of the distance of two bfloat16, for products of those."""
    if DOT == tl.bfloat16:
        return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    else:
        far = 1.0 - 2.0 * reciprocal(1.0 + exponential_of_twice(x))
        # tanh(x) / x - 1 as a polynomial in x^2 of the least relative error, 2e-8.
        s = x * x
        series = -0.05304537 + s * 0.01724125
        series = 0.13325877 + s * series
        series = s * (-0.33333144 + s * series)
        return tl.where(tl.abs(x) < NEAR, x + x * series, far)


class Given(NamedTuple):
    """Where the arguments of a program's sequence and head are in memory, from position 0 on."""

    q: tl.tensor
    k: tl.tensor
    v: tl.tensor
    f: tl.tensor
    seq: tl.tensor  # of no use without seq_idx
    q_st: tl.tensor  # from one position to the next
    k_st: tl.tensor
    v_st: tl.tensor
    f_st: tl.tensor
    seq_st: tl.tensor


class Position(NamedTuple):
    """The arguments at one position, as they are stored."""

    q: tl.tensor  # (BK,)
    k: tl.tensor  # (BK,)
    v: tl.tensor  # (BV,)
    f: tl.tensor
    number: tl.tensor  # of its sequence
    before: tl.tensor  # of the sequence of the position before


class Shares(NamedTuple):
    """Where a program's shares of gradients are in memory, from position 0 on."""

    q: tl.tensor  # (BK,) pointers
    k: tl.tensor  # (BK,)
    v: tl.tensor  # (BV,)
    f: tl.tensor


@triton.jit
def load_position(given, t, first, end, c, n, K: tl.constexpr, V: tl.constexpr, RESETS: tl.constexpr):
    """Position t; zeros where it is not from ``first`` up to ``end``."""
    t = tl.cast(t, tl.int64)
    inside = (t >= first) & (t < end)
    keys, values = tl.where(inside, K, 0), tl.where(inside, V, 0)
    q = tl.load(given.q + t * given.q_st + c, mask=c < keys, other=0.0)
    k = tl.load(given.k + t * given.k_st + c, mask=c < keys, other=0.0)
    v = tl.load(given.v + t * given.v_st + n, mask=n < values, other=0.0)
    f = tl.load(given.f + t * given.f_st, mask=inside, other=0.0)
    number = 0
    before = 0
    if RESETS:
        later = inside & (t > 0)
        number = tl.load(given.seq + t * given.seq_st, mask=later, other=0)
        before = tl.load(given.seq + (t - 1) * given.seq_st, mask=later, other=0)
    return Position(q, k, v, f, number, before)


@triton.jit
def load_outcome(dy_ptr, states_ptr, first, i, dy_st, n, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr):
    """dy (BV,), as it is stored, and H before and Z (BK, BV) of position i of the span that begins at ``first``."""
    dy = tl.load(dy_ptr + tl.cast(first + i, tl.int64) * dy_st, mask=n < V, other=0.0)
    return dy, tl.load(states_ptr + 2 * i * BK * BV), tl.load(states_ptr + (2 * i + 1) * BK * BV)


@triton.jit
def kept_state(H, at, RESETS: tl.constexpr):
    """H, or zeros where a sequence begins: another one's may be infinite or NaN, whose products with 0 are NaN."""
    if RESETS:
        return tl.where(at.number == at.before, H, 0.0)
    else:
        return H


@triton.jit
def candidate(H, W, at, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """Z (BK, BV)."""
    written = at.k.to(tl.float32)[:, None] * at.v.to(tl.float32)[None, :]
    return tanh(tl.dot(H.to(DOT), W, acc=written, input_precision=PRECISION), DOT)


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    q_ptr, k_ptr, v_ptr, f_ptr, W_ptr, seq_ptr, initial_ptr, starts_ptr, y_ptr, final_ptr, L, B, N,
    q_sb, q_st, k_sb, k_st, v_sb, v_st, v_sh, f_sb, f_st, f_sh, seq_sb, seq_st,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, SPAN: tl.constexpr,
    HAS_START: tl.constexpr, KEEP: tl.constexpr, RESETS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y in shares and the last state; with KEEP the state before each span. Grid (P, N, B)."""
    part, head, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    c, n = part * BK + tl.arange(0, BK), tl.arange(0, BV)
    q_ptr += batch * q_sb
    k_ptr += batch * k_sb
    v_ptr += batch * v_sb + head * v_sh
    f_ptr += batch * f_sb + head * f_sh
    if RESETS:
        seq_ptr += batch * seq_sb
    y_ptr += ((part * B + batch) * L * N + head) * V + n
    if KEEP:
        starts_ptr += (head * B + batch) * K * V
    square = (n[:, None] < V) & (n[None, :] < V)
    W = tl.load(W_ptr + head * V * V + n[:, None] * V + n[None, :], mask=square, other=0.0).to(DOT)
    rows, place = (c[:, None] < K) & (n[None, :] < V), c[:, None] * V + n[None, :]
    H = tl.zeros([BK, BV], tl.float32)
    if HAS_START:
        H += tl.load(initial_ptr + (batch * N + head) * K * V + place, mask=rows, other=0.0)

    given = Given(q_ptr, k_ptr, v_ptr, f_ptr, seq_ptr, q_st, k_st, v_st, f_st, seq_st)
    at = load_position(given, 0, 0, L, c, n, K, V, RESETS)
    for t in range(L):
        ahead = load_position(given, t + 1, 0, L, c, n, K, V, RESETS)
        if KEEP:
            if t % SPAN == 0:
                tl.store(starts_ptr + tl.cast(t // SPAN, tl.int64) * N * B * K * V + place, H, mask=rows)
        H = kept_state(H, at, RESETS)
        Z = candidate(H, W, at, DOT, PRECISION)
        forget = at.f.to(tl.float32)
        H = forget * H + (1.0 - forget) * Z
        y = tl.sum(at.q.to(tl.float32)[:, None] * H, axis=0)
        tl.store(y_ptr + tl.cast(t, tl.int64) * N * V, y, mask=n < V)
        at = ahead
    tl.store(final_ptr + (batch * N + head) * K * V + place, H, mask=rows)


@triton.jit
def store_states(
    given, H, W, states_ptr, first, end, c, n, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    RESETS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """H before and Z of each position of a span, from H before the span."""
    at = load_position(given, first, first, end, c, n, K, V, RESETS)
    for i in range(end - first):
        ahead = load_position(given, first + i + 1, first, end, c, n, K, V, RESETS)
        H = kept_state(H, at, RESETS)
        Z = candidate(H, W, at, DOT, PRECISION)
        tl.store(states_ptr + 2 * i * BK * BV, H)
        tl.store(states_ptr + (2 * i + 1) * BK * BV, Z)
        forget = at.f.to(tl.float32)
        H = forget * H + (1.0 - forget) * Z
        at = ahead


@triton.jit
def span_gradients(
    given, shares, dH, dW, W_back, states_ptr, dy_ptr, dy_st, clip, first, end, c, n, N, K: tl.constexpr,
    V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, CLIPS: tl.constexpr, RESETS: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The positions of a span backward: the gradient of the state before it, dW so far, and ``shares`` written."""
    count = end - first
    at = load_position(given, end - 1, first, end, c, n, K, V, RESETS)
    dy, H, Z = load_outcome(dy_ptr, states_ptr, first, count - 1, dy_st, n, V, BK, BV)
    for back in range(count):
        i = count - 1 - back
        ahead = load_position(given, first + i - 1, first, end, c, n, K, V, RESETS)
        dy_next, H_next, Z_next = load_outcome(dy_ptr, states_ptr, first, tl.maximum(i - 1, 0), dy_st, n, V, BK, BV)
        forget, k, wide_dy = at.f.to(tl.float32), at.k.to(tl.float32), dy.to(tl.float32)
        G = dH + at.q.to(tl.float32)[:, None] * wide_dy[None, :]
        if CLIPS:
            G = tl.clamp(G, -clip, clip, propagate_nan=tl.PropagateNan.ALL)
        dA = (1.0 - forget) * (1.0 - Z * Z) * G
        dH = tl.dot(dA.to(DOT), W_back, acc=forget * G, input_precision=PRECISION)
        dH = kept_state(dH, at, RESETS)
        dW = tl.dot(tl.trans(H).to(DOT), dA.to(DOT), acc=dW, input_precision=PRECISION)
        after = forget * H + (1.0 - forget) * Z
        t = tl.cast(first + i, tl.int64)
        tl.store(shares.q + t * K, tl.sum(after * wide_dy[None, :], axis=1), mask=c < K)
        tl.store(shares.k + t * K, tl.sum(dA * at.v.to(tl.float32)[None, :], axis=1), mask=c < K)
        tl.store(shares.v + t * N * V, tl.sum(dA * k[:, None], axis=0), mask=n < V)
        tl.store(shares.f + t * N, tl.sum(G * (H - Z)))
        at, dy, H, Z = ahead, dy_next, H_next, Z_next
    return dH, dW


@triton.jit(do_not_specialize=SIZES)
def backward_kernel(
    q_ptr, k_ptr, v_ptr, f_ptr, W_ptr, seq_ptr, starts_ptr, states_ptr, dy_ptr, d_final_ptr,
    dq_ptr, dk_ptr, dv_ptr, df_ptr, dW_ptr, d_initial_ptr, clip, L, B, N,
    q_sb, q_st, k_sb, k_st, v_sb, v_st, v_sh, f_sb, f_st, f_sh, seq_sb, seq_st, dy_sb, dy_st, dy_sh,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, SPAN: tl.constexpr,
    HAS_END: tl.constexpr, CLIPS: tl.constexpr, RESETS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Every gradient, those that are sums over programs in shares. Grid (P, N, B).

    From the last span to the first: its states again, from the one before it, and its positions backward.
    """
    part, head, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    c, n = part * BK + tl.arange(0, BK), tl.arange(0, BV)
    q_ptr += batch * q_sb
    k_ptr += batch * k_sb
    v_ptr += batch * v_sb + head * v_sh
    f_ptr += batch * f_sb + head * f_sh
    if RESETS:
        seq_ptr += batch * seq_sb
    dy_ptr += batch * dy_sb + head * dy_sh + n
    dq_ptr += (head * B + batch) * L * K + c
    dk_ptr += (head * B + batch) * L * K + c
    dv_ptr += ((part * B + batch) * L * N + head) * V + n
    df_ptr += (part * B + batch) * L * N + head
    starts_ptr += (head * B + batch) * K * V
    program = (batch * N + head) * tl.num_programs(0) + part
    states_ptr += program * SPAN * 2 * BK * BV + tl.arange(0, BK)[:, None] * BV + n[None, :]
    W_ptr += head * V * V
    square = (n[:, None] < V) & (n[None, :] < V)
    rows, place = (c[:, None] < K) & (n[None, :] < V), c[:, None] * V + n[None, :]
    dH = tl.zeros([BK, BV], tl.float32)
    if HAS_END:
        dH += tl.load(d_final_ptr + (batch * N + head) * K * V + place, mask=rows, other=0.0).to(tl.float32)
    dW = tl.zeros([BV, BV], tl.float32)

    given = Given(q_ptr, k_ptr, v_ptr, f_ptr, seq_ptr, q_st, k_st, v_st, f_st, seq_st)
    shares = Shares(dq_ptr, dk_ptr, dv_ptr, df_ptr)
    spans = tl.cdiv(L, SPAN)
    for step in range(spans):
        first = (spans - 1 - step) * SPAN
        end = tl.minimum(first + SPAN, L)
        W = tl.load(W_ptr + n[:, None] * V + n[None, :], mask=square, other=0.0).to(DOT)
        H = tl.load(starts_ptr + tl.cast(spans - 1 - step, tl.int64) * N * B * K * V + place, mask=rows, other=0.0)
        store_states(given, H, W, states_ptr, first, end, c, n, K, V, BK, BV, RESETS, DOT, PRECISION)
        tl.debug_barrier()  # what one thread stored another loads
        W_back = tl.load(W_ptr + n[None, :] * V + n[:, None], mask=square, other=0.0).to(DOT)
        dH, dW = span_gradients(
            given, shares, dH, dW, W_back, states_ptr, dy_ptr, dy_st, clip, first, end, c, n, N, K, V, BK, BV, CLIPS,
            RESETS, DOT, PRECISION,
        )  # fmt: skip
        tl.debug_barrier()  # before the next span's states take their place
    tl.store(d_initial_ptr + (batch * N + head) * K * V + place, dH, mask=rows)
    dW_ptr += ((part * B + batch) * N + head) * V * V
    tl.store(dW_ptr + n[:, None] * V + n[None, :], dW, mask=square)
