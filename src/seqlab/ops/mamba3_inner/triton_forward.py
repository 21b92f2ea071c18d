"""Mamba-3's block on a GPU, device code: the states before chunks and the gated outputs.

Symbols as in ``triton.py``. One kernel walks over the chunks with a tile of a head's state in registers; backward it
does so for the gradient of the state, whose recurrence is that of the state with other operands: g before a chunk is its
decay times g after it, plus the sum over positions of exp(s_i) dy_i q_i^T.
"""

import triton
import triton.language as tl

from seqlab.ops.mamba3_inner.triton_parts import (
    SIZES,
    below_square,
    load_decays,
    load_rows,
    load_state,
    load_tanh,
    load_turned,
    rotation,
    silu,
    store_rows,
    store_state,
)


@triton.jit(do_not_specialize=SIZES)
def walk_kernel(
    x_ptr, gate_ptr, maps_ptr, angle_ptr, weight_ptr, bias_ptr, delta_ptr, scale_ptr, high_ptr, low_ptr, root_ptr,
    turns_ptr, start_ptr, before_ptr, end_ptr, L, H, K, HEADS, PER, sb, st, x_sb, x_st,
    P: tl.constexpr, N: tl.constexpr, S: tl.constexpr, T: tl.constexpr, BP: tl.constexpr, BS: tl.constexpr,
    BACK: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The state before each of PER chunks (BACK: its gradient after it), and after the last, BS pairs of channels of it.

    BACK: x is the gradient of the gated output. Grid (blocks H, Bt, segments): a segment is PER chunks, its first state
    ``start``, or zeros.
    """
    NP: tl.constexpr = (N + 1) // 2
    first, head = tl.program_id(0) // H * BS, (tl.program_id(0) % H).to(tl.int64)
    batch, segment = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    t, groups = tl.arange(0, T), H // HEADS
    group, which = head // HEADS, 1 if BACK else 0  # of B and C
    weight_ptr, bias_ptr = weight_ptr + which * N, bias_ptr + (which * H + head) * N
    even, odd = tl.zeros([BP, BS], tl.float32), tl.zeros([BP, BS], tl.float32)
    whole = ((batch * tl.num_programs(2) + segment) * H + head) * 2 * P * NP
    if start_ptr is not None:
        even, odd = load_state(start_ptr + whole, first, P, NP, BP, BS)
    for step in range(segment * PER, tl.minimum(segment * PER + PER, K)):
        chunk = K - 1 - step if BACK else step
        here, rest = chunk * T, L - chunk * T
        at = (batch * H + head) * K * T + here
        rows = batch * sb + here * st
        x = load_rows(x_ptr + batch * x_sb + here * x_st + head * P, x_st, t, rest, P, BP).to(tl.float32)
        if BACK:
            gate = load_rows(gate_ptr + rows + head * P, st, t, rest, P, BP).to(tl.float32)
            x *= silu(gate)[0]
        delta = tl.load(delta_ptr + at + t)
        root = tl.load(root_ptr + ((batch * 2 + which) * groups + group) * K * T + here + t)
        cos, sin = tl.full([T, BS], 1.0, tl.float32), tl.zeros([T, BS], tl.float32)
        if first < S:
            tanh_angle = load_tanh(angle_ptr + rows, st, t, rest, first, S, BS)
            cos, sin = rotation(delta, tanh_angle, turns_ptr + ((batch * K + chunk) * H + head) * S, first, S, BS)
        map_at = maps_ptr + rows + (which * groups + group) * N
        map_even, map_odd = load_turned(map_at, st, root, weight_ptr, bias_ptr, cos, sin, t, rest, first, N, BS, T)
        if before_ptr is not None:
            place = before_ptr + ((batch * K + chunk) * H + head) * 2 * P * NP
            store_state(place, even, odd, first, P, NP, BP, BS)
        from_start, to_end, over = load_decays(high_ptr + at, low_ptr + at, T)
        left = from_start if BACK else to_end * tl.load(scale_ptr + at + t)
        x = tl.trans((x * left[:, None]).to(DOT))
        even = tl.dot(x, map_even.to(DOT), acc=even * over, input_precision=PRECISION)
        odd = tl.dot(x, map_odd.to(DOT), acc=odd * over, input_precision=PRECISION)
    if end_ptr is not None:
        store_state(end_ptr + whole, even, odd, first, P, NP, BP, BS)


@triton.jit(do_not_specialize=SIZES)
def join_kernel(
    ends_ptr, starts_ptr, high_ptr, low_ptr, H, K, PER,
    SIZE: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, BK: tl.constexpr, SEGMENTS: tl.constexpr,
    BACK: tl.constexpr,
):  # fmt: skip
    """The states (Bt, SEGMENTS, H, SIZE) before segments of PER chunks from what each leaves. Grid (blocks, H, Bt)."""
    batch, head = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    place, j = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, BK)
    state = tl.zeros([BLOCK], tl.float32)
    for segment in range(SEGMENTS):
        at = ((batch * SEGMENTS + segment) * H + head) * SIZE + place
        tl.store(starts_ptr + at, state, mask=place < SIZE)
        decay = 0.0
        for first in range(segment * PER, tl.minimum(segment * PER + PER, K), BK):
            step = first + j
            inside = (step < K) & (step < segment * PER + PER)
            chunk = K - 1 - step if BACK else step
            end = (batch * H + head) * K * T + chunk * T + T - 1
            sums = tl.load(high_ptr + end, mask=inside, other=0.0) + tl.load(low_ptr + end, mask=inside, other=0.0)
            decay += tl.sum(sums)
        state = state * tl.exp2(decay) + tl.load(ends_ptr + at, mask=place < SIZE, other=0.0)


@triton.jit
def chunk_products(
    maps_ptr, stride, angle_ptr, root_ptr, weight_ptr, bias_ptr, delta, turns_ptr, before_ptr, after_ptr, t, rest,
    groups, LP, H, P: tl.constexpr, N: tl.constexpr, S: tl.constexpr, T: tl.constexpr, BP: tl.constexpr,
    BS: tl.constexpr, BACK: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of a chunk and head q_i k_j (T, T) and h q_i (T, BP); BACK: also g k_j (T, BP) and the sum of h g."""
    NP: tl.constexpr = (N + 1) // 2
    root_k, root_q = tl.load(root_ptr + t), tl.load(root_ptr + groups * LP + t)
    scores = tl.zeros([T, T], tl.float32)
    read = tl.zeros([T, BP], tl.float32)
    written = tl.zeros([T, BP], tl.float32)
    across = 0.0
    for first in tl.static_range(0, NP, BS):
        cos, sin = tl.full([T, BS], 1.0, tl.float32), tl.zeros([T, BS], tl.float32)
        if first < S:
            tanh_angle = load_tanh(angle_ptr, stride, t, rest, first, S, BS)
            cos, sin = rotation(delta, tanh_angle, turns_ptr, first, S, BS)
        k_even, k_odd = load_turned(
            maps_ptr, stride, root_k, weight_ptr, bias_ptr, cos, sin, t, rest, first, N, BS, T
        )  # fmt: skip
        q_even, q_odd = load_turned(
            maps_ptr + groups * N, stride, root_q, weight_ptr + N, bias_ptr + H * N, cos, sin, t, rest, first, N, BS, T
        )
        k_even, k_odd, q_even, q_odd = k_even.to(DOT), k_odd.to(DOT), q_even.to(DOT), q_odd.to(DOT)
        scores = tl.dot(q_even, tl.trans(k_even), acc=scores, input_precision=PRECISION)
        scores = tl.dot(q_odd, tl.trans(k_odd), acc=scores, input_precision=PRECISION)
        h_even, h_odd = load_state(before_ptr, first, P, NP, BP, BS)
        read = tl.dot(q_even, tl.trans(h_even), acc=read, input_precision=PRECISION)
        read = tl.dot(q_odd, tl.trans(h_odd), acc=read, input_precision=PRECISION)
        if BACK:
            g_even, g_odd = load_state(after_ptr, first, P, NP, BP, BS)
            written = tl.dot(k_even, tl.trans(g_even), acc=written, input_precision=PRECISION)
            written = tl.dot(k_odd, tl.trans(g_odd), acc=written, input_precision=PRECISION)
            across += tl.sum(h_even.to(tl.float32) * g_even.to(tl.float32))
            across += tl.sum(h_odd.to(tl.float32) * g_odd.to(tl.float32))
    return scores, read, written, across


@triton.jit
def steps_square(high_ptr, low_ptr, scale, gamma, T: tl.constexpr):
    """E (T, T), and M: how much the input of j has in the state that i reads, E_ij scale_j, gamma_i for j = i."""
    t = tl.arange(0, T)
    below = below_square(high_ptr, low_ptr, T)
    return below, below * scale[None, :] + tl.where(t[:, None] == t[None, :], gamma[None, :], 0.0)


@triton.jit(do_not_specialize=SIZES)
def outputs_kernel(
    x_ptr, gate_ptr, maps_ptr, angle_ptr, weight_ptr, bias_ptr, D_ptr, delta_ptr, gamma_ptr, scale_ptr, high_ptr,
    low_ptr, root_ptr, turns_ptr, before_ptr, out_ptr, L, H, K, HEADS, sb, st, out_sb, out_st,
    P: tl.constexpr, N: tl.constexpr, S: tl.constexpr, T: tl.constexpr, BP: tl.constexpr, BS: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y silu(z) of one chunk and head: y_i = sum over j of M_ij (q_i k_j) x_j + exp(s_i) h q_i + D x_i. Grid (H, K, Bt)."""
    NP: tl.constexpr = (N + 1) // 2
    head, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    batch, groups = tl.program_id(2).to(tl.int64), H // HEADS
    t, group, here = tl.arange(0, T), head // HEADS, chunk * T
    rest, rows, at = L - here, batch * sb + here * st, (batch * H + head) * K * T + here
    number = (batch * K + chunk) * H + head
    scores, read, _, _ = chunk_products(
        maps_ptr + rows + group * N, st, angle_ptr + rows, root_ptr + (batch * 2 * groups + group) * K * T + here,
        weight_ptr, bias_ptr + head * N, tl.load(delta_ptr + at + t), turns_ptr + number * S,
        before_ptr + number * 2 * P * NP, before_ptr, t, rest, groups, K * T, H,
        P, N, S, T, BP, BS, False, DOT, PRECISION,
    )  # fmt: skip
    scale, gamma = tl.load(scale_ptr + at + t), tl.load(gamma_ptr + at + t)
    _, steps = steps_square(high_ptr + at, low_ptr + at, scale, gamma, T)
    from_start, _, _ = load_decays(high_ptr + at, low_ptr + at, T)
    x = load_rows(x_ptr + rows + head * P, st, t, rest, P, BP).to(DOT)
    y = tl.dot((scores * steps).to(DOT), x, acc=read * from_start[:, None], input_precision=PRECISION)
    y += tl.load(D_ptr + head) * x.to(tl.float32)
    gate = load_rows(gate_ptr + rows + head * P, st, t, rest, P, BP).to(tl.float32)
    out = out_ptr + batch * out_sb + here * out_st + head * P
    store_rows(out, out_st, y * silu(gate)[0], t, rest, P, BP)
