"""Mamba-3's block on a GPU, device code that its kernels share: angles, the maps of a chunk, tiles.

Symbols as in ``triton.py``. Maps and states are held as two tiles, of channels 2 i and of channels 2 i + 1: to turn them
takes no exchange between channels, and products over channels do not ask for their order.

Angles are whole numbers of 2^-32 turns in an int32. Sums of these are exact modulo a turn, whatever their order, so that
the angle of a position is as precise after a million steps as after one.
"""

import triton
import triton.language as tl

TURN = tl.constexpr(4294967296.0)
RADIANS = tl.constexpr(1.4629180792671596e-9)  # 2 pi / TURN
EIGHTH = tl.constexpr(1 << 29)

SIZES = ["L", "H", "K", "HEADS", "PER"]
"""Integers for which no kernel is recompiled when they are 1 or a multiple of 16."""


@triton.jit
def tanh(x):
    """To float32's precision for every x, however small: polynomial of the Cephes library below 0.625."""
    q = x * x
    series = 2.06390887954e-2 + q * -5.70498872745e-3
    series = -5.37397155531e-2 + q * series
    series = 1.33314422036e-1 + q * series
    series = -3.33332819422e-1 + q * series
    e = tl.exp2(tl.abs(x) * -2.8853900817779268)  # exp(-2 |x|)
    large = (1.0 - e) / (1.0 + e)
    return tl.where(tl.abs(x) < 0.625, x + x * q * series, tl.where(x < 0, -large, large))


@triton.jit
def turned(delta, tanh_angle):
    """How far each position (T,) turns each pair (T, BS), as a whole number of 2^-32 turns."""
    turns = delta[:, None] * (0.5 * tanh_angle)
    turns -= tl.floor(turns + 0.5)  # exact
    return tl.floor(turns * TURN + 0.5).to(tl.int32)


@triton.jit
def cos_sin(turns):
    """Cosine and sine of whole numbers of 2^-32 turns, polynomials of the Cephes library on an eighth of a turn."""
    quarter = (turns + EIGHTH) >> 30
    x = (turns - (quarter << 30)).to(tl.float32) * RADIANS
    q = x * x
    sin = 8.3321608736e-3 + q * -1.9515295891e-4
    sin = x + x * q * (-1.6666654611e-1 + q * sin)
    cos = -1.388731625493765e-3 + q * 2.443315711809948e-5
    cos = 1.0 - 0.5 * q + q * q * (4.166664568298827e-2 + q * cos)
    crosswise = (quarter & 1) != 0
    x, y = tl.where(crosswise, sin, cos), tl.where(crosswise, cos, sin)
    return tl.where(((quarter + 1) & 2) != 0, -x, x), tl.where((quarter & 2) != 0, -y, y)


@triton.jit
def load_tanh(angle_ptr, stride, t, rest, first, S: tl.constexpr, BS: tl.constexpr):
    """tanh of the angles of positions t (T,) and of BS pairs from ``first`` on, 0 for pairs that are not turned."""
    i = first + tl.arange(0, BS)
    inside = (t[:, None] < rest) & (i[None, :] < S)
    return tanh(tl.load(angle_ptr + t[:, None] * stride + i[None, :], mask=inside, other=0.0).to(tl.float32))


@triton.jit
def rotation(delta, tanh_angle, turns_ptr, first, S: tl.constexpr, BS: tl.constexpr):
    """Cosine and sine (T, BS) of a chunk's angles, from ``turns`` before it."""
    i = first + tl.arange(0, BS)
    start = tl.load(turns_ptr + i, mask=i < S, other=0)
    return cos_sin(start[None, :] + tl.cumsum(turned(delta, tanh_angle), axis=0))


@triton.jit
def load_columns(pointer, first, N: tl.constexpr, BS: tl.constexpr):
    """Columns 2 i and 2 i + 1 of one row, BS pairs from ``first`` on."""
    n = 2 * (first + tl.arange(0, BS))
    even = tl.load(pointer + n, mask=n < N, other=0.0)
    odd = tl.load(pointer + n + 1, mask=n + 1 < N, other=0.0)
    return even[None, :], odd[None, :]


@triton.jit
def load_map(
    pointer, stride, root, weight_ptr, bias_ptr, t, rest, first, N: tl.constexpr, BS: tl.constexpr, T: tl.constexpr
):  # fmt: skip
    """B or C of a chunk, normalised and with a head's bias, before they are turned; (T, BS) each."""
    n = 2 * first + tl.arange(0, 2 * BS)
    inside = (t[:, None] < rest) & (n[None, :] < N)
    tile = tl.load(pointer + t[:, None] * stride + n[None, :], mask=inside, other=0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(tile * root[:, None], [T, BS, 2]))
    even_weight, odd_weight = load_columns(weight_ptr, first, N, BS)
    even_bias, odd_bias = load_columns(bias_ptr, first, N, BS)
    return even * even_weight + even_bias, odd * odd_weight + odd_bias


@triton.jit
def load_turned(
    pointer, stride, root, weight_ptr, bias_ptr, cos, sin, t, rest, first, N: tl.constexpr, BS: tl.constexpr,
    T: tl.constexpr,
):  # fmt: skip
    """k or q of a chunk in float32, (T, BS) each."""
    even, odd = load_map(pointer, stride, root, weight_ptr, bias_ptr, t, rest, first, N, BS, T)
    return even * cos - odd * sin, even * sin + odd * cos


@triton.jit
def load_rows(pointer, stride, t, rest, P: tl.constexpr, BP: tl.constexpr):
    """Rows of P contiguous numbers, zeros outside (T, BP)."""
    p = tl.arange(0, BP)
    inside = (t[:, None] < rest) & (p[None, :] < P)
    return tl.load(pointer + t[:, None] * stride + p[None, :], mask=inside, other=0.0)


@triton.jit
def store_rows(pointer, stride, values, t, rest, P: tl.constexpr, BP: tl.constexpr):
    """As ``load_rows``."""
    p = tl.arange(0, BP)
    inside = (t[:, None] < rest) & (p[None, :] < P)
    tl.store(pointer + t[:, None] * stride + p[None, :], values, mask=inside)


@triton.jit
def state_tile(first, P: tl.constexpr, NP: tl.constexpr, BP: tl.constexpr, BS: tl.constexpr):
    """Where the even channels of a state (2, P, NP) are, and which of the tile (BP, BS) exist."""
    p, i = tl.arange(0, BP), first + tl.arange(0, BS)
    return p[:, None] * NP + i[None, :], (p[:, None] < P) & (i[None, :] < NP)


@triton.jit
def load_state(pointer, first, P: tl.constexpr, NP: tl.constexpr, BP: tl.constexpr, BS: tl.constexpr):
    """Even and odd channels of a state (2, P, NP), (BP, BS) each."""
    place, inside = state_tile(first, P, NP, BP, BS)
    even = tl.load(pointer + place, mask=inside, other=0.0)
    return even, tl.load(pointer + P * NP + place, mask=inside, other=0.0)


@triton.jit
def store_state(pointer, even, odd, first, P: tl.constexpr, NP: tl.constexpr, BP: tl.constexpr, BS: tl.constexpr):
    """As ``load_state``."""
    place, inside = state_tile(first, P, NP, BP, BS)
    tl.store(pointer + place, even, mask=inside)
    tl.store(pointer + P * NP + place, odd, mask=inside)


@triton.jit
def load_decays(high_ptr, low_ptr, T: tl.constexpr):
    """2 to the sums of logarithms of decays up to each position (T,), from each to the chunk's end, and over all."""
    t = tl.arange(0, T)
    high, low = tl.load(high_ptr + t), tl.load(low_ptr + t)
    end_high, end_low = tl.load(high_ptr + T - 1), tl.load(low_ptr + T - 1)
    return tl.exp2(high + low), tl.exp2((end_high - high) + (end_low - low)), tl.exp2(end_high + end_low)


@triton.jit
def below_square(high_ptr, low_ptr, T: tl.constexpr):
    """E (T, T): the decay from j to i, 0 for j >= i."""
    t = tl.arange(0, T)
    high, low = tl.load(high_ptr + t), tl.load(low_ptr + t)
    exponent = (high[:, None] - high[None, :]) + (low[:, None] - low[None, :])
    return tl.exp2(tl.where(t[:, None] > t[None, :], exponent, float("-inf")))


@triton.jit
def silu(gate):
    """silu of a gate in float32, and its derivative."""
    sigma = 1.0 / (1.0 + tl.exp2(gate * -1.4426950408889634))
    return gate * sigma, sigma * (1.0 + gate * (1.0 - sigma))
