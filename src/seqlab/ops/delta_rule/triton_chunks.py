"""The delta rule on a GPU, device code: what a chunk is before the state is known. Symbols in ``triton_parts.py``."""

import triton
import triton.language as tl

from seqlab.ops.delta_rule.triton_parts import (
    SIZES,
    across_middles,
    causal,
    chosen,
    decays_of_ends,
    load_beta,
    load_erasing,
    load_numbers,
    load_steps,
    load_sums,
    to_middles,
)
from seqlab.ops.ssd.triton_outputs import decay_square
from seqlab.ops.ssd.triton_states import load_tile, rows_of


@triton.jit
def inverse(A, LEVELS: tl.constexpr, PRECISION: tl.constexpr):
    """X, the inverse of I + A for A (T, T) strictly lower, from blocks of 2 positions to blocks of 4, and so on.

    Of a block's halves with inverses X1 and X2, and A21 between them, the inverse has -X2 A21 X1 there. (The product of
    I + A^2, I + A^4, .. would take half of the products, but its terms grow as 4^T where keys are alike.)
    """
    T: tl.constexpr = A.shape[0]
    t = tl.arange(0, T)
    X = tl.where(t[:, None] == t[None, :], 1.0, tl.where(across_middles(0, T), -A, 0.0))
    for level in range(1, LEVELS):
        crossing = tl.dot(X, tl.where(across_middles(level, T), A, 0.0), input_precision=PRECISION)
        X -= tl.dot(crossing, X, input_precision=PRECISION)
    return X


@triton.jit
def squares_by_head(
    q, k, erase, beta, high, low, rest, K: tl.constexpr, BK: tl.constexpr, ERASE: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """ek and qk (T, T), but for packing and the diagonal of ek."""
    T: tl.constexpr = high.shape[0]
    t = tl.arange(0, T)
    ek = tl.zeros([T, T], tl.float32)
    qk = tl.zeros([T, T], tl.float32)
    for part in range(0, K, BK):
        c = part + tl.arange(0, BK)
        k_part = load_tile(k.pointer, k.stride, t, c, rest, K, DOT)
        q_part = load_tile(q.pointer, q.stride, t, c, rest, K, DOT)
        qk = tl.dot(q_part, tl.trans(k_part), acc=qk, input_precision=PRECISION)
        if ERASE == 1:  # beta comes last
            ek = tl.dot(k_part, tl.trans(k_part), acc=ek, input_precision=PRECISION)
        if ERASE == 2:
            e = load_tile(erase.pointer, erase.stride, t, c, rest, K, DOT)
            ek = tl.dot(e, tl.trans(k_part), acc=ek, input_precision=PRECISION)
    decays = decay_square(high, low, T)
    if ERASE == 1:
        ek *= beta[:, None]
    return ek * decays, qk * decays


@triton.jit
def squares_by_channel(
    q, k, erase, beta, g, rest, T: tl.constexpr, K: tl.constexpr, BK: tl.constexpr, LEVELS: tl.constexpr,
    ERASE: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """ek and qk (T, T), but for packing."""
    t = tl.arange(0, T)
    ek = tl.zeros([T, T], tl.float32)
    qk = tl.zeros([T, T], tl.float32)
    for part in range(0, K, BK):
        c = part + tl.arange(0, BK)
        k_part = load_tile(k.pointer, k.stride, t, c, rest, K, tl.float32)
        q_part = load_tile(q.pointer, q.stride, t, c, rest, K, tl.float32)
        e = k_part
        if ERASE > 0:
            e = load_erasing(k_part, beta, erase, t, c, rest, K, ERASE)
        steps = load_steps(g, c, rest, T, K)
        qk += tl.where(t[:, None] == t[None, :], tl.sum(q_part * k_part, axis=1)[:, None], 0.0)
        for level in range(LEVELS):
            pairs = across_middles(level, T)
            to_middle = tl.exp2(tl.dot(to_middles(level, T, False), steps, input_precision=PRECISION))
            near_k = tl.trans((k_part * to_middle).to(DOT))
            qk += tl.where(pairs, tl.dot((q_part * to_middle).to(DOT), near_k, input_precision=PRECISION), 0.0)
            if ERASE > 0:
                ek += tl.where(pairs, tl.dot((e * to_middle).to(DOT), near_k, input_precision=PRECISION), 0.0)
    return ek, qk


@triton.jit
def store_decays(high, low, number, last, start_ptr, end_ptr, decay_ptr, stride, rest, RESETS: tl.constexpr):
    """By head start, end and the decay of the chunk, from G; returns start (T, 1)."""
    T: tl.constexpr = high.shape[0]
    t = tl.arange(0, T)
    end_high, end_low = tl.sum(tl.where(t == T - 1, high, 0.0)), tl.sum(tl.where(t == T - 1, low, 0.0))
    start = chosen(number == 0, tl.exp2(high + low), RESETS)
    end = chosen(number == last, tl.exp2((end_high - high) + (end_low - low)), RESETS)
    tl.store(start_ptr + t * stride, start, mask=t < rest)
    tl.store(end_ptr + t * stride, end, mask=t < rest)
    tl.store(decay_ptr, chosen(last == 0, tl.exp2(end_high + end_low), RESETS))
    return start[:, None]


@triton.jit
def store_keys(
    q, k, erase, beta, g, number, last, start, X, start_ptr, end_ptr, decay_ptr, W_ptr, row, H, rest,
    K: tl.constexpr, BK: tl.constexpr, BY_CHANNEL: tl.constexpr, ERASE: tl.constexpr, RESETS: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """W, by head for start (T, 1); by channel start q, end k and the decay of the chunk, too."""
    t = tl.arange(0, X.shape[0])
    for part in range(0, K, BK):
        c = part + tl.arange(0, BK)
        inside = (t[:, None] < rest) & (c[None, :] < K)
        place = row * K + t[:, None] * (H * K) + c[None, :]
        k_part = load_tile(k.pointer, k.stride, t, c, rest, K, tl.float32)
        if BY_CHANNEL:
            steps = load_steps(g, c, rest, X.shape[0], K)
            to_start, to_end = decays_of_ends(steps, number, last, RESETS, PRECISION)
            q_part = load_tile(q.pointer, q.stride, t, c, rest, K, tl.float32)
            tl.store(start_ptr + place, q_part * to_start, mask=inside)
            tl.store(end_ptr + place, k_part * to_end, mask=inside)
            tl.store(decay_ptr + c, chosen(last == 0, tl.exp2(tl.sum(steps, axis=0)), RESETS), mask=c < K)
        else:
            to_start = start
        if ERASE > 0:
            e = load_erasing(k_part, beta, erase, t, c, rest, K, ERASE)
            tl.store(W_ptr + place, tl.dot(X, (e * to_start).to(DOT), input_precision=PRECISION), mask=inside)


@triton.jit
def store_values(
    v, X, U_ptr, row, H, rest, V: tl.constexpr, BV: tl.constexpr, ERASE: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """U, for X, its columns times w where this is not in v."""
    t = tl.arange(0, X.shape[0])
    for part in range(0, V, BV):
        n = part + tl.arange(0, BV)
        U = load_tile(v.pointer, v.stride, t, n, rest, V, DOT)
        if ERASE > 0:
            U = tl.dot(X, U, input_precision=PRECISION)
        place = row * V + t[:, None] * (H * V) + n[None, :]
        tl.store(U_ptr + place, U, mask=(t[:, None] < rest) & (n[None, :] < V))


@triton.jit(do_not_specialize=SIZES)
def chunks_kernel(
    q_ptr, k_ptr, v_ptr, erase_ptr, g_ptr, seq_ptr, start_ptr, end_ptr, decay_ptr, ek_ptr, qk_ptr, X_ptr, W_ptr, U_ptr,
    L, H, N, q_sb, q_st, q_sh, k_sb, k_st, k_sh, v_sb, v_st, v_sh, erase_sb, erase_st, erase_sh, g_sb, g_st, g_sh,
    seq_sb, seq_st,
    K: tl.constexpr, V: tl.constexpr, T: tl.constexpr, LEVELS: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    HAS_G: tl.constexpr, BY_CHANNEL: tl.constexpr, ERASE: tl.constexpr, WRITE: tl.constexpr, RESETS: tl.constexpr,
    BACK: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """qk, W and U of one chunk and its decays; BACK: ek and X, too. WRITE: beta is w.

    start and end (Bt, L, H); by channel start q and end k (Bt, L, H, K) are written in their place. Grid (N, H, Bt).
    """
    chunk, batch, head = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    t, here = tl.arange(0, T), chunk * T
    rest = L - here
    row = (batch * L + here) * H + head
    q = rows_of(q_ptr, batch, here, head, q_sb, q_st, q_sh)
    k = rows_of(k_ptr, batch, here, head, k_sb, k_st, k_sh)
    v = rows_of(v_ptr, batch, here, head, v_sb, v_st, v_sh)
    erase = rows_of(erase_ptr, batch, here, head, erase_sb, erase_st, erase_sh)
    g = rows_of(g_ptr, batch, here, head, g_sb, g_st, g_sh)
    decay_ptr += ((batch * N + chunk) * H + head) * (K if BY_CHANNEL else 1)
    number, last = load_numbers(seq_ptr, batch, seq_sb, seq_st, here, L, T, RESETS)
    beta = load_beta(erase, t, rest, ERASE)
    if BY_CHANNEL:
        ek, qk = squares_by_channel(q, k, erase, beta, g, rest, T, K, BK, LEVELS, ERASE, DOT, PRECISION)
        start = None  # of each channel, which are not all at hand
    else:
        high, low = load_sums(g, rest, T, HAS_G)
        ek, qk = squares_by_head(q, k, erase, beta, high, low, rest, K, BK, ERASE, DOT, PRECISION)
        start = store_decays(high, low, number, last, start_ptr + row, end_ptr + row, decay_ptr, H, rest, RESETS)
    pairs = causal(number, RESETS)
    square = row * T + t[:, None] * (H * T) + t[None, :]
    tl.store(qk_ptr + square, tl.where(pairs, qk, 0.0), mask=t[:, None] < rest)
    X = ek
    if ERASE > 0:
        ek = tl.where(pairs & (t[:, None] > t[None, :]), ek, 0.0)
        X = inverse(ek, LEVELS, PRECISION)
    if BACK and ERASE > 0:
        tl.store(ek_ptr + square, ek, mask=t[:, None] < rest)
        tl.store(X_ptr + square, X, mask=t[:, None] < rest)

    by_value = X
    if ERASE == 1 and WRITE:
        by_value = X * beta[None, :]
    by_value, X = by_value.to(DOT), X.to(DOT)
    if BY_CHANNEL or ERASE > 0:
        store_keys(
            q, k, erase, beta, g, number, last, start, X, start_ptr, end_ptr, decay_ptr, W_ptr, row, H, rest,
            K, BK, BY_CHANNEL, ERASE, RESETS, DOT, PRECISION,
        )  # fmt: skip
    store_values(v, by_value, U_ptr, row, H, rest, V, BV, ERASE, DOT, PRECISION)
