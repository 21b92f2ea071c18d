"""Mamba-3's block on a GPU, device code: angles, keys and queries.

Angles are whole numbers of 2^-32 turns in an int32. Sums of these are exact modulo a turn, whatever their order, so that
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
def normalised(pointer, stride, root, weight_ptr, bias_ptr, t, rest, FIRST: tl.constexpr, N: tl.constexpr,
               T: tl.constexpr, BS: tl.constexpr):  # fmt: skip
    """B or C of a chunk, normalised and with a head's bias: channels 2 i and 2 i + 1, (T, BS) each."""
    n = 2 * FIRST + tl.arange(0, 2 * BS)
    tile = load_tile(pointer, stride, t, rest, n, N).to(tl.float32) * root[:, None]
    weight, bias = tl.load(weight_ptr + n, mask=n < N, other=0.0), tl.load(bias_ptr + n, mask=n < N, other=0.0)
    return tl.split(tl.reshape(tile * weight[None, :] + bias[None, :], [T, BS, 2]))


@triton.jit(do_not_specialize=SIZES)
def keys_kernel(
    maps_ptr, tanh_ptr, root_ptr, weight_ptr, bias_ptr, delta_ptr, turns_ptr, keys_ptr, rotations_ptr, L, H, K, HEADS,
    sb, st, N: tl.constexpr, NN: tl.constexpr, S: tl.constexpr, T: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """k and q (2, Bt, K, H, T, NN) of one chunk and head; cosines and sines if they are wanted. Grid (H, K, Bt)."""
    TURNED: tl.constexpr = (S + BS - 1) // BS
    head, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    batch, groups, group = tl.program_id(2).to(tl.int64), H // HEADS, head // HEADS
    t, here, number = tl.arange(0, T), chunk * T, (batch * K + chunk) * H + head
    delta = tl.load(delta_ptr + (batch * H + head) * K * T + here + t)
    root_ptr += (batch * 2 * groups + group) * K * T + here + t
    maps_ptr += batch * sb + here * st + group * N
    root_k, root_q = tl.load(root_ptr), tl.load(root_ptr + groups * K * T)
    of_all = tl.num_programs(2) * K * H * T * NN
    for block in tl.static_range(0, NN // (2 * BS)):
        i = block * BS + tl.arange(0, BS)
        x, y = normalised(maps_ptr, st, root_k, weight_ptr, bias_ptr + head * N, t, L - here, block * BS, N, T, BS)
        u, v = normalised(
            maps_ptr + groups * N, st, root_q, weight_ptr + N, bias_ptr + (H + head) * N, t, L - here, block * BS, N, T,
            BS,
        )  # fmt: skip
        column = t[:, None] * NN + block * 2 * BS + tl.arange(0, BS)[None, :]
        if block < TURNED:
            tanh_angle = load_tile(tanh_ptr + (batch * K * T + here) * S, S, t, T, i, S)
            start = tl.load(turns_ptr + number * S + i, mask=i < S, other=0)
            cos, sin = cos_sin(start[None, :] + tl.cumsum(turned(delta, tanh_angle), axis=0))
            x, y = x * cos - y * sin, x * sin + y * cos
            u, v = u * cos - v * sin, u * sin + v * cos
            if rotations_ptr is not None:
                place = rotations_ptr + (number * TURNED + block) * T * 2 * BS
                place += t[:, None] * 2 * BS + tl.arange(0, BS)[None, :]
                tl.store(place, cos)
                tl.store(place + BS, sin)
        place = keys_ptr + number * T * NN + column
        tl.store(place, x)
        tl.store(place + BS, y)
        tl.store(place + of_all, u)
        tl.store(place + of_all + BS, v)
