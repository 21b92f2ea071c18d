"""State-space duality on a GPU, device code: every gradient of a chunk.

Both kernels start from the state h before the chunk and the gradient g of the state after it, which the kernels of
``triton_states.py`` compute. Squares of positions stay in registers, except one, which is summed over heads. Symbols as
there and in ``parallel.py``.
"""

import triton
import triton.language as tl

from seqlab.ops.selective_scan.triton_parts import sigmoid
from seqlab.ops.ssd.triton_outputs import decay_square, load_part, multiply
from seqlab.ops.ssd.triton_states import (
    SIZES,
    chosen,
    load_decays,
    load_numbers,
    load_taint,
    load_tile,
    paired,
    rows_of,
)


@triton.jit
def crossing(pairs, into, out, T: tl.constexpr):
    """For each t the sum over paths that pass t: pairs (T, T) from j < t to i >= t, ``into`` from the state before the
    chunk to i >= t, ``out`` from j < t to the state after it. Nothing is subtracted.

    Not as a matrix product: pairs have both signs, so that in bfloat16 their sum, and with it dA, would lose accuracy.
    """
    i = tl.arange(0, T)
    below = i[:, None] > i[None, :]
    ended = tl.cumsum(tl.where(below, pairs, 0.0), axis=0, reverse=True)  # [t, j], the sum over i >= t
    return tl.sum(tl.where(below, ended + out[None, :], into[None, :]), axis=1)


@triton.jit
def through_states(
    before_ptr, after_ptr, given_B, B, given_C, C, across, p, rest, P: tl.constexpr, N: tl.constexpr, BN: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """h C_i and g B_j (T, BP) in channels p, and ``across`` plus the sum of h times g. B and C as from ``multiply``."""
    T: tl.constexpr = C.shape[0]
    t, n = tl.arange(0, T), tl.arange(0, BN)
    read = tl.zeros([T, p.shape[0]], tl.float32)
    du = tl.zeros([T, p.shape[0]], tl.float32)
    for part in range(0, N, BN):
        h = load_tile(before_ptr, N, p, part + n, P, N, DOT)  # (BP, BN)
        g = load_tile(after_ptr, N, p, part + n, P, N, DOT)
        across += tl.sum(h.to(tl.float32) * g.to(tl.float32))
        C_part = load_part(C, given_C.pointer, given_C.stride, t, part + n, rest, N, BN, DOT)
        read = tl.dot(C_part, tl.trans(h), acc=read, input_precision=PRECISION)
        B_part = load_part(B, given_B.pointer, given_B.stride, t, part + n, rest, N, BN, DOT)
        du = tl.dot(B_part, tl.trans(g), acc=du, input_precision=PRECISION)
    return read, du, across


@triton.jit
def through_channels(
    given_x, given_dy, given_dx, before_ptr, after_ptr, given_B, B, given_C, C, scores, to_end, step, skip, finite,
    from_last, rest, P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, HAS_D: tl.constexpr,
    RESETS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write dx of a head. Returns sums over its channels: the gradient of scores (T, T), and (T,) that of dt in dt x,
    what enters a position from the state before the chunk and leaves for that after it; h times g; the share of dD.

    ``from_last``: which positions are in the sequence of the chunk's last one.
    """
    T: tl.constexpr = scores.shape[0]
    t = tl.arange(0, T)
    d_scores = tl.zeros([T, T], tl.float32)
    d_dt = tl.zeros([T], tl.float32)
    into = tl.zeros([T], tl.float32)
    out = tl.zeros([T], tl.float32)
    across, dD = 0.0, 0.0
    for block in range(0, P, BP):
        p = block + tl.arange(0, BP)
        read, du, across = through_states(
            before_ptr, after_ptr, given_B, B, given_C, C, across, p, rest, P, N, BN, DOT, PRECISION
        )
        dy = load_tile(given_dy.pointer, given_dy.stride, finite, p, rest, P, DOT)
        into += tl.sum(read * dy, axis=1)
        x = load_tile(given_x.pointer, given_x.stride, t, p, rest, P, DOT)
        d_scores = tl.dot(dy, tl.trans(x), acc=d_scores, input_precision=PRECISION)
        du = chosen(from_last[:, None], du * to_end[:, None], RESETS)
        out += tl.sum(x * du, axis=1)
        du = tl.dot(tl.trans(scores), dy, acc=du, input_precision=PRECISION)
        d_dt += tl.sum(x * du, axis=1)
        dx = du * step[:, None]
        if HAS_D:
            dx += skip * dy
            dD += tl.sum(x.to(tl.float32) * dy.to(tl.float32))
        place = given_dx.pointer + t[:, None] * given_dx.stride + p[None, :]
        tl.store(place, dx, mask=(t[:, None] < rest) & (p[None, :] < P))
    return d_scores, d_dt, into, out, across, dD


@triton.jit
def through_softplus(d_dt, raw_ptr, bias_ptr, head, inside, HAS_BIAS: tl.constexpr):
    """The gradient of dt before the bias and softplus (T,), which ``raw_ptr`` points to; not zero outside."""
    raw = tl.load(raw_ptr, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        raw += tl.load(bias_ptr + head)
    return d_dt * sigmoid(raw)


@triton.jit
def store_sums(sums_ptr, each, dA, dD, d_bias, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr):
    """A chunk's shares of the gradients of A, D and the bias, of A and the bias for each position (T,)."""
    tl.store(sums_ptr, tl.sum(dA))
    if HAS_D:
        tl.store(sums_ptr + each, dD)
    if HAS_BIAS:
        tl.store(sums_ptr + 2 * each, tl.sum(d_bias))


@triton.jit(do_not_specialize=SIZES)
def inputs_kernel(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr, number_ptr, step_ptr, high_ptr, low_ptr, before_ptr, after_ptr,
    dy_ptr, taint_ptr, dx_ptr, ddt_ptr, pairs_ptr, sums_ptr, L, H, K, HEADS,
    x_sb, x_st, x_sh, dt_sb, dt_st, dt_sh, B_sb, B_st, B_sg, C_sb, C_st, C_sg, dy_sb, dy_st, dy_sh,
    dx_sb, dx_st, dx_sh, ddt_sb, ddt_st, ddt_sh,
    P: tl.constexpr, N: tl.constexpr, T: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, SHARE: tl.constexpr,
    HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, RESETS: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dx and ddt of one chunk and SHARE heads of a group.

    Also ``pairs`` (Bt, K, H / SHARE, T, T), the gradient of C_i B_j summed over these heads, and ``sums``
    (3, Bt K, H), the chunk's share of the gradients of A, D and the bias.
    """
    chunk, batch = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    first_head = tl.program_id(1).to(tl.int64) * SHARE
    group = first_head // HEADS
    t, n, here = tl.arange(0, T), tl.arange(0, BN), chunk * T
    rest = L - here
    given_B = rows_of(B_ptr, batch, here, group, B_sb, B_st, B_sg)
    given_C = rows_of(C_ptr, batch, here, group, C_sb, C_st, C_sg)
    products, B, C = multiply(given_B.pointer, B_st, given_C.pointer, C_st, t, n, rest, N, BN, DOT, PRECISION)
    number, last = load_numbers(number_ptr, batch * K * T + here, T, RESETS)
    products = paired(products, 0.0, number, False, RESETS)
    d_products = tl.zeros([T, T], tl.float32)

    for head in range(first_head, first_head + SHARE):
        first = (batch * H + head) * K * T + here
        high, low, end_high, end_low = load_decays(high_ptr + first, low_ptr + first, T)
        step = tl.load(step_ptr + first + t)
        from_start = tl.exp2(high + low)
        to_end = tl.exp2((end_high - high) + (end_low - low))
        taint, finite = load_taint(taint_ptr, first, t, rest, RESETS)
        scores = paired(products * decay_square(high, low, T), taint[:, None], number, False, RESETS).to(DOT)
        skip = 0.0
        if HAS_D:
            skip += tl.load(D_ptr + head)
        states = ((batch * K + chunk) * H + head) * P * N
        d_scores, d_dt, into, out, across, dD = through_channels(
            rows_of(x_ptr, batch, here, head, x_sb, x_st, x_sh),
            rows_of(dy_ptr, batch, here, head, dy_sb, dy_st, dy_sh),
            rows_of(dx_ptr, batch, here, head, dx_sb, dx_st, dx_sh), before_ptr + states, after_ptr + states,
            given_B, B, given_C, C, scores, to_end, step, skip, finite, number == last, rest,
            P, N, BP, BN, HAS_D, RESETS, DOT, PRECISION,
        )  # fmt: skip
        d_scores = d_scores * decay_square(high, low, T) * step[None, :]
        d_scores = paired(d_scores, taint[:, None], number, False, RESETS)
        d_products += d_scores
        if RESETS:
            into += taint
            dD += tl.sum(taint)
        into = chosen(number == 0, into * from_start, RESETS)
        out = chosen(number == last, out * step, RESETS)
        d_log = crossing(d_scores * products, into, out, T)
        d_log += chosen(last == 0, across * tl.exp2(end_high + end_low), RESETS)
        d_dt += d_log * tl.load(A_ptr + head)
        if SOFTPLUS:
            raw_ptr = dt_ptr + batch * dt_sb + (here + t) * dt_st + head * dt_sh
            d_dt = through_softplus(d_dt, raw_ptr, bias_ptr, head, t < rest, HAS_BIAS)
        d_dt = tl.where(t < rest, d_dt, 0.0)
        tl.store(ddt_ptr + batch * ddt_sb + (here + t) * ddt_st + head * ddt_sh, d_dt, mask=t < rest)
        sums, each = sums_ptr + (batch * K + chunk) * H + head, tl.num_programs(2) * K * H
        store_sums(sums, each, d_log * step, dD, d_dt, HAS_D, HAS_BIAS)

    place = pairs_ptr + ((batch * K + chunk) * tl.num_programs(1) + tl.program_id(1)) * T * T
    tl.store(place + t[:, None] * T + t[None, :], d_products)


@triton.jit(do_not_specialize=SIZES)
def projections_kernel(
    x_ptr, other_ptr, number_ptr, step_ptr, high_ptr, low_ptr, states_ptr, pairs_ptr, taint_ptr, out_ptr, L, H, K,
    HEADS, x_sb, x_st, x_sh, other_sb, other_st, other_sg, out_sb, out_st, out_sg,
    P: tl.constexpr, N: tl.constexpr, T: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, SHARE: tl.constexpr,
    BACK: tl.constexpr, RESETS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dB of one chunk and group: the sum over its heads of exp(s_T - s_j) g^T u_j, and over i of pairs_ij C_i.

    BACK: dC, the sum over its heads of exp(s_i) h^T dy_i, and over j of pairs_ij B_j; x is dy then, other B and not C.
    """
    chunk, batch = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    group = tl.program_id(1).to(tl.int64)
    t, n, here = tl.arange(0, T), tl.arange(0, BN), chunk * T
    rest = L - here
    total = tl.zeros([T, BN], tl.float32)
    for head in range(group * HEADS, group * HEADS + HEADS):
        first = (batch * H + head) * K * T + here
        high, low, end_high, end_low = load_decays(high_ptr + first, low_ptr + first, T)
        if BACK:
            left = tl.exp2(high + low)
        else:
            left = tl.exp2((end_high - high) + (end_low - low)) * tl.load(step_ptr + first + t)
        states = states_ptr + ((batch * K + chunk) * H + head) * P * N
        for block in range(0, P, BP):
            p = block + tl.arange(0, BP)
            x = load_tile(x_ptr + batch * x_sb + here * x_st + head * x_sh, x_st, t, p, rest, P, DOT)
            state = load_tile(states, N, p, n, P, N, DOT)  # (BP, BN)
            total = tl.dot((x * left[:, None]).to(DOT), state, acc=total, input_precision=PRECISION)

    number, last = load_numbers(number_ptr, batch * K * T + here, T, RESETS)
    total = chosen((number == (0 if BACK else last))[:, None], total, RESETS)
    pairs = tl.zeros([T, T], tl.float32)
    shares = H // SHARE
    for share in range(group * HEADS // SHARE, (group + 1) * HEADS // SHARE):
        place = pairs_ptr + ((batch * K + chunk) * shares + share) * T * T
        if BACK:
            pairs += tl.load(place + t[:, None] * T + t[None, :])
        else:
            pairs += tl.load(place + t[None, :] * T + t[:, None])
    taint, finite = load_taint(taint_ptr, (batch * tl.num_programs(1) + group) * K * T + here, t, rest, RESETS)
    pairs = paired(pairs, taint[None, :], number, not BACK, RESETS)
    other_ptr += batch * other_sb + here * other_st + group * other_sg
    other = load_tile(other_ptr, other_st, finite, n, rest, N, DOT)
    total = tl.dot(pairs.to(DOT), other, acc=total, input_precision=PRECISION)
    place = out_ptr + batch * out_sb + here * out_st + group * out_sg + t[:, None] * out_st
    tl.store(place + n[None, :], total, mask=(t[:, None] < rest) & (n[None, :] < N))
