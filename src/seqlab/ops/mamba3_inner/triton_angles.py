"""Mamba-3's block on a GPU, device code: angles, keys and queries.

Angles are whole numbers of 2^-32 turns in an int32. Sums of these are exact modulo a turn, whatever their order, so
the angle of a position is as precise after a million steps as after one. Symbols as in ``triton.py``.
"""

import triton
import triton.language as tl

from seqlab.ops.mamba3_inner.triton_parts import SIZES, load_tile

RADIANS = tl.constexpr(1.4629180792671596e-9)  # 2 pi / 2^32
EIGHTH = tl.constexpr(1 << 29)
UNITS = tl.constexpr(3145728.0)  # from 2^21 to 2^22 the last bit of a float64 is 2^-31, half of 2^-32 turns


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
    """How far, delta tanh(angle) / 2 turns, each position (T,) turns each pair (T, BS), for a delta below 2^20."""
    twice = (delta[:, None] * tanh_angle).to(tl.float64)
    return (twice + UNITS).to(tl.int64, bitcast=True).to(tl.int32)  # the last 32 bits, of any sign


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


@triton.jit(do_not_specialize=SIZES)
def rows_kernel(
    maps_ptr, angle_ptr, root_ptr, tanh_ptr, eps, L, K, sb, st,
    N: tl.constexpr, S: tl.constexpr, T: tl.constexpr, BN: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """1 / sqrt(mean square + eps) of the rows of B and C (Bt, 2 G, LP), and tanh of the angles (Bt, LP, S).

    Grid (K, 2 G, Bt).
    """
    chunk, batch, which = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64), tl.program_id(1)
    t, here = tl.arange(0, T), chunk * T
    rows, rest = batch * sb + here * st, L - here
    row = load_tile(maps_ptr + rows + which * N, st, t, rest, tl.arange(0, BN), N).to(tl.float32)
    root = tl.rsqrt(tl.sum(row * row, axis=1) / N + eps)
    tl.store(root_ptr + (batch * tl.num_programs(1) + which) * K * T + here + t, root)
    if which == 0:
        i = tl.arange(0, BS)
        angle = load_tile(angle_ptr + rows, st, t, rest, i, S).to(tl.float32)
        place = tanh_ptr + (batch * K * T + here + t[:, None]) * S + i[None, :]
        tl.store(place, tanh(angle), mask=(i < S)[None, :] & (t[:, None] >= 0))


@triton.jit(do_not_specialize=SIZES)
def sums_kernel(
    tanh_ptr, delta_ptr, turns_ptr, H, K, S: tl.constexpr, T: tl.constexpr, BS: tl.constexpr
):  # fmt: skip
    """How far each chunk turns each pair (Bt, K, H, S). Grid (H, K, Bt)."""
    head, chunk, batch = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    t, i = tl.arange(0, T), tl.arange(0, BS)
    tanh_angle = load_tile(tanh_ptr + (batch * K + chunk) * T * S, S, t, T, i, S)
    delta = tl.load(delta_ptr + ((batch * H + head) * K + chunk) * T + t)
    total = tl.sum(turned(delta, tanh_angle), axis=0)
    tl.store(turns_ptr + ((batch * K + chunk) * H + head) * S + i, total, mask=i < S)


@triton.jit(do_not_specialize=SIZES)
def before_kernel(
    sums_ptr, before_ptr, H, K, S: tl.constexpr, BS: tl.constexpr, BK: tl.constexpr, BACK: tl.constexpr
):  # fmt: skip
    """From what each chunk has (Bt, K, H, S) the sum of those before it (BACK: after it). Grid (H, Bt)."""
    head, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i, j = tl.arange(0, BS), tl.arange(0, BK)
    carry = tl.zeros([BS], sums_ptr.dtype.element_ty)
    for first in range(0, K, BK):
        chunk = K - 1 - first - j if BACK else first + j
        inside = (first + j < K)[:, None] & (i < S)[None, :]
        place = ((batch * K + chunk[:, None]) * H + head) * S + i[None, :]
        sums = tl.load(sums_ptr + place, mask=inside, other=0)
        tl.store(before_ptr + place, carry[None, :] + tl.cumsum(sums, axis=0) - sums, mask=inside)
        carry += tl.sum(sums, axis=0)


@triton.jit
def normalised(pointer, stride, root_ptr, weight_ptr, t, rest, n, N: tl.constexpr):
    """Channels n (BS,) of the normalised B or C of a chunk (T, BS)."""
    inside = (t[:, None] < rest) & (n[None, :] < N)
    tile = tl.load(pointer + t[:, None] * stride + n[None, :], mask=inside, other=0.0).to(tl.float32)
    return tile * tl.load(root_ptr + t)[:, None] * tl.load(weight_ptr + n, mask=n < N, other=0.0)[None, :]


@triton.jit
def with_bias(tile, bias_ptr, n, N: tl.constexpr):
    """A head's k or q before it is turned, channels n (BS,) of it."""
    return tile + tl.load(bias_ptr + n, mask=n < N, other=0.0)[None, :]


@triton.jit(do_not_specialize=SIZES)
def keys_kernel(
    maps_ptr, tanh_ptr, root_ptr, weight_ptr, bias_ptr, delta_ptr, turns_ptr, keys_ptr, rotations_ptr, L, H, K, HEADS,
    sb, st, N: tl.constexpr, NN: tl.constexpr, S: tl.constexpr, T: tl.constexpr, BS: tl.constexpr, SHARE: tl.constexpr,
):  # fmt: skip
    """A block of channels of k and q (2, Bt, K, H, T, NN) of one chunk, of SHARE heads of a group.

    Cosines and sines too, if they are wanted. Grid (blocks H / SHARE, K, Bt).
    """
    BLOCKS: tl.constexpr = NN // (2 * BS)
    TURNED: tl.constexpr = (S + BS - 1) // BS
    block, share = tl.program_id(0) % BLOCKS, (tl.program_id(0) // BLOCKS).to(tl.int64)
    chunk, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    groups, group, here = H // HEADS, share * SHARE // HEADS, chunk * T
    t, j, rest, of_all = tl.arange(0, T), tl.arange(0, BS), L - here, tl.num_programs(2).to(tl.int64) * K * H
    i = block * BS + j
    maps_ptr += batch * sb + here * st + group * N
    root_ptr += (batch * 2 * groups + group) * K * T + here
    k_even = normalised(maps_ptr, st, root_ptr, weight_ptr, t, rest, 2 * i, N)
    k_odd = normalised(maps_ptr, st, root_ptr, weight_ptr, t, rest, 2 * i + 1, N)
    maps_ptr, root_ptr = maps_ptr + groups * N, root_ptr + groups * K * T
    q_even = normalised(maps_ptr, st, root_ptr, weight_ptr + N, t, rest, 2 * i, N)
    q_odd = normalised(maps_ptr, st, root_ptr, weight_ptr + N, t, rest, 2 * i + 1, N)
    tanh_angle = load_tile(tanh_ptr + (batch * K * T + here) * S, S, t, T, i, S)
    for head in range(share * SHARE, share * SHARE + SHARE):
        number = (batch * K + chunk) * H + head
        bias = bias_ptr + head * N
        a, b = with_bias(k_even, bias, 2 * i, N), with_bias(k_odd, bias, 2 * i + 1, N)
        u, v = with_bias(q_even, bias + H * N, 2 * i, N), with_bias(q_odd, bias + H * N, 2 * i + 1, N)
        if block < TURNED:
            delta = tl.load(delta_ptr + (batch * H + head) * K * T + here + t)
            start = tl.load(turns_ptr + number * S + i, mask=i < S, other=0)
            cos, sin = cos_sin(start[None, :] + tl.cumsum(turned(delta, tanh_angle), axis=0))
            a, b = a * cos - b * sin, a * sin + b * cos
            u, v = u * cos - v * sin, u * sin + v * cos
            if rotations_ptr is not None:
                place = (number * TURNED + block) * T * 2 * BS + t[:, None] * 2 * BS + j[None, :]
                tl.store(rotations_ptr + place, cos)
                tl.store(rotations_ptr + place + BS, sin)
        keys = keys_ptr + number * T * NN + t[:, None] * NN + block * 2 * BS + j[None, :]
        tl.store(keys, a)
        tl.store(keys + BS, b)
        tl.store(keys + of_all * T * NN, u)
        tl.store(keys + of_all * T * NN + BS, v)
