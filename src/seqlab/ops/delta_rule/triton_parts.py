"""The delta rule on a GPU, device code: what its kernels share.

Three kernels forward: what each chunk is before its state is known, the states from chunk to chunk, the outputs.
Backward the first two again, the gradients of the states from chunk to chunk, and the gradients of each chunk in two
parts, over values and over keys (``triton_chunks.py``, ``triton_states.py``, ``triton_gradients.py``).

A program has one chunk, or one sequence, of one head. No decay is divided by, and no exponent is a difference of sums
that could be large. With one decay a head the exponents between two positions are differences of sums in float64, kept
as two float32. With one a key channel the decay stands inside the sum over channels: positions i and j are then on
both sides of the middle of one block of 2, 4, 8, .. T positions, and the decay from j to i is that from j to the middle
times that from the middle to i, both at most 1, which scale q and k before their product. These exponents are sums of g
over the positions between, as a product with a square of zeros and ones (``to_middles``), whose transpose gives g's
gradient from those of the exponents. So nothing is subtracted there, either.

Symbols as in ``chunked.py``, and

    L, N, T     length, chunks, positions of a chunk
    c, t        key channels, positions of a chunk
    start, end  decay from the chunk's start up to and with a position, and from after it to the chunk's end; 0 where a
                sequence begins in between
    e           (T, K) the key that erases, its b: beta k, where ERASE is 1, or as given, where it is 2
    ek, qk      (T, T) sum_c e_ic k_jc e^(G_ic - G_jc) for i > j, its A, and with q_ic for i >= j
    X           (T, T) inverse of I + A
    W, U        X (start e) and X (w v), so that u = U - W S; where ERASE is 0, u = U = w v
    number      the sequence of a position, counted in its chunk; 0 is that of the state before the chunk
    DOT         the dtype that enters matrix products; sums are in float32

Scratch memory is laid out as the arguments are: (Bt, L, H, ..), squares (Bt, L, H, T); states (Bt, N, H, K, V).
"""

import triton
import triton.language as tl

from seqlab.ops.ssd.triton_states import load_tile

LOG2E = tl.constexpr(1.4426950408889634)
FARTHEST = tl.constexpr(3000.0)  # 2 to minus it is 0; larger steps would cost later ones their digits

SIZES = ["L", "H", "N", "PARTS", "seq_sb", "seq_st"]
"""Integers for which no kernel is recompiled when they are 1 or a multiple of 16."""


@triton.jit
def load_numbers(seq_ptr, batch, seq_sb, seq_st, here, L, T: tl.constexpr, RESETS: tl.constexpr):
    """The number of each of a chunk's positions and of the last, whose sequence is that of the state after it."""
    t = tl.arange(0, T)
    if RESETS:
        seq_ptr += batch * seq_sb
        inner = (here + t > 0) & (here + t < L)
        now = tl.load(seq_ptr + (here + t) * seq_st, mask=inner, other=0)
        before = tl.load(seq_ptr + (here + t - 1) * seq_st, mask=inner, other=0)
        number = tl.cumsum((now != before).to(tl.int32), axis=0)
        return number, tl.max(number, axis=0)
    else:
        return tl.zeros([T], tl.int32), 0


@triton.jit
def causal(number, RESETS: tl.constexpr):
    """Which pairs [i, j] have j <= i, in one sequence."""
    t = tl.arange(0, number.shape[0])
    pairs = t[:, None] >= t[None, :]
    if RESETS:
        pairs = pairs & (number[:, None] == number[None, :])
    return pairs


@triton.jit
def chosen(inside, values, RESETS: tl.constexpr):
    """values, but 0 where not inside."""
    if RESETS:
        return tl.where(inside, values, 0.0)
    else:
        return values


@triton.jit
def exponent(g):
    """g in float32 or float64 for powers of two, no step farther than matters."""
    g = g * LOG2E
    g = tl.where(g > -FARTHEST, g, -FARTHEST)
    return tl.where(g < FARTHEST, g, FARTHEST)


@triton.jit
def load_sums(g, rest, T: tl.constexpr, HAS_G: tl.constexpr):
    """With one decay a head: G of a chunk's positions as two float32; zeros without."""
    t = tl.arange(0, T)
    high = tl.zeros([T], tl.float32)
    low = tl.zeros([T], tl.float32)
    if HAS_G:
        steps = exponent(tl.load(g.pointer + t * g.stride, mask=t < rest, other=0.0).to(tl.float64))
        G = tl.cumsum(tl.where(t < rest, steps, 0.0), axis=0)
        high = G.to(tl.float32)
        low = (G - high.to(tl.float64)).to(tl.float32)
    return high, low


@triton.jit
def load_steps(g, c, rest, T: tl.constexpr, K: tl.constexpr):
    """With one decay a key channel: g (T, K) for powers of two."""
    t = tl.arange(0, T)
    inside = (t[:, None] < rest) & (c[None, :] < K)
    steps = tl.load(g.pointer + t[:, None] * g.stride + c[None, :], mask=inside, other=0.0).to(tl.float32)
    return tl.where(inside, exponent(steps), 0.0)


@triton.jit
def across_middles(level, T: tl.constexpr):
    """Which pairs [i, j] lie on both sides of the middle of a block of 2^(level + 1) positions, j before it."""
    half = tl.arange(0, T) >> level
    return ((half & 1) == 1)[:, None] & (half[:, None] == half[None, :] + 1)


@triton.jit
def to_middles(level, T: tl.constexpr, BACK: tl.constexpr):
    """The square [t, s] that sums what lies at positions s between t and the middle of its block; BACK: transposed."""
    t = tl.arange(0, T)
    half = t >> level
    if BACK:
        chosen = ((half & 1) == 1)[None, :] == (t[:, None] <= t[None, :])
    else:
        chosen = ((half & 1) == 1)[:, None] == (t[None, :] <= t[:, None])
    return tl.where((half[:, None] == half[None, :]) & chosen, 1.0, 0.0)


@triton.jit
def to_ends(T: tl.constexpr, BACK: tl.constexpr):
    """The squares [t, s] that sum from a chunk's start up to and with t, and from after t to its end; BACK: their
    transposes."""
    t = tl.arange(0, T)
    if BACK:
        earlier = t[:, None] <= t[None, :]
    else:
        earlier = t[None, :] <= t[:, None]
    return tl.where(earlier, 1.0, 0.0), tl.where(earlier, 0.0, 1.0)


@triton.jit
def decays_of_ends(g, number, last, RESETS: tl.constexpr, PRECISION: tl.constexpr):
    """start and end (T, K), from g (T, K)."""
    up_to, after = to_ends(g.shape[0], False)
    start = tl.exp2(tl.dot(up_to, g, input_precision=PRECISION))
    end = tl.exp2(tl.dot(after, g, input_precision=PRECISION))
    return chosen((number == 0)[:, None], start, RESETS), chosen((number == last)[:, None], end, RESETS)


@triton.jit
def load_beta(erase, t, rest, ERASE: tl.constexpr):
    """beta of a chunk's positions, where ERASE is 1."""
    if ERASE == 1:
        return tl.load(erase.pointer + t * erase.stride, mask=t < rest, other=0.0).to(tl.float32)
    else:
        return tl.zeros([t.shape[0]], tl.float32)


@triton.jit
def load_erasing(k, beta, erase, t, c, rest, K: tl.constexpr, ERASE: tl.constexpr):
    """e (T, BK) in key channels c, in float32 as k is."""
    if ERASE == 1:
        return k * beta[:, None]
    else:
        return load_tile(erase.pointer, erase.stride, t, c, rest, K, tl.float32)


@triton.jit
def load_decay(decay_ptr, c, K: tl.constexpr, BY_CHANNEL: tl.constexpr):
    """The decay of a whole chunk in key channels c."""
    if BY_CHANNEL:
        return tl.load(decay_ptr + c, mask=c < K, other=0.0)
    else:
        return tl.load(decay_ptr) + tl.zeros([c.shape[0]], tl.float32)


@triton.jit
def scaled_rows(rows, scale_ptr, t, rest, H, BY_CHANNEL: tl.constexpr):
    """rows (T, X) times start or end of their position; by channel the keys are scaled already."""
    if BY_CHANNEL:
        return rows
    else:
        return rows * tl.load(scale_ptr + t * H, mask=t < rest, other=0.0)[:, None]
