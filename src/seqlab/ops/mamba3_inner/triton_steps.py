"""Mamba-3's block on a GPU, device code: step sizes, decays, and what becomes of each. Symbols as in ``triton.py``."""

import triton
import triton.language as tl

from seqlab.ops.mamba3_inner.triton_parts import SIZES
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
    delta = tl.where((t < L)[:, None], softplus(dt), 0.0)
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
def heads_kernel(
    heads_ptr, tanh_ptr, bias_ptr, delta_ptr, d_log_ptr, d_scale_ptr, d_gamma_ptr, d_delta_ptr, d_angle_ptr, later_ptr,
    d_heads_ptr, d_angles_ptr, d_bias_ptr, L, H, K, sb, st, out_sb, out_st,
    S: tl.constexpr, T: tl.constexpr, BS: tl.constexpr, BH: tl.constexpr, BLOCKS: tl.constexpr, SHARES: tl.constexpr,
    RATIONAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of dd_dt, dd_A, trap and angle of one chunk, and its share (Bt K, H) of that of dt_bias.

    From those of what a position of a head has, of the angle without what later chunks add; ``later`` (Bt, K, H, S) are
    the gradients of the angle after the chunk. Grid (K, Bt).
    """
    chunk, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    t, i, here = tl.arange(0, T), tl.arange(0, BS), chunk * T
    rest, pi = L - here, 3.141592653589793
    pairs = (i < S)[None, :] & (t[:, None] >= 0)
    place = (here + t[:, None]) * S + i[None, :]
    tanh_angle = tl.load(tanh_ptr + batch * K * T * S + place, mask=pairs, other=0.0)
    d_angle = tl.zeros([T, BS], tl.float32)
    for share in range(SHARES):
        d_angle += tl.load(d_angle_ptr + (batch * SHARES + share) * K * T * S + place, mask=pairs, other=0.0)
    for first in range(0, H, BH):
        h = first + tl.arange(0, BH)
        exists, present = (h < H)[None, :] & (t[:, None] >= 0), (t[:, None] < rest) & (h < H)[None, :]
        at = (batch * H + h[None, :]) * K * T + here + t[:, None]  # (T, BH)
        later = later_ptr + ((batch * K + chunk) * H + h[:, None]) * S + i[None, :]
        later = tl.load(later, mask=(h < H)[:, None] & (i < S)[None, :], other=0.0)  # (BH, BS)
        delta = tl.load(delta_ptr + at, mask=exists, other=0.0)
        d_angle = tl.dot(delta, later, acc=d_angle, input_precision=PRECISION)
        d_delta = tl.dot(tanh_angle * pi, tl.trans(later), input_precision=PRECISION)
        for block in tl.static_range(BLOCKS):
            d_delta += tl.load(
                d_delta_ptr + block * tl.num_programs(1).to(tl.int64) * H * K * T + at, mask=exists, other=0.0
            )
        dt, decay, trap = load_heads(heads_ptr, bias_ptr, here + t, h, L, H, sb, st, batch)
        right, positive = sigmoid(trap), activated(decay, RATIONAL)
        d_log = tl.load(d_log_ptr + at, mask=exists, other=0.0)
        d_scale = tl.load(d_scale_ptr + at, mask=exists, other=0.0)
        d_before = tl.load(d_scale_ptr + at - 1, mask=exists & (here + t > 0)[:, None], other=0.0)
        d_gamma = d_scale + tl.load(d_gamma_ptr + at, mask=exists, other=0.0)
        d_delta += d_gamma * right + d_before * sigmoid(-trap) - d_log * tl.maximum(positive, LEAST_DECAY)
        d_dt = tl.where(present, d_delta * sigmoid(dt), 0.0)
        slope = tl.where(decay >= 0, 1.0, positive * positive) if RATIONAL else sigmoid(decay)
        d_decay = tl.where(positive >= LEAST_DECAY, -d_log * delta * slope, 0.0)
        out = d_heads_ptr + batch * out_sb + (here + t[:, None]) * out_st + h[None, :]
        tl.store(out, d_dt, mask=present)
        tl.store(out + H, d_decay, mask=present)
        tl.store(out + 2 * H, (d_gamma - d_before) * delta * right * sigmoid(-trap), mask=present)
        tl.store(d_bias_ptr + (batch * K + chunk) * H + h, tl.sum(d_dt, axis=0), mask=h < H)
    out = d_angles_ptr + batch * out_sb + (here + t[:, None]) * out_st + i[None, :]
    tl.store(out, d_angle * pi * (1.0 - tanh_angle * tanh_angle), mask=(t[:, None] < rest) & (i < S)[None, :])
