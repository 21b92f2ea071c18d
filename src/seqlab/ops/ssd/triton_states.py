"""State-space duality on a GPU, device code: step sizes and decays, the states of chunks, the recurrence over chunks.

Three kernels that both directions use. The backward recurrence of the state's gradient is the forward recurrence of the
state with other operands: g before a chunk is its decay times g after it, plus the sum over positions of
exp(s_i) dy_i C_i^T.

Nothing passes from one packed sequence to another: such terms are replaced by 0, never multiplied by 0 (``chosen``,
``paired``). Matrix products over a chunk's positions do multiply by 0: a row that is not finite enters them as zeros,
and its products become NaN in its own sequence.

Symbols as in ``parallel.py``, and

    T             positions of a chunk
    s             log2(e) times its s, stored as two float32, ``high`` + ``low``: differences are then exact where it
                  matters, since step sizes of all magnitudes may occur in one chunk
    K, LP         chunks; K T, the length with the last chunk filled up
    number        the sequence of a position, counted in its chunk; 0 is that of the state before the chunk
    taint         0, or NaN where a row of x, dy, B or C is not finite
    DOT           the dtype that enters matrix products; sums are in float32

Scratch memory: steps, high and low (Bt, H, LP); states of chunks (Bt, K, H, P, N); for packed sequences (RESETS)
numbers (Bt, LP) and taints (Bt, H, LP) and (Bt, G, LP).
"""

from typing import NamedTuple

import triton
import triton.language as tl

from seqlab.ops.selective_scan.triton_parts import softplus

LOG2E = tl.constexpr(1.4426950408889634)
FARTHEST = tl.constexpr(3000.0)  # 2 to minus it is 0; larger steps would cost later ones their digits
LARGEST = tl.constexpr(3.3e38)  # beyond, float32 may become infinite where a product splits it

SIZES = ["L", "H", "K", "HEADS", "dt_sb", "dt_st", "dt_sh", "ddt_sb", "ddt_st", "ddt_sh", "seq_sb", "seq_st"]
"""Integers for which no kernel is recompiled when they are 1 or a multiple of 16."""


class Rows(NamedTuple):
    """Contiguous numbers of each position in memory, from the first position of a chunk on."""

    pointer: tl.tensor
    stride: tl.tensor  # from one position to the next


@triton.jit
def rows_of(pointer, batch, here, head, along_batch, along_length, along_heads):
    """The rows of a head, or a group, from position ``here`` of a sequence on; of no use where pointer is None."""
    if pointer is None:  # which a function cannot return, up to Triton 3.6
        return Rows(along_length, along_length)
    else:
        return Rows(pointer + batch * along_batch + here * along_length + head * along_heads, along_length)


@triton.jit
def load_tile(pointer, stride, rows, columns, n_rows, WIDTH: tl.constexpr, DOT: tl.constexpr):
    """Rows of WIDTH contiguous numbers, zeros outside, in DOT."""
    inside = (rows[:, None] < n_rows) & (columns[None, :] < WIDTH)
    place = pointer + rows[:, None] * stride + columns[None, :]
    return tl.load(place, mask=inside, other=0.0).to(DOT)


@triton.jit
def load_decays(high_ptr, low_ptr, T: tl.constexpr):
    """s of a chunk's positions and its last one, each as two numbers."""
    t = tl.arange(0, T)
    high, low = tl.load(high_ptr + t), tl.load(low_ptr + t)
    return high, low, tl.load(high_ptr + T - 1), tl.load(low_ptr + T - 1)


@triton.jit
def load_numbers(number_ptr, first, T: tl.constexpr, RESETS: tl.constexpr):
    """The number of a chunk's positions and of the last one, whose sequence is that of the state after the chunk."""
    if RESETS:
        return tl.load(number_ptr + first + tl.arange(0, T)), tl.load(number_ptr + first + T - 1)
    else:
        return tl.zeros([T], tl.int32), 0


@triton.jit
def chosen(inside, values, RESETS: tl.constexpr):
    """values, but 0 where not inside: another sequence's may be infinite or NaN, whose products with 0 are NaN."""
    if RESETS:
        return tl.where(inside, values, 0.0).to(values.dtype)
    else:
        return values


@triton.jit
def paired(squares, taint, number, BACK: tl.constexpr, RESETS: tl.constexpr):
    """squares (T, T), 0 where a column's position is in another sequence than the row's, or later (BACK: earlier).

    Elsewhere ``taint`` is added: NaN from a row or column of the same sequence that is not finite.
    """
    if RESETS:
        i = tl.arange(0, number.shape[0])
        beyond = i[:, None] > i[None, :] if BACK else i[:, None] < i[None, :]
        return tl.where(beyond | (number[:, None] != number[None, :]), 0.0, squares + taint)
    else:
        return squares


@triton.jit
def store_taint(taint_ptr, rows):
    """Write NaN for the rows (T, X) that are not finite; the others keep 0."""
    finite = tl.abs(rows.to(tl.float32)) < LARGEST
    spoilt = tl.min(finite.to(tl.int32), axis=1) == 0
    tl.store(taint_ptr + tl.arange(0, rows.shape[0]), float("nan"), mask=spoilt)


@triton.jit
def load_taint(taint_ptr, first, rows, n_rows, RESETS: tl.constexpr):
    """The taint of a chunk's rows, and the row indices, past the end for rows not finite, so that they load as 0."""
    if RESETS:
        taint = tl.load(taint_ptr + first + rows)
        return taint, tl.where(taint == 0.0, rows, n_rows)
    else:
        return tl.zeros([rows.shape[0]], tl.float32), rows


@triton.jit(do_not_specialize=SIZES)
def decays_kernel(
    dt_ptr, A_ptr, bias_ptr, seq_ptr, number_ptr, step_ptr, high_ptr, low_ptr, L, H, K,
    dt_sb, dt_st, dt_sh, seq_sb, seq_st,
    T: tl.constexpr, BH: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, RESETS: tl.constexpr,
):  # fmt: skip
    """Step sizes, s and numbers of one chunk, BH heads at a time. The sums are in float64.

    A step that is not finite makes its own products NaN; in s it would reach other sequences, so it is clamped there.
    """
    chunk, batch = tl.program_id(0), tl.program_id(2).to(tl.int64)
    h = tl.program_id(1).to(tl.int64) * BH + tl.arange(0, BH)
    t = chunk * T + tl.arange(0, T)
    inside = (t[:, None] < L) & (h[None, :] < H)
    place = dt_ptr + batch * dt_sb + t[:, None].to(tl.int64) * dt_st + h[None, :] * dt_sh
    dt = tl.load(place, mask=inside, other=0.0).to(tl.float32)  # (T, BH)
    if HAS_BIAS:
        dt += tl.load(bias_ptr + h, mask=h < H, other=0.0)[None, :]
    if SOFTPLUS:
        dt = softplus(dt)
    dt = tl.where(inside, dt, 0.0)

    A2 = tl.load(A_ptr + h, mask=h < H, other=0.0).to(tl.float64) * LOG2E
    log_decay = dt.to(tl.float64) * A2[None, :]
    if RESETS:
        seq_ptr += batch * seq_sb
        later = (t > 0) & (t < L)
        now = tl.load(seq_ptr + t.to(tl.int64) * seq_st, mask=later, other=0)
        before = tl.load(seq_ptr + (t - 1).to(tl.int64) * seq_st, mask=later, other=0)
        tl.store(number_ptr + batch * K * T + t, tl.cumsum((now != before).to(tl.int32), axis=0))
        log_decay = tl.where(log_decay > -FARTHEST, log_decay, -FARTHEST)  # NaN too
        log_decay = tl.where(log_decay < FARTHEST, log_decay, FARTHEST)
    s = tl.cumsum(log_decay, axis=0)
    high = s.to(tl.float32)
    out = (batch * H + h[None, :]) * K * T + t[:, None]  # (T, BH) into (Bt, H, LP)
    present = (h < H)[None, :] & (t[:, None] >= 0)
    tl.store(step_ptr + out, dt, mask=present)
    tl.store(high_ptr + out, high, mask=present)
    tl.store(low_ptr + out, (s - high.to(tl.float64)).to(tl.float32), mask=present)


@triton.jit(do_not_specialize=SIZES)
def states_kernel(
    x_ptr, B_ptr, number_ptr, step_ptr, high_ptr, low_ptr, states_ptr, x_taint_ptr, B_taint_ptr, L, H, K, HEADS,
    x_sb, x_st, x_sh, B_sb, B_st, B_sg,
    P: tl.constexpr, N: tl.constexpr, T: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, BACK: tl.constexpr,
    RESETS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What one chunk adds to the state, a tile of (BP, BN): the sum over j of exp(s_T - s_j) u_j B_j^T.

    BACK: to the gradient of the state before it, the sum over i of exp(s_i) dy_i C_i^T; x is dy then and B is C.
    HEADS share a group. Grid (K, tiles H, Bt).
    """
    chunk, batch = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    tile, head = tl.program_id(1) // H, (tl.program_id(1) % H).to(tl.int64)
    p = tile // tl.cdiv(N, BN) * BP + tl.arange(0, BP)
    n = tile % tl.cdiv(N, BN) * BN + tl.arange(0, BN)
    t = tl.arange(0, T)
    first = (batch * H + head) * K * T + chunk * T
    high, low, end_high, end_low = load_decays(high_ptr + first, low_ptr + first, T)
    if BACK:
        left = tl.exp2(high + low)
    else:
        left = tl.exp2((end_high - high) + (end_low - low)) * tl.load(step_ptr + first + t)

    here = chunk * T
    x_ptr += batch * x_sb + here * x_st + head * x_sh
    B_ptr += batch * B_sb + here * B_st + head // HEADS * B_sg
    x = load_tile(x_ptr, x_st, t, p, L - here, P, tl.float32)  # (T, BP)
    B = load_tile(B_ptr, B_st, t, n, L - here, N, DOT)  # (T, BN)
    if RESETS:
        store_taint(x_taint_ptr + first, x)
        store_taint(B_taint_ptr + (batch * (H // HEADS) + head // HEADS) * K * T + here, B)
    number, last = load_numbers(number_ptr, batch * K * T + here, T, RESETS)
    inside = (number == (0 if BACK else last))[:, None]
    x, B = chosen(inside, x * left[:, None], RESETS).to(DOT), chosen(inside, B, RESETS)
    added = tl.dot(tl.trans(x), B, input_precision=PRECISION)  # (BP, BN)
    out = states_ptr + ((batch * K + chunk) * H + head) * P * N + p[:, None] * N + n[None, :]
    tl.store(out, added, mask=(p[:, None] < P) & (n[None, :] < N))


@triton.jit(do_not_specialize=SIZES)
def walk_kernel(
    states_ptr, number_ptr, high_ptr, low_ptr, start_ptr, before_ptr, final_ptr, H, K,
    SIZE: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, AHEAD: tl.constexpr, HAS_START: tl.constexpr,
    BACK: tl.constexpr, RESETS: tl.constexpr,
):  # fmt: skip
    """The states before each chunk (BACK: after it) from what chunks add, and the last: BLOCK of SIZE = P N numbers.

    AHEAD chunks are loaded at once; otherwise each chunk would wait for memory.
    """
    batch, head = tl.program_id(2).to(tl.int64), tl.program_id(1)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    whole = (batch * H + head) * SIZE + place
    state = tl.zeros([BLOCK], tl.float32)
    if HAS_START:
        state += tl.load(start_ptr + whole, mask=place < SIZE, other=0.0)
    ends = (batch * H + head) * K * T + T - 1
    for block in range(0, K, AHEAD):
        added, decays, carries = (), (), ()
        for i in tl.static_range(AHEAD):
            chunk = K - 1 - block - i if BACK else block + i
            present = K > block + i
            inside = place < tl.where(present, SIZE, 0)
            at = ((batch * K + chunk) * H + head) * SIZE + place
            added = added + (tl.load(states_ptr + at, mask=inside, other=0.0),)
            end = ends + chunk * T
            decays = decays + (
                tl.load(high_ptr + end, mask=present, other=0.0) + tl.load(low_ptr + end, mask=present, other=0.0),
            )
            carry = present
            if RESETS:
                carry = tl.load(number_ptr + (batch * K + chunk) * T + T - 1, mask=present, other=0) == 0
            carries = carries + (carry,)
        for i in tl.static_range(AHEAD):
            chunk = K - 1 - block - i if BACK else block + i
            at = ((batch * K + chunk) * H + head) * SIZE + place
            tl.store(before_ptr + at, state, mask=place < tl.where(K > block + i, SIZE, 0))
            state = chosen(carries[i], tl.exp2(decays[i]) * state, RESETS) + added[i]
    tl.store(final_ptr + whole, state, mask=place < SIZE)
