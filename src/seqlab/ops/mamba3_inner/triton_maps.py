"""Mamba-3's block on a GPU, device code: the gradients of B, C and the angles. Symbols as in ``triton.py``."""

import triton
import triton.language as tl

from seqlab.ops.mamba3_inner.triton_parts import SIZES, load_decays, load_tile, store_tile


@triton.jit
def store_sums(pointer, even, odd, i, NP: tl.constexpr):
    """Sums over the positions of even and odd channels, (T, BS) each."""
    tl.store(pointer + i, tl.sum(even, axis=0), mask=i < NP)
    tl.store(pointer + NP + i, tl.sum(odd, axis=0), mask=i < NP)


@triton.jit(do_not_specialize=SIZES)
def maps_kernel(
    x_ptr, keys_ptr, tanh_ptr, rotations_ptr, delta_ptr, scale_ptr, high_ptr, low_ptr, before_ptr, after_ptr,
    dy_ptr, pairs_ptr, d_maps_ptr, d_bias_ptr, d_angle_ptr, d_turns_ptr, d_delta_ptr, L, H, K, sb, st, dy_sb, dy_st,
    P: tl.constexpr, NN: tl.constexpr, S: tl.constexpr, T: tl.constexpr, BP: tl.constexpr, BS: tl.constexpr,
    SHARE: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of BS pairs of channels of B and C of one chunk, over SHARE heads of a group.

    Of the normalised B and C ``d_maps`` (Bt, H / SHARE, 2, LP, 2 NP), of their biases each chunk's share
    (Bt K, 2, H, 2 NP), channels in the order of the keys. Of the angles, without what later chunks add: ``d_angle``
    (Bt, H / SHARE, LP, S), by delta times the angle's tanh; ``d_turns`` (Bt, K, H, S), the gradient of the angle before
    the chunk by what is in it; and ``d_delta`` (blocks, Bt, H, LP). Grid (blocks H / SHARE, K, Bt).
    """
    NP: tl.constexpr = NN // 2
    blocks: tl.constexpr = (NP + BS - 1) // BS
    block, share = tl.program_id(0) % blocks, (tl.program_id(0) // blocks).to(tl.int64)
    chunk, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    t, p, i, here = tl.arange(0, T), tl.arange(0, BP), block * BS + tl.arange(0, BS), chunk * T
    rest, of_all, pi = L - here, tl.num_programs(2) * K * H * T * NN, 3.141592653589793
    tanh_angle = load_tile(tanh_ptr + (batch * K * T + here) * S, S, t, T, i, S)
    dk_even, dk_odd = tl.zeros([T, BS], tl.float32), tl.zeros([T, BS], tl.float32)
    dq_even, dq_odd = tl.zeros([T, BS], tl.float32), tl.zeros([T, BS], tl.float32)
    d_angle = tl.zeros([T, BS], tl.float32)

    for head in range(share * SHARE, share * SHARE + SHARE):
        at, number = (batch * H + head) * K * T + here, (batch * K + chunk) * H + head
        rows, keys = batch * sb + here * st + head * P, keys_ptr + number * T * NN
        from_start, to_end, _ = load_decays(high_ptr + at, low_ptr + at, T)
        left = to_end * tl.load(scale_ptr + at + t)
        pairs = tl.load(pairs_ptr + number * T * T + t[:, None] * T + t[None, :])
        k_even, k_odd = load_tile(keys, NN, t, T, i, NP), load_tile(keys + NP, NN, t, T, i, NP)
        q_even = load_tile(keys + of_all, NN, t, T, i, NP)
        q_odd = load_tile(keys + of_all + NP, NN, t, T, i, NP)

        dy = load_tile(dy_ptr + batch * dy_sb + here * dy_st + head * P, dy_st, t, rest, p, P).to(tl.float32)
        dy = (dy * from_start[:, None]).to(DOT)
        before, after = before_ptr + number * P * NN, after_ptr + number * P * NN
        q_even_by = tl.dot(dy, load_tile(before, NN, p, P, i, NP), input_precision=PRECISION)
        q_odd_by = tl.dot(dy, load_tile(before + NP, NN, p, P, i, NP), input_precision=PRECISION)
        q_even_by = tl.dot(pairs, k_even, acc=q_even_by, input_precision=PRECISION)
        q_odd_by = tl.dot(pairs, k_odd, acc=q_odd_by, input_precision=PRECISION)
        x = load_tile(x_ptr + rows, st, t, rest, p, P).to(tl.float32)
        x, pairs = (x * left[:, None]).to(DOT), tl.trans(pairs)
        k_even_by = tl.dot(x, load_tile(after, NN, p, P, i, NP), input_precision=PRECISION)
        k_odd_by = tl.dot(x, load_tile(after + NP, NN, p, P, i, NP), input_precision=PRECISION)
        k_even_by = tl.dot(pairs, q_even, acc=k_even_by, input_precision=PRECISION)
        k_odd_by = tl.dot(pairs, q_odd, acc=k_odd_by, input_precision=PRECISION)

        if block * BS < S:
            by_angle = k_odd_by * k_even.to(tl.float32) - k_even_by * k_odd.to(tl.float32)
            by_angle += q_odd_by * q_even.to(tl.float32) - q_even_by * q_odd.to(tl.float32)
            tl.store(d_turns_ptr + number * S + i, tl.sum(by_angle, axis=0), mask=i < S)
            by_angle = tl.cumsum(by_angle, axis=0, reverse=True)  # every later position turns with this one
            by_delta = d_delta_ptr + block * tl.num_programs(2) * H * K * T + at + t
            tl.store(by_delta, tl.sum(by_angle * (pi * tanh_angle), axis=1))
            d_angle += by_angle * tl.load(delta_ptr + at + t)[:, None]
            place = rotations_ptr + number * T * 2 * S + t[:, None] * 2 * S + i[None, :]
            cos = tl.load(place, mask=(i < S)[None, :], other=1.0).to(tl.float32)
            sin = tl.load(place + S, mask=(i < S)[None, :], other=0.0).to(tl.float32)
            k_even_by, k_odd_by = k_even_by * cos + k_odd_by * sin, k_odd_by * cos - k_even_by * sin
            q_even_by, q_odd_by = q_even_by * cos + q_odd_by * sin, q_odd_by * cos - q_even_by * sin
        sums = d_bias_ptr + ((batch * K + chunk) * 2 * H + head) * NN
        store_sums(sums, k_even_by, k_odd_by, i, NP)
        store_sums(sums + H * NN, q_even_by, q_odd_by, i, NP)
        dk_even += k_even_by
        dk_odd += k_odd_by
        dq_even += q_even_by
        dq_odd += q_odd_by

    out = d_maps_ptr + ((batch * (H // SHARE) + share) * 2 * K * T + here + t[:, None]) * NN + i[None, :]
    inside = (i < NP)[None, :] & (t[:, None] >= 0)
    tl.store(out, dk_even, mask=inside)
    tl.store(out + NP, dk_odd, mask=inside)
    tl.store(out + K * T * NN, dq_even, mask=inside)
    tl.store(out + K * T * NN + NP, dq_odd, mask=inside)
    if block * BS < S:
        out = d_angle_ptr + ((batch * (H // SHARE) + share) * K * T + here + t[:, None]) * S + i[None, :]
        tl.store(out, d_angle, mask=(i < S)[None, :] & (t[:, None] >= 0))


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
    rest, column = L - here, tl.program_id(1) * N
    by_normal = tl.zeros([T, BN], tl.float32)
    for share in range(group * SHARES, group * SHARES + SHARES):
        row = ((batch * G * SHARES + share) * 2 + which) * K * T + here + t
        place = parts_ptr + row[:, None] * 2 * NP + (n % 2 * NP + n // 2)[None, :]
        by_normal += tl.load(place, mask=(t[:, None] < rest) & (n[None, :] < N), other=0.0)
    root = tl.load(root_ptr + (batch * 2 * G + tl.program_id(1)) * K * T + here + t)
    normal = load_tile(maps_ptr + batch * sb + here * st + column, st, t, rest, n, N).to(tl.float32) * root[:, None]
    d_weight = d_weight_ptr + (((batch * K + chunk) * G + group) * 2 + which) * N + n
    tl.store(d_weight, tl.sum(by_normal * normal, axis=0), mask=n < N)
    by_normal *= tl.load(weight_ptr + which * N + n, mask=n < N, other=0.0)[None, :]
    along = tl.sum(by_normal * normal, axis=1)[:, None] / N
    row = (by_normal - normal * along) * root[:, None]
    store_tile(d_maps_ptr + batch * out_sb + here * out_st + column, out_st, row, t, rest, n, N)
