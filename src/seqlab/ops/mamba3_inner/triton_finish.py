"""Mamba-3's block on a GPU, device code: gradients of the projection from those of a chunk's heads.

Symbols as in ``triton.py``.
"""

import triton
import triton.language as tl

from seqlab.ops.mamba3_inner.triton_backward import PI
from seqlab.ops.mamba3_inner.triton_parts import SIZES, load_tanh
from seqlab.ops.mamba3_inner.triton_steps import LEAST_DECAY, activated, load_heads
from seqlab.ops.selective_scan.triton_parts import sigmoid


@triton.jit(do_not_specialize=SIZES)
def heads_kernel(
    heads_ptr, angle_ptr, bias_ptr, delta_ptr, d_log_ptr, d_scale_ptr, d_gamma_ptr, d_delta_ptr, d_angle_ptr, later_ptr,
    d_heads_ptr, d_angles_ptr, d_bias_ptr, L, H, K, sb, st, out_sb, out_st,
    S: tl.constexpr, T: tl.constexpr, BA: tl.constexpr, BH: tl.constexpr, BLOCKS: tl.constexpr, SHARES: tl.constexpr,
    RATIONAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of dd_dt, dd_A, trap and angle of one chunk, and its share (Bt K, H) of that of dt_bias.

    ``later`` (Bt, K, H, S) are the gradients of the angle after the chunk. Grid (K, Bt).
    """
    chunk, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    t, i, here = tl.arange(0, T), tl.arange(0, BA), chunk * T
    rest, rows = L - here, batch * sb + here * st
    tanh_angle = load_tanh(angle_ptr + rows, st, t, rest, 0, S, BA)
    d_angle = tl.zeros([T, BA], tl.float32)
    for share in range(SHARES):
        place = ((batch * SHARES + share) * K * T + here + t[:, None]) * S + i[None, :]
        d_angle += tl.load(d_angle_ptr + place, mask=(i < S)[None, :], other=0.0)
    for first in range(0, H, BH):
        h = first + tl.arange(0, BH)
        exists, present = (h < H)[None, :], (t[:, None] < rest) & (h < H)[None, :]
        at = (batch * H + h[None, :]) * K * T + here + t[:, None]  # (T, BH)
        later = later_ptr + ((batch * K + chunk) * H + h[:, None]) * S + i[None, :]
        later = tl.load(later, mask=(h < H)[:, None] & (i < S)[None, :], other=0.0)  # (BH, BA)
        delta = tl.load(delta_ptr + at, mask=exists, other=0.0)
        d_angle = tl.dot(delta, later, acc=d_angle, input_precision=PRECISION)
        d_delta = tl.dot(tanh_angle * PI, tl.trans(later), input_precision=PRECISION)
        for block in tl.static_range(BLOCKS):
            d_delta += tl.load(d_delta_ptr + block * tl.num_programs(1) * H * K * T + at, mask=exists, other=0.0)
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
        d_trap = (d_gamma - d_before) * delta * right * sigmoid(-trap)
        out = d_heads_ptr + batch * out_sb + (here + t[:, None]) * out_st + h[None, :]
        tl.store(out, d_dt, mask=present)
        tl.store(out + H, d_decay, mask=present)
        tl.store(out + 2 * H, d_trap, mask=present)
        tl.store(d_bias_ptr + (batch * K + chunk) * H + h, tl.sum(d_dt, axis=0), mask=h < H)
    out = d_angles_ptr + batch * out_sb + (here + t[:, None]) * out_st + i[None, :]
    d_angle *= PI * (1.0 - tanh_angle * tanh_angle)
    tl.store(out, d_angle, mask=(t[:, None] < rest) & (i < S)[None, :])


@triton.jit(do_not_specialize=SIZES)
def norms_kernel(
    maps_ptr, weight_ptr, root_ptr, parts_ptr, d_maps_ptr, d_weight_ptr, L, K, sb, st, out_sb, out_st,
    N: tl.constexpr, T: tl.constexpr, BN: tl.constexpr, G: tl.constexpr, SHARES: tl.constexpr,
):  # fmt: skip
    """The gradients of B and C of one chunk from those of their normalised rows, the sum over SHARES ``parts``.

    Also the chunk's share (Bt K G, 2, N) of those of the norms' weights. Grid (K, 2 G, Bt).
    """
    NP: tl.constexpr = (N + 1) // 2
    chunk, batch = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    which, group = tl.program_id(1) // G, tl.program_id(1) % G
    t, n, here = tl.arange(0, T), tl.arange(0, BN), chunk * T
    rest, column = L - here, tl.program_id(1) * N + n
    inside = (t[:, None] < rest) & (n[None, :] < N)
    by_normal = tl.zeros([T, BN], tl.float32)
    for share in range(group * SHARES, group * SHARES + SHARES):
        row = ((batch * G * SHARES + share) * 2 + which) * K * T + here + t
        place = parts_ptr + row[:, None] * 2 * NP + (n % 2 * NP + n // 2)[None, :]
        by_normal += tl.load(place, mask=inside, other=0.0)
    root = tl.load(root_ptr + (batch * 2 * G + tl.program_id(1)) * K * T + here + t)
    row = tl.load(maps_ptr + batch * sb + (here + t[:, None]) * st + column[None, :], mask=inside, other=0.0)
    normal = row.to(tl.float32) * root[:, None]
    d_weight = d_weight_ptr + (((batch * K + chunk) * G + group) * 2 + which) * N + n
    tl.store(d_weight, tl.sum(by_normal * normal, axis=0), mask=n < N)
    by_normal *= tl.load(weight_ptr + which * N + n, mask=n < N, other=0.0)[None, :]
    along = tl.sum(by_normal * normal, axis=1)[:, None] / N
    out = d_maps_ptr + batch * out_sb + (here + t[:, None]) * out_st + column[None, :]
    tl.store(out, (by_normal - normal * along) * root[:, None], mask=inside)
