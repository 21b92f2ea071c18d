"""Mamba-3's block on a GPU, device code: what is one number a head, a chunk or a row, before the products.

Symbols as in ``triton.py``.
"""

import triton
import triton.language as tl

from seqlab.ops.mamba3_inner.triton_parts import SIZES, load_tanh, turned
from seqlab.ops.selective_scan.triton_parts import sigmoid, softplus

LOG2E = tl.constexpr(1.4426950408889634)
LEAST_DECAY = tl.constexpr(1e-4)


@triton.jit
def activated(v, RATIONAL: tl.constexpr):
    """What makes -A of its projection, before it is bounded."""
    return tl.where(v >= 0, 1.0 + v, 1.0 / (1.0 + tl.maximum(-v, 0.0))) if RATIONAL else softplus(v)


@triton.jit
def load_heads(pointer, bias_ptr, t, h, rows, H, sb, st, batch):
    """dd_dt with its bias, dd_A and trap of positions t (T,) and heads h (BH,), (T, BH) each; zeros outside."""
    inside = (t[:, None] < rows) & (h[None, :] < H)
    place = pointer + batch * sb + t[:, None].to(tl.int64) * st + h[None, :]
    bias = tl.load(bias_ptr + h, mask=h < H, other=0.0)[None, :]
    dt = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    decay = tl.load(place + H, mask=inside, other=0.0).to(tl.float32)
    return dt + bias, decay, tl.load(place + 2 * H, mask=inside, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=SIZES)
def steps_kernel(
    heads_ptr, bias_ptr, delta_ptr, gamma_ptr, scale_ptr, high_ptr, low_ptr, L, H, K, sb, st,
    T: tl.constexpr, BH: tl.constexpr, RATIONAL: tl.constexpr,
):  # fmt: skip
    """delta, gamma, scale and the sums of logarithms of decays (Bt, H, LP) of one chunk, BH heads at a time.

    The sums are in float64 and kept as two float32, so that differences are exact where it matters.
    """
    chunk, batch = tl.program_id(0), tl.program_id(2).to(tl.int64)
    h = tl.program_id(1).to(tl.int64) * BH + tl.arange(0, BH)
    t = chunk * T + tl.arange(0, T)
    dt, decay, trap = load_heads(heads_ptr, bias_ptr, t, h, L, H, sb, st, batch)
    next_dt, _, next_trap = load_heads(heads_ptr, bias_ptr, t + 1, h, L, H, sb, st, batch)
    inside = (t < L)[:, None]
    delta = tl.where(inside, softplus(dt), 0.0)
    gamma = delta * sigmoid(trap)
    scale = gamma + tl.where((t + 1 < L)[:, None], softplus(next_dt) * sigmoid(-next_trap), 0.0)
    decay = tl.maximum(activated(decay, RATIONAL), LEAST_DECAY)
    s = tl.cumsum(delta.to(tl.float64) * decay.to(tl.float64) * -LOG2E, axis=0)
    high = s.to(tl.float32)
    out = (batch * H + h[None, :]) * K * T + t[:, None]  # (T, BH) into (Bt, H, LP)
    present = (h < H)[None, :] & (t[:, None] >= 0)
    tl.store(delta_ptr + out, delta, mask=present)
    tl.store(gamma_ptr + out, gamma, mask=present)
    tl.store(scale_ptr + out, scale, mask=present)
    tl.store(high_ptr + out, high, mask=present)
    tl.store(low_ptr + out, (s - high.to(tl.float64)).to(tl.float32), mask=present)


@triton.jit(do_not_specialize=SIZES)
def roots_kernel(
    maps_ptr, root_ptr, eps, L, K, sb, st, N: tl.constexpr, T: tl.constexpr, BN: tl.constexpr
):  # fmt: skip
    """1 / sqrt(mean square + eps) of the rows of B and C (Bt, 2 G, LP). Grid (K, 2 G, Bt)."""
    chunk, batch = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    t, n = chunk * T + tl.arange(0, T), tl.arange(0, BN)
    inside = (t[:, None] < L) & (n[None, :] < N)
    place = maps_ptr + batch * sb + t[:, None] * st + tl.program_id(1) * N + n[None, :]
    row = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    root = tl.rsqrt(tl.sum(row * row, axis=1) / N + eps)
    tl.store(root_ptr + (batch * tl.num_programs(1) + tl.program_id(1)) * K * T + t, root)


@triton.jit(do_not_specialize=SIZES)
def sums_kernel(
    angle_ptr, delta_ptr, turns_ptr, L, H, K, sb, st, S: tl.constexpr, T: tl.constexpr, BS: tl.constexpr
):  # fmt: skip
    """How far each chunk turns each pair (Bt, K, H, S). Grid (H, K, Bt)."""
    head, chunk, batch = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    t, i = tl.arange(0, T), tl.arange(0, BS)
    angle_ptr += batch * sb + chunk * T * st
    tanh_angle = load_tanh(angle_ptr, st, t, L - chunk * T, 0, S, BS)
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
