"""Mamba-3's block on a GPU, device code: every gradient of a chunk.

Two kernels start from the state h before the chunk and the gradient g of the state after it. The first gives the
gradients of what is one number or one row a head and position, and that of q_i k_j, from which the second makes those of
the maps and of the angles. Symbols as in ``triton.py``; W_ij = q_i k_j, G_ij = dy_i x_j, with E and M of
``steps_square``.
"""

import triton
import triton.language as tl

from seqlab.ops.mamba3_inner.triton_forward import chunk_products, steps_square
from seqlab.ops.mamba3_inner.triton_parts import (
    SIZES,
    load_decays,
    load_rows,
    load_state,
    load_tanh,
    load_turned,
    rotation,
    silu,
    store_rows,
)

PI = tl.constexpr(3.141592653589793)


@triton.jit(do_not_specialize=SIZES)
def inputs_kernel(
    x_ptr, gate_ptr, maps_ptr, angle_ptr, weight_ptr, bias_ptr, D_ptr, delta_ptr, gamma_ptr, scale_ptr, high_ptr,
    low_ptr, root_ptr, turns_ptr, before_ptr, after_ptr, d_out_ptr, out_ptr, dx_ptr, d_gate_ptr, pairs_ptr, d_log_ptr,
    d_scale_ptr, d_gamma_ptr, dD_ptr, L, H, K, HEADS, sb, st, out_sb, out_st, dx_sb, dx_st,
    P: tl.constexpr, N: tl.constexpr, S: tl.constexpr, T: tl.constexpr, BP: tl.constexpr, BS: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dx and the gradient of the gate of one chunk and head, and its output y silu(z) again. Grid (H, K, Bt).

    Also ``pairs`` (Bt, K, H, T, T), the gradient of W; those of the logarithms of decays, scale and gamma (Bt, H, LP);
    and the chunk's share (Bt K, H) of that of D.
    """
    NP: tl.constexpr = (N + 1) // 2
    head, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    batch, groups = tl.program_id(2).to(tl.int64), H // HEADS
    t, group, here = tl.arange(0, T), head // HEADS, chunk * T
    rest, rows, at = L - here, batch * sb + here * st, (batch * H + head) * K * T + here
    number = (batch * K + chunk) * H + head
    scores, read, written, across = chunk_products(
        maps_ptr + rows + group * N, st, angle_ptr + rows, root_ptr + (batch * 2 * groups + group) * K * T + here,
        weight_ptr, bias_ptr + head * N, tl.load(delta_ptr + at + t), turns_ptr + number * S,
        before_ptr + number * 2 * P * NP, after_ptr + number * 2 * P * NP, t, rest, groups, K * T, H,
        P, N, S, T, BP, BS, True, DOT, PRECISION,
    )  # fmt: skip
    scale, gamma = tl.load(scale_ptr + at + t), tl.load(gamma_ptr + at + t)
    from_start, to_end, over = load_decays(high_ptr + at, low_ptr + at, T)
    D = tl.load(D_ptr + head)
    x = load_rows(x_ptr + rows + head * P, st, t, rest, P, BP).to(DOT)
    gate, slope = silu(load_rows(gate_ptr + rows + head * P, st, t, rest, P, BP).to(tl.float32))
    out_at = batch * out_sb + here * out_st + head * P
    d_out = load_rows(d_out_ptr + out_at, out_st, t, rest, P, BP).to(tl.float32)
    dy = (d_out * gate).to(DOT)
    read *= from_start[:, None]
    below, steps = steps_square(high_ptr + at, low_ptr + at, scale, gamma, T)
    weights = (scores * steps).to(DOT)
    y = tl.dot(weights, x, acc=read, input_precision=PRECISION) + D * x.to(tl.float32)
    dx_at = batch * dx_sb + here * dx_st + head * P
    store_rows(out_ptr + out_at, out_st, y * gate, t, rest, P, BP)
    store_rows(d_gate_ptr + dx_at, dx_st, d_out * y * slope, t, rest, P, BP)

    out = to_end * tl.sum(x.to(tl.float32) * written, axis=1)  # of unscaled inputs, into the state after the chunk
    dx = tl.dot(tl.trans(weights), dy, acc=written * (to_end * scale)[:, None], input_precision=PRECISION)
    store_rows(dx_ptr + dx_at, dx_st, dx + D * dy.to(tl.float32), t, rest, P, BP)
    tl.store(dD_ptr + number, tl.sum(x.to(tl.float32) * dy.to(tl.float32)))

    d_scores = tl.dot(dy, tl.trans(x), input_precision=PRECISION)  # G
    place = pairs_ptr + number * T * T + t[:, None] * T + t[None, :]
    tl.store(place, d_scores * steps)
    paths = d_scores * scores
    d_gamma = tl.sum(tl.where(t[:, None] == t[None, :], paths, 0.0), axis=0)
    paths *= below
    d_scale = tl.sum(paths, axis=0)
    arrived = tl.sum(paths * scale[None, :], axis=1) + tl.sum(read * dy.to(tl.float32), axis=1)
    d_sum = arrived - scale * d_scale
    left = out * scale
    # A decay is on the paths that end at it or later, less those that begin there, and on those that leave the chunk
    d_log = tl.cumsum(d_sum, axis=0, reverse=True) + (tl.cumsum(left, axis=0) - left) + across * over
    tl.store(d_log_ptr + at + t, d_log)
    tl.store(d_scale_ptr + at + t, d_scale + out)
    tl.store(d_gamma_ptr + at + t, d_gamma)


@triton.jit(do_not_specialize=SIZES)
def maps_kernel(
    x_ptr, gate_ptr, maps_ptr, angle_ptr, weight_ptr, bias_ptr, delta_ptr, scale_ptr, high_ptr, low_ptr, root_ptr,
    turns_ptr, before_ptr, after_ptr, d_out_ptr, pairs_ptr, d_maps_ptr, d_bias_ptr, d_angle_ptr, d_turns_ptr,
    d_delta_ptr, L, H, K, HEADS, sb, st, out_sb, out_st,
    P: tl.constexpr, N: tl.constexpr, S: tl.constexpr, T: tl.constexpr, BP: tl.constexpr, BS: tl.constexpr,
    SHARE: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of BS pairs of channels of B and C of one chunk, over SHARE heads of a group.

    Of the normalised B and C ``d_maps`` (Bt, H / SHARE, 2, LP, 2, NP), of their biases each chunk's share
    (Bt K, 2, H, 2, NP). Of the angles, without what later chunks add: ``d_angle`` (Bt, H / SHARE, LP, S), as it is before
    the tangent; ``d_turns`` (Bt, K, H, S), the gradient of the angle before the chunk by what is in it; and ``d_delta``
    (blocks, Bt, H, LP). Grid (blocks H / SHARE, K, Bt).
    """
    NP: tl.constexpr = (N + 1) // 2
    blocks: tl.constexpr = (NP + BS - 1) // BS
    block, share = tl.program_id(0) % blocks, (tl.program_id(0) // blocks).to(tl.int64)
    chunk, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    groups, group, first = H // HEADS, share * SHARE // HEADS, block * BS
    t, i, here = tl.arange(0, T), first + tl.arange(0, BS), chunk * T
    rest, rows = L - here, batch * sb + here * st
    root_ptr += (batch * 2 * groups + group) * K * T + here
    root_k, root_q = tl.load(root_ptr + t), tl.load(root_ptr + groups * K * T + t)
    k_ptr = maps_ptr + rows + group * N
    q_ptr = k_ptr + groups * N
    tanh_angle = load_tanh(angle_ptr + rows, st, t, rest, first, S, BS)
    dk_even, dk_odd = tl.zeros([T, BS], tl.float32), tl.zeros([T, BS], tl.float32)
    dq_even, dq_odd = tl.zeros([T, BS], tl.float32), tl.zeros([T, BS], tl.float32)
    d_angle = tl.zeros([T, BS], tl.float32)

    for head in range(share * SHARE, share * SHARE + SHARE):
        at = (batch * H + head) * K * T + here
        number = (batch * K + chunk) * H + head
        from_start, to_end, _ = load_decays(high_ptr + at, low_ptr + at, T)
        delta, left = tl.load(delta_ptr + at + t), to_end * tl.load(scale_ptr + at + t)
        cos, sin = tl.full([T, BS], 1.0, tl.float32), tl.zeros([T, BS], tl.float32)
        if first < S:
            cos, sin = rotation(delta, tanh_angle, turns_ptr + number * S, first, S, BS)
        k_even, k_odd = load_turned(
            k_ptr, st, root_k, weight_ptr, bias_ptr + head * N, cos, sin, t, rest, first, N, BS, T
        )
        q_even, q_odd = load_turned(
            q_ptr, st, root_q, weight_ptr + N, bias_ptr + (H + head) * N, cos, sin, t, rest, first, N, BS, T
        )
        pairs = tl.load(pairs_ptr + number * T * T + t[:, None] * T + t[None, :])
        gate = silu(load_rows(gate_ptr + rows + head * P, st, t, rest, P, BP).to(tl.float32))[0]
        d_out = d_out_ptr + batch * out_sb + here * out_st + head * P
        dy = load_rows(d_out, out_st, t, rest, P, BP).to(tl.float32) * gate
        dy = (dy * from_start[:, None]).to(DOT)
        h_even, h_odd = load_state(before_ptr + number * 2 * P * NP, first, P, NP, BP, BS)
        by_q_even = tl.dot(dy, h_even, input_precision=PRECISION)
        by_q_odd = tl.dot(dy, h_odd, input_precision=PRECISION)
        by_q_even = tl.dot(pairs, k_even.to(DOT), acc=by_q_even, input_precision=PRECISION)
        by_q_odd = tl.dot(pairs, k_odd.to(DOT), acc=by_q_odd, input_precision=PRECISION)
        x = load_rows(x_ptr + rows + head * P, st, t, rest, P, BP).to(tl.float32)
        x, pairs = (x * left[:, None]).to(DOT), tl.trans(pairs)
        g_even, g_odd = load_state(after_ptr + number * 2 * P * NP, first, P, NP, BP, BS)
        by_k_even = tl.dot(x, g_even, input_precision=PRECISION)
        by_k_odd = tl.dot(x, g_odd, input_precision=PRECISION)
        by_k_even = tl.dot(pairs, q_even.to(DOT), acc=by_k_even, input_precision=PRECISION)
        by_k_odd = tl.dot(pairs, q_odd.to(DOT), acc=by_k_odd, input_precision=PRECISION)

        if first < S:
            by_theta = by_k_odd * k_even - by_k_even * k_odd + by_q_odd * q_even - by_q_even * q_odd
            tl.store(d_turns_ptr + number * S + i, tl.sum(by_theta, axis=0), mask=i < S)
            by_theta = tl.cumsum(by_theta, axis=0, reverse=True)
            by_delta = tl.sum(by_theta * (PI * tanh_angle), axis=1)
            tl.store(d_delta_ptr + (block * tl.num_programs(2) * H * K * T) + at + t, by_delta)
            d_angle += by_theta * delta[:, None]
        back_k_even, back_k_odd = by_k_even * cos + by_k_odd * sin, by_k_odd * cos - by_k_even * sin
        back_q_even, back_q_odd = by_q_even * cos + by_q_odd * sin, by_q_odd * cos - by_q_even * sin
        bias = d_bias_ptr + ((batch * K + chunk) * 2 * H + head) * 2 * NP + i
        tl.store(bias, tl.sum(back_k_even, axis=0), mask=i < NP)
        tl.store(bias + NP, tl.sum(back_k_odd, axis=0), mask=i < NP)
        tl.store(bias + H * 2 * NP, tl.sum(back_q_even, axis=0), mask=i < NP)
        tl.store(bias + H * 2 * NP + NP, tl.sum(back_q_odd, axis=0), mask=i < NP)
        dk_even += back_k_even
        dk_odd += back_k_odd
        dq_even += back_q_even
        dq_odd += back_q_odd

    out = d_maps_ptr + ((batch * (H // SHARE) + share) * 2 * K * T + here) * 2 * NP + t[:, None] * 2 * NP + i[None, :]
    inside = (i < NP)[None, :] & (t[:, None] >= 0)
    tl.store(out, dk_even, mask=inside)
    tl.store(out + NP, dk_odd, mask=inside)
    tl.store(out + K * T * 2 * NP, dq_even, mask=inside)
    tl.store(out + K * T * 2 * NP + NP, dq_odd, mask=inside)
    if first < S:
        out = d_angle_ptr + ((batch * (H // SHARE) + share) * K * T + here) * S + t[:, None] * S + i[None, :]
        tl.store(out, d_angle, mask=(i < S)[None, :] & (t[:, None] >= 0))
