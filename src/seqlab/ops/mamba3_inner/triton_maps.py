"""Mamba-3's block on a GPU, device code: the gradients of B, C and the angles. Symbols as in ``triton.py``."""

import triton
import triton.language as tl

from seqlab.ops.mamba3_inner.triton_parts import SIZES, load_decays, load_tile, store_tile


@triton.jit
def halves(tile, T: tl.constexpr, BS: tl.constexpr):
    """Columns of a tile (T, 2 BS) up to BS, and from there on."""
    return tl.split(tl.permute(tl.reshape(tile, [T, 2, BS]), (0, 2, 1)))


@triton.jit
def joined(left, right, T: tl.constexpr, BS: tl.constexpr):
    """The tile (T, 2 BS) of these ``halves``."""
    return tl.reshape(tl.permute(tl.join(left, right), (0, 2, 1)), [T, 2 * BS])


@triton.jit
def by_state(
    rows_ptr, stride, scale, rest, state_ptr, n, T: tl.constexpr, P: tl.constexpr, NN: tl.constexpr, BP: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows of x or dy, each times its scale, times columns n of a state: (T, 2 BS)."""
    t, p = tl.arange(0, T), tl.arange(0, BP)
    rows = load_tile(rows_ptr, stride, t, rest, p, P).to(tl.float32)
    rows = (rows * scale[:, None]).to(DOT)
    return tl.dot(rows, load_tile(state_ptr, NN, p, P, n, NN), input_precision=PRECISION)


@triton.jit
def turned_back(left, right, cos, sin, T: tl.constexpr, BS: tl.constexpr):
    """The gradient (T, 2 BS) before the rotation, for the halves of the gradient after it."""
    return joined(left * cos + right * sin, right * cos - left * sin, T, BS)


@triton.jit(do_not_specialize=SIZES)
def maps_kernel(
    x_ptr, keys_ptr, tanh_ptr, rotations_ptr, delta_ptr, scale_ptr, high_ptr, low_ptr, before_ptr, after_ptr,
    dy_ptr, pairs_ptr, d_maps_ptr, d_bias_ptr, d_angle_ptr, d_turns_ptr, d_delta_ptr, L, H, K, sb, st, dy_sb, dy_st,
    P: tl.constexpr, NN: tl.constexpr, S: tl.constexpr, T: tl.constexpr, BP: tl.constexpr, BS: tl.constexpr,
    SHARE: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of a block of channels of B and C of one chunk, over SHARE heads of a group.

    Of the normalised B and C ``d_maps`` (Bt, H / SHARE, 2, LP, NN) and of their biases each chunk's share
    (Bt K, 2, H, NN), channels in the order of the keys. Of the angles, without what later chunks add: ``d_angle``
    (Bt, H / SHARE, LP, S), by tanh(angle) but for pi; ``d_turns`` (Bt, K, H, S), by the angle before the chunk; and
    ``d_delta`` (TURNED, Bt, H, LP). Grid (blocks H / SHARE, K, Bt).
    """
    BLOCKS: tl.constexpr = NN // (2 * BS)
    TURNED: tl.constexpr = (S + BS - 1) // BS
    block, share = tl.program_id(0) % BLOCKS, (tl.program_id(0) // BLOCKS).to(tl.int64)
    chunk, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    t, c, here = tl.arange(0, T), tl.arange(0, 2 * BS), chunk * T
    i, n = block * BS + tl.arange(0, BS), block * 2 * BS + tl.arange(0, 2 * BS)
    rest, of_all = L - here, tl.num_programs(2).to(tl.int64) * K * H
    pi = 3.141592653589793
    dk, dq = tl.zeros([T, 2 * BS], tl.float32), tl.zeros([T, 2 * BS], tl.float32)
    tanh_angle = load_tile(tanh_ptr + (batch * K * T + here) * S, S, t, T, i, S)
    d_angle = tanh_angle * 0.0
    for head in range(share * SHARE, share * SHARE + SHARE):
        at, number = (batch * H + head) * K * T + here, (batch * K + chunk) * H + head
        from_start, to_end, _ = load_decays(high_ptr + at, low_ptr + at, T)
        left = to_end * tl.load(scale_ptr + at + t)
        pairs = tl.load(pairs_ptr + number * T * T + t[:, None] * T + t[None, :])
        k = load_tile(keys_ptr + number * T * NN, NN, t, T, n, NN)
        q = load_tile(keys_ptr + (of_all + number) * T * NN, NN, t, T, n, NN)
        dy_p, x_p = dy_ptr + batch * dy_sb + here * dy_st + head * P, x_ptr + batch * sb + here * st + head * P
        states = number * P * NN
        by_q = by_state(dy_p, dy_st, from_start, rest, before_ptr + states, n, T, P, NN, BP, DOT, PRECISION)
        by_q = tl.dot(pairs, k, acc=by_q, input_precision=PRECISION)
        by_k = by_state(x_p, st, left, rest, after_ptr + states, n, T, P, NN, BP, DOT, PRECISION)
        by_k = tl.dot(tl.trans(pairs), q, acc=by_k, input_precision=PRECISION)

        if block < TURNED:
            a, b = halves(k.to(tl.float32), T, BS)
            da, db = halves(by_k, T, BS)
            u, v = halves(q.to(tl.float32), T, BS)
            du, dv = halves(by_q, T, BS)
            by_angle = (db * a - da * b) + (dv * u - du * v)
            total = tl.sum(by_angle, axis=0)
            tl.store(d_turns_ptr + number * S + i, total, mask=i < S)
            by_angle += total[None, :] - tl.cumsum(by_angle, axis=0)  # every later position turns with this one
            by_delta = d_delta_ptr + block * of_all * T + at + t
            tl.store(by_delta, tl.sum(by_angle * tanh_angle, axis=1) * pi)
            d_angle += by_angle * tl.load(delta_ptr + at + t)[:, None]
            place = rotations_ptr + (number * TURNED + block) * T * 2 * BS
            cos, sin = halves(load_tile(place, 2 * BS, t, T, c, 2 * BS).to(tl.float32), T, BS)
            by_k = turned_back(da, db, cos, sin, T, BS)
            by_q = turned_back(du, dv, cos, sin, T, BS)
        sums = d_bias_ptr + ((batch * K + chunk) * 2 * H + head) * NN + n
        tl.store(sums, tl.sum(by_k, axis=0))
        tl.store(sums + H * NN, tl.sum(by_q, axis=0))
        dk, dq = dk + by_k, dq + by_q

    out = d_maps_ptr + ((batch * (H // SHARE) + share) * 2 * K * T + here + t[:, None]) * NN + n[None, :]
    tl.store(out, dk)
    tl.store(out + K * T * NN, dq)
    if block < TURNED:
        place = d_angle_ptr + ((batch * (H // SHARE) + share) * K * T + here + t[:, None]) * S + i[None, :]
        tl.store(place, d_angle, mask=(i < S)[None, :] & (t[:, None] >= 0))


@triton.jit(do_not_specialize=SIZES)
def norms_kernel(
    maps_ptr, weight_ptr, root_ptr, parts_ptr, d_maps_ptr, d_weight_ptr, L, K, sb, st, out_sb, out_st,
    N: tl.constexpr, NN: tl.constexpr, T: tl.constexpr, BN: tl.constexpr, BS: tl.constexpr, G: tl.constexpr,
    SHARES: tl.constexpr,
):  # fmt: skip
    """The gradients of B and C of one chunk from those of their normalised rows, the sum over SHARES ``parts``.

    Also the chunk's share (Bt K G, 2, N) of those of the norms' weights. Grid (K, 2 G, Bt).
    """
    chunk, batch = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    which, group = tl.program_id(1) // G, tl.program_id(1) % G
    t, n, here = tl.arange(0, T), tl.arange(0, BN), chunk * T
    rest, column = L - here, tl.program_id(1) * N
    by_normal = tl.zeros([T, BN], tl.float32)
    key = n // (2 * BS) * 2 * BS + n % 2 * BS + n % (2 * BS) // 2  # its place in a row of the keys
    for share in range(group * SHARES, group * SHARES + SHARES):
        row = ((batch * G * SHARES + share) * 2 + which) * K * T + here + t
        place = parts_ptr + row[:, None] * NN + key[None, :]
        by_normal += tl.load(place, mask=(t[:, None] < rest) & (n[None, :] < N), other=0.0)
    root = tl.load(root_ptr + (batch * 2 * G + tl.program_id(1)) * K * T + here + t)
    normal = load_tile(maps_ptr + batch * sb + here * st + column, st, t, rest, n, N).to(tl.float32) * root[:, None]
    d_weight = d_weight_ptr + (((batch * K + chunk) * G + group) * 2 + which) * N + n
    tl.store(d_weight, tl.sum(by_normal * normal, axis=0), mask=n < N)
    by_normal *= tl.load(weight_ptr + which * N + n, mask=n < N, other=0.0)[None, :]
    along = tl.sum(by_normal * normal, axis=1)[:, None] / N
    row = (by_normal - normal * along) * root[:, None]
    store_tile(d_maps_ptr + batch * out_sb + here * out_st + column, out_st, row, t, rest, n, N)
