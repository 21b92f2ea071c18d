"""Mamba-3's block on a GPU, device code that its kernels share: tiles, decays, gates. Symbols as in ``triton.py``."""

import triton
import triton.language as tl

SIZES = ["L", "H", "K", "HEADS", "PER"]
"""Integers for which no kernel is recompiled when they are 1 or a multiple of 16."""


@triton.jit
def load_tile(pointer, stride, rows, n_rows, columns, WIDTH: tl.constexpr):
    """Columns of rows of WIDTH contiguous numbers, zeros outside."""
    inside = (rows[:, None] < n_rows) & (columns[None, :] < WIDTH)
    return tl.load(pointer + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def store_tile(pointer, stride, values, rows, n_rows, columns, WIDTH: tl.constexpr):
    """As ``load_tile``."""
    inside = (rows[:, None] < n_rows) & (columns[None, :] < WIDTH)
    tl.store(pointer + rows[:, None] * stride + columns[None, :], values, mask=inside)


@triton.jit
def load_decays(high_ptr, low_ptr, T: tl.constexpr):
    """The decay from a chunk's start to each position (T,), from each to the chunk's end, and over all of it."""
    t = tl.arange(0, T)
    high, low = tl.load(high_ptr + t), tl.load(low_ptr + t)
    end_high, end_low = tl.load(high_ptr + T - 1), tl.load(low_ptr + T - 1)
    return tl.exp2(high + low), tl.exp2((end_high - high) + (end_low - low)), tl.exp2(end_high + end_low)


@triton.jit
def decay_square(high_ptr, low_ptr, T: tl.constexpr):
    """E (T, T): the decay from j to i, 1 for j = i, 0 for j > i."""
    t = tl.arange(0, T)
    high, low = tl.load(high_ptr + t), tl.load(low_ptr + t)
    exponent = (high[:, None] - high[None, :]) + (low[:, None] - low[None, :])
    return tl.exp2(tl.where(t[:, None] >= t[None, :], exponent, float("-inf")))


@triton.jit
def entering(scale, gamma, T: tl.constexpr):
    """How much of the input of j (T, T) is in the state that i reads: gamma_j for i = j, else scale_j."""
    t = tl.arange(0, T)
    return tl.where(t[:, None] == t[None, :], gamma[None, :], scale[None, :])


@triton.jit
def silu(gate):
    """silu of a gate in float32, and its derivative."""
    sigma = 1.0 / (1.0 + tl.exp2(gate * -1.4426950408889634))
    return gate * sigma, sigma * (1.0 + gate * (1.0 - sigma))
