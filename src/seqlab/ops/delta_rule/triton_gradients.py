"""The delta rule on a GPU, device code: every gradient of a chunk.

From the state before the chunk and the gradient of the state after it, u and du. Symbols in ``triton_parts.py``, and

    f            X^T du, the gradient of w v - (start e) S, the right-hand side of (I + A) u
    d_qk, d_ek   gradients of the sums over channels; of those without decays where these are by head
"""

import triton
import triton.language as tl

from seqlab.ops.delta_rule.triton_parts import (
    SIZES,
    across_middles,
    causal,
    decays_of_ends,
    load_beta,
    load_decay,
    load_erasing,
    load_numbers,
    load_steps,
    load_sums,
    to_ends,
    to_middles,
)
from seqlab.ops.ssd.triton_backward import crossing
from seqlab.ops.ssd.triton_outputs import decay_square
from seqlab.ops.ssd.triton_states import load_tile, rows_of


@triton.jit
def steps_of_squares(d_qk, d_ek, qk_ptr, ek_ptr, first, stride, rest, ERASE: tl.constexpr):
    """By head, what the decays between two positions add to dg (T,), for gradients of qk and ek."""
    T: tl.constexpr = d_qk.shape[0]
    t = tl.arange(0, T)
    passing = d_qk * load_tile(qk_ptr + first, stride, t, t, rest, T, tl.float32)
    if ERASE > 0:
        passing += d_ek * load_tile(ek_ptr + first, stride, t, t, rest, T, tl.float32)
    none = tl.zeros([T], tl.float32)
    return crossing(passing, none, none, T)


@triton.jit(do_not_specialize=SIZES)
def values_kernel(
    v_ptr, erase_ptr, g_ptr, seq_ptr, ek_ptr, qk_ptr, X_ptr, u_ptr, du_ptr, dy_ptr, dv_ptr, f_ptr, d_ek_ptr, d_qk_ptr,
    d_beta_ptr, dg_ptr, PARTS, L, H, v_sb, v_st, v_sh, erase_sb, erase_st, erase_sh, g_sb, g_st, g_sh, seq_sb, seq_st,
    dy_sb, dy_st, dy_sh,
    V: tl.constexpr, T: tl.constexpr, BV: tl.constexpr, HAS_G: tl.constexpr, BY_CHANNEL: tl.constexpr,
    ERASE: tl.constexpr, WRITE: tl.constexpr, RESETS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dv of one chunk, f, d_qk and d_ek, and what values and pairs of positions add to the gradients of beta and g.

    d_beta, and by head dg, have PARTS + 1 shares (Bt, L, H), of which the last is written here. Where ERASE is 0, f is
    du, and not written.
    Grid (N, H, Bt).
    """
    chunk, batch, head = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    t, here = tl.arange(0, T), chunk * T
    rest, row = L - here, (batch * L + here) * H + head
    share = PARTS * tl.num_programs(2).to(tl.int64) * L * H + row + t * H
    given_v = rows_of(v_ptr, batch, here, head, v_sb, v_st, v_sh)
    given_dy = rows_of(dy_ptr, batch, here, head, dy_sb, dy_st, dy_sh)
    erase = rows_of(erase_ptr, batch, here, head, erase_sb, erase_st, erase_sh)
    if ERASE > 0:
        X = load_tile(X_ptr + row * T, H * T, t, t, rest, T, DOT)
    beta = load_beta(erase, t, rest, ERASE)
    fu = tl.zeros([T, T], tl.float32)
    d_qk = tl.zeros([T, T], tl.float32)
    d_beta = tl.zeros([T], tl.float32)
    for part in range(0, V, BV):
        n = part + tl.arange(0, BV)
        u = load_tile(u_ptr + row * V, H * V, t, n, rest, V, DOT)
        dy = load_tile(given_dy.pointer, given_dy.stride, t, n, rest, V, DOT)
        d_qk = tl.dot(dy, tl.trans(u), acc=d_qk, input_precision=PRECISION)
        dv = load_tile(du_ptr + row * V, H * V, t, n, rest, V, DOT)
        inside = (t[:, None] < rest) & (n[None, :] < V)
        place = row * V + t[:, None] * (H * V) + n[None, :]
        if ERASE > 0:
            f = tl.dot(tl.trans(X), dv, input_precision=PRECISION)  # (T, BV)
            tl.store(f_ptr + place, f, mask=inside)
            fu = tl.dot(f.to(DOT), tl.trans(u), acc=fu, input_precision=PRECISION)
            dv = f
            if ERASE == 1 and WRITE:
                d_beta += tl.sum(f * load_tile(given_v.pointer, given_v.stride, t, n, rest, V, tl.float32), axis=1)
                dv = beta[:, None] * f
        tl.store(dv_ptr + place, dv, mask=inside)

    number, _last = load_numbers(seq_ptr, batch, seq_sb, seq_st, here, L, T, RESETS)
    pairs = causal(number, RESETS)
    d_qk = tl.where(pairs, d_qk, 0.0)
    d_ek = tl.where(pairs & (t[:, None] > t[None, :]), -fu, 0.0)
    if ERASE == 1:
        tl.store(d_beta_ptr + share, d_beta, mask=t < rest)
    if HAS_G and not BY_CHANNEL:
        dg = steps_of_squares(d_qk, d_ek, qk_ptr, ek_ptr, row * T, H * T, rest, ERASE)
        tl.store(dg_ptr + share, dg, mask=t < rest)
        high, low = load_sums(rows_of(g_ptr, batch, here, head, g_sb, g_st, g_sh), rest, T, HAS_G)
        decays = decay_square(high, low, T)
        d_ek *= decays
        d_qk *= decays
    square = row * T + t[:, None] * (H * T) + t[None, :]
    tl.store(d_qk_ptr + square, d_qk, mask=t[:, None] < rest)
    if ERASE > 0:
        tl.store(d_ek_ptr + square, d_ek, mask=t[:, None] < rest)


@triton.jit
def through_states(
    before_ptr, after_ptr, u_ptr, f_ptr, given_dy, c, rest, H, T: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    BV: tl.constexpr, ERASE: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dy S^T, f S^T and u dS'^T (T, K) in key channels c, and the sum over values of S times dS' (K,)."""
    t = tl.arange(0, T)
    read = tl.zeros([T, c.shape[0]], tl.float32)
    recalled = tl.zeros([T, c.shape[0]], tl.float32)
    written = tl.zeros([T, c.shape[0]], tl.float32)
    across = tl.zeros([c.shape[0]], tl.float32)
    for part in range(0, V, BV):
        n = part + tl.arange(0, BV)
        S = load_tile(before_ptr, V, c, n, K, V, DOT)  # (BK, BV)
        dS = load_tile(after_ptr, V, c, n, K, V, DOT)
        across += tl.sum(S.to(tl.float32) * dS.to(tl.float32), axis=1)
        dy = load_tile(given_dy.pointer, given_dy.stride, t, n, rest, V, DOT)
        read = tl.dot(dy, tl.trans(S), acc=read, input_precision=PRECISION)
        if ERASE > 0:
            f = load_tile(f_ptr, H * V, t, n, rest, V, DOT)
            recalled = tl.dot(f, tl.trans(S), acc=recalled, input_precision=PRECISION)
        u = load_tile(u_ptr, H * V, t, n, rest, V, DOT)
        written = tl.dot(u, tl.trans(dS), acc=written, input_precision=PRECISION)
    return read, recalled, written, across


@triton.jit
def pairs_by_head(
    q, k, e, d_qk_ptr, d_ek_ptr, stride, rest, dq, dk, de, ERASE: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dq, dk and de (T, BK) with what pairs of positions add."""
    T: tl.constexpr = q.shape[0]
    t = tl.arange(0, T)
    d_qk = load_tile(d_qk_ptr, stride, t, t, rest, T, DOT)
    dq = tl.dot(d_qk, k.to(DOT), acc=dq, input_precision=PRECISION)
    dk = tl.dot(tl.trans(d_qk), q.to(DOT), acc=dk, input_precision=PRECISION)
    if ERASE > 0:
        d_ek = load_tile(d_ek_ptr, stride, t, t, rest, T, DOT)
        de = tl.dot(d_ek, k.to(DOT), acc=de, input_precision=PRECISION)
        dk = tl.dot(tl.trans(d_ek), e.to(DOT), acc=dk, input_precision=PRECISION)
    return dq, dk, de


@triton.jit
def pairs_by_channel(
    q, k, e, g, d_qk_ptr, d_ek_ptr, stride, rest, dq, dk, de, dg, LEVELS: tl.constexpr, ERASE: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq, dk, de and dg (T, BK) with what pairs of positions add. Squares are loaded level by level."""
    T: tl.constexpr = q.shape[0]
    t = tl.arange(0, T)
    with_itself = tl.load(d_qk_ptr + t * (stride + 1), mask=t < rest, other=0.0).to(tl.float32)[:, None]
    dq += with_itself * k
    dk += with_itself * q
    square = t[:, None] * stride + t[None, :]
    for level in range(LEVELS):
        pairs = across_middles(level, T) & (t[:, None] < rest)
        to_middle = tl.exp2(tl.dot(to_middles(level, T, False), g, input_precision=PRECISION))
        near_k = (k * to_middle).to(DOT)
        d_qk = tl.load(d_qk_ptr + square, mask=pairs, other=0.0)
        more_q = to_middle * tl.dot(d_qk, near_k, input_precision=PRECISION)
        more_k = tl.dot(tl.trans(d_qk), (q * to_middle).to(DOT), input_precision=PRECISION)
        passing = q * more_q
        if ERASE > 0:
            d_ek = tl.load(d_ek_ptr + square, mask=pairs, other=0.0)
            more_e = to_middle * tl.dot(d_ek, near_k, input_precision=PRECISION)
            more_k = tl.dot(tl.trans(d_ek), (e * to_middle).to(DOT), acc=more_k, input_precision=PRECISION)
            passing += e * more_e
            de += more_e
        more_k *= to_middle
        dg = tl.dot(to_middles(level, T, True), passing + k * more_k, acc=dg, input_precision=PRECISION)
        dq += more_q
        dk += more_k
    return dq, dk, de, dg


@triton.jit
def steps_by_channel(into, out, across, PRECISION: tl.constexpr):
    """What the states add to dg (T, BK), from paths of the state before the chunk into positions, from these out to the
    state after it, and across."""
    from_on, before = to_ends(into.shape[0], True)
    dg = tl.dot(from_on, into, input_precision=PRECISION)
    return tl.dot(before, out, acc=dg, input_precision=PRECISION) + across[None, :]


@triton.jit
def steps_by_head(into, out, across):
    """``steps_by_channel`` summed over the channels (T,)."""
    t = tl.arange(0, into.shape[0])
    into, out = tl.sum(into, axis=1), tl.sum(out, axis=1)
    passing = tl.where(t[:, None] > t[None, :], out[None, :], into[None, :])
    return tl.sum(passing, axis=1) + tl.sum(across)


@triton.jit(do_not_specialize=SIZES)
def keys_kernel(
    q_ptr, k_ptr, erase_ptr, g_ptr, seq_ptr, start_ptr, end_ptr, decay_ptr, before_ptr, after_ptr, u_ptr, f_ptr, dy_ptr,
    d_ek_ptr, d_qk_ptr, dq_ptr, dk_ptr, d_erase_ptr, dg_ptr,
    L, H, N, q_sb, q_st, q_sh, k_sb, k_st, k_sh, erase_sb, erase_st, erase_sh, g_sb, g_st, g_sh, seq_sb, seq_st,
    dy_sb, dy_st, dy_sh,
    K: tl.constexpr, V: tl.constexpr, T: tl.constexpr, LEVELS: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    HAS_G: tl.constexpr, BY_CHANNEL: tl.constexpr, ERASE: tl.constexpr, RESETS: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dq and dk of one chunk, BK of their channels, and what these add to the gradient of beta, or de, and dg.

    By channel dg and de (Bt, L, H, K) are whole; otherwise a share (Bt, L, H) is written. Grid (N, K / BK H, Bt).
    """
    chunk, batch = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    head, part = (tl.program_id(1) % H).to(tl.int64), (tl.program_id(1) // H).to(tl.int64)
    t, c, here = tl.arange(0, T), part * BK + tl.arange(0, BK), chunk * T
    rest, row, states = L - here, (batch * L + here) * H + head, (batch * N + chunk) * H + head
    dq, de, dk, across = through_states(
        before_ptr + states * K * V, after_ptr + states * K * V, u_ptr + row * V, f_ptr + row * V,
        rows_of(dy_ptr, batch, here, head, dy_sb, dy_st, dy_sh), c, rest, H, T, K, V, BV, ERASE, DOT, PRECISION,
    )  # fmt: skip
    across *= load_decay(decay_ptr + states * (K if BY_CHANNEL else 1), c, K, BY_CHANNEL)
    given_q = rows_of(q_ptr, batch, here, head, q_sb, q_st, q_sh)
    given_k = rows_of(k_ptr, batch, here, head, k_sb, k_st, k_sh)
    q = load_tile(given_q.pointer, given_q.stride, t, c, rest, K, tl.float32)
    k = load_tile(given_k.pointer, given_k.stride, t, c, rest, K, tl.float32)
    erase = rows_of(erase_ptr, batch, here, head, erase_sb, erase_st, erase_sh)
    beta = load_beta(erase, t, rest, ERASE)
    e = k
    if ERASE > 0:
        e = load_erasing(k, beta, erase, t, c, rest, K, ERASE)
    inside, place = (t[:, None] < rest) & (c[None, :] < K), row * K + t[:, None] * (H * K) + c[None, :]
    share = part * tl.num_programs(2) * L * H + row + t * H
    d_qk_ptr += row * T
    if ERASE > 0:
        d_ek_ptr += row * T
    if BY_CHANNEL:
        number, last = load_numbers(seq_ptr, batch, seq_sb, seq_st, here, L, T, RESETS)
        g = load_steps(rows_of(g_ptr, batch, here, head, g_sb, g_st, g_sh), c, rest, T, K)
        start, end = decays_of_ends(g, number, last, RESETS, PRECISION)
    else:
        start = tl.load(start_ptr + row + t * H, mask=t < rest, other=0.0)[:, None]
        end = tl.load(end_ptr + row + t * H, mask=t < rest, other=0.0)[:, None]
    dq, de, dk = dq * start, -de * start, dk * end
    into, out = q * dq, k * dk
    if ERASE > 0:
        into += e * de
    if BY_CHANNEL:
        dg = steps_by_channel(into, out, across, PRECISION)
        dq, dk, de, dg = pairs_by_channel(
            q, k, e, g, d_qk_ptr, d_ek_ptr, H * T, rest, dq, dk, de, dg, LEVELS, ERASE, DOT, PRECISION
        )
        tl.store(dg_ptr + place, dg, mask=inside)
    else:
        dq, dk, de = pairs_by_head(q, k, e, d_qk_ptr, d_ek_ptr, H * T, rest, dq, dk, de, ERASE, DOT, PRECISION)
        if HAS_G:
            tl.store(dg_ptr + share, steps_by_head(into, out, across), mask=t < rest)
    if ERASE == 1:
        tl.store(d_erase_ptr + share, tl.sum(k * de, axis=1), mask=t < rest)
        dk += beta[:, None] * de
    if ERASE == 2:
        tl.store(d_erase_ptr + place, de, mask=inside)
    tl.store(dq_ptr + place, dq, mask=inside)
    tl.store(dk_ptr + place, dk, mask=inside)
