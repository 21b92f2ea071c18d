"""Mamba-3's block on a GPU, device code: the outputs of a chunk and head, and their gradients.

From the chunk's keys and queries, the state h before it and the gradient g of the state after it. Symbols as in
``triton.py``; W_ij = q_i k_j, G_ij = dy_i x_j.
"""

import triton
import triton.language as tl

from seqlab.ops.mamba3_inner.triton_parts import (
    SIZES,
    decay_square,
    entering,
    load_decays,
    load_tile,
    silu,
    store_tile,
)


@triton.jit
def multiply(
    keys_ptr, queries_ptr, before_ptr, T: tl.constexpr, P: tl.constexpr, NN: tl.constexpr, BP: tl.constexpr,
    BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """W (T, T), and h q_i (T, BP)."""
    t, p = tl.arange(0, T), tl.arange(0, BP)
    products = tl.zeros([T, T], tl.float32)
    read = tl.zeros([T, BP], tl.float32)
    for first in tl.static_range(0, NN, BN):
        n = first + tl.arange(0, BN)
        k, q = load_tile(keys_ptr, NN, t, T, n, NN), load_tile(queries_ptr, NN, t, T, n, NN)
        products = tl.dot(q, tl.trans(k), acc=products, input_precision=PRECISION)
        h = load_tile(before_ptr, NN, p, P, n, NN)  # (BP, BN)
        read = tl.dot(q, tl.trans(h), acc=read, input_precision=PRECISION)
    return products, read


@triton.jit
def through_state(
    keys_ptr, before_ptr, after_ptr, T: tl.constexpr, P: tl.constexpr, NN: tl.constexpr, BP: tl.constexpr,
    BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """g k_j (T, BP), and the sum of h times g."""
    t, p = tl.arange(0, T), tl.arange(0, BP)
    written = tl.zeros([T, BP], tl.float32)
    across = 0.0
    for first in tl.static_range(0, NN, BN):
        n = first + tl.arange(0, BN)
        k, g = load_tile(keys_ptr, NN, t, T, n, NN), load_tile(after_ptr, NN, p, P, n, NN)
        written = tl.dot(k, tl.trans(g), acc=written, input_precision=PRECISION)
        h = load_tile(before_ptr, NN, p, P, n, NN)
        across += tl.sum(h.to(tl.float32) * g.to(tl.float32))
    return written, across


@triton.jit(do_not_specialize=SIZES)
def outputs_kernel(
    x_ptr, gate_ptr, keys_ptr, D_ptr, gamma_ptr, scale_ptr, high_ptr, low_ptr, before_ptr, out_ptr, L, H, K,
    sb, st, out_sb, out_st, P: tl.constexpr, NN: tl.constexpr, T: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y silu(z): y_i = sum over j of W_ij E_ij entering_ij x_j + exp(s_i) h q_i + D x_i. Grid (H, K, Bt)."""
    head, chunk, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    t, p, here, number = tl.arange(0, T), tl.arange(0, BP), chunk * T, (batch * K + chunk) * H + head
    rest, rows, at = L - here, batch * sb + here * st + head * P, (batch * H + head) * K * T + here
    keys_ptr += number * T * NN
    queries_ptr = keys_ptr + tl.num_programs(2).to(tl.int64) * K * H * T * NN
    products, y = multiply(keys_ptr, queries_ptr, before_ptr + number * P * NN, T, P, NN, BP, BN, PRECISION)
    scale, gamma = tl.load(scale_ptr + at + t), tl.load(gamma_ptr + at + t)
    from_start, _, _ = load_decays(high_ptr + at, low_ptr + at, T)
    products *= decay_square(high_ptr + at, low_ptr + at, T)
    products *= entering(scale, gamma, T)
    x = load_tile(x_ptr + rows, st, t, rest, p, P).to(DOT)
    y = tl.dot(products.to(DOT), x, acc=y * from_start[:, None], input_precision=PRECISION)
    y += tl.load(D_ptr + head) * x.to(tl.float32)
    gate, _ = silu(load_tile(gate_ptr + rows, st, t, rest, p, P).to(tl.float32))
    store_tile(out_ptr + batch * out_sb + here * out_st + head * P, out_st, y * gate, t, rest, p, P)


@triton.jit(do_not_specialize=SIZES)
def gates_kernel(
    d_out_ptr, gate_ptr, dy_ptr, L, sb, st, out_sb, out_st, E: tl.constexpr, T: tl.constexpr, BE: tl.constexpr
):  # fmt: skip
    """dy, the gradient of y, from that of y silu(z); a tile of (T, BE). Grid (tiles of T, tiles of BE, Bt)."""
    here, batch = tl.program_id(0).to(tl.int64) * T, tl.program_id(2).to(tl.int64)
    t, e, rest = tl.arange(0, T), tl.program_id(1) * BE + tl.arange(0, BE), L - here
    d_out = load_tile(d_out_ptr + batch * out_sb + here * out_st, out_st, t, rest, e, E).to(tl.float32)
    gate, _ = silu(load_tile(gate_ptr + batch * sb + here * st, st, t, rest, e, E).to(tl.float32))
    store_tile(dy_ptr + batch * out_sb + here * out_st, out_st, d_out * gate, t, rest, e, E)


@triton.jit(do_not_specialize=SIZES)
def inputs_kernel(
    x_ptr, gate_ptr, keys_ptr, D_ptr, gamma_ptr, scale_ptr, high_ptr, low_ptr, before_ptr, after_ptr, d_out_ptr, dy_ptr,
    out_ptr, dx_ptr, d_gate_ptr, pairs_ptr, d_log_ptr, d_scale_ptr, d_gamma_ptr, dD_ptr, L, H, K,
    sb, st, out_sb, out_st, dx_sb, dx_st, P: tl.constexpr, NN: tl.constexpr, T: tl.constexpr, BP: tl.constexpr,
    BN: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dx and the gradient of the gate, and the output y silu(z) again. Grid (H, K, Bt).

    Also ``pairs`` (Bt, K, H, T, T), the gradient of W; those of the logarithms of decays, scale and gamma (Bt, H, LP);
    and the chunk's share (Bt K, H) of that of D.
    """
    head, chunk, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    t, p, here, number = tl.arange(0, T), tl.arange(0, BP), chunk * T, (batch * K + chunk) * H + head
    rest, rows, at = L - here, batch * sb + here * st + head * P, (batch * H + head) * K * T + here
    keys_ptr += number * T * NN
    queries_ptr = keys_ptr + tl.num_programs(2).to(tl.int64) * K * H * T * NN
    products, y = multiply(keys_ptr, queries_ptr, before_ptr + number * P * NN, T, P, NN, BP, BN, PRECISION)
    scale, gamma, D = tl.load(scale_ptr + at + t), tl.load(gamma_ptr + at + t), tl.load(D_ptr + head)
    from_start, to_end, over = load_decays(high_ptr + at, low_ptr + at, T)
    out_at, dx_at = batch * out_sb + here * out_st + head * P, batch * dx_sb + here * dx_st + head * P
    x = load_tile(x_ptr + rows, st, t, rest, p, P).to(DOT)
    dy = load_tile(dy_ptr + out_at, out_st, t, rest, p, P).to(DOT)
    y *= from_start[:, None]
    arrived = tl.sum(y * dy.to(tl.float32), axis=1)  # from the state before the chunk
    decays = decay_square(high_ptr + at, low_ptr + at, T)
    products *= decays
    decays *= entering(scale, gamma, T)
    weights = (products * entering(scale, gamma, T)).to(DOT)
    by_products = tl.dot(dy, tl.trans(x), input_precision=PRECISION)  # G
    tl.store(pairs_ptr + number * T * T + t[:, None] * T + t[None, :], by_products * decays)
    own = t[:, None] == t[None, :]
    tl.store(dD_ptr + number, tl.sum(tl.where(own, by_products, 0.0)))
    products *= by_products
    tl.store(d_gamma_ptr + at + t, tl.sum(tl.where(own, products, 0.0), axis=0))
    products = tl.where(own, 0.0, products)
    d_scale = tl.sum(products, axis=0)
    arrived += tl.sum(products * scale[None, :], axis=1)

    y = tl.dot(weights, x, acc=y, input_precision=PRECISION) + D * x.to(tl.float32)
    gate, slope = silu(load_tile(gate_ptr + rows, st, t, rest, p, P).to(tl.float32))
    store_tile(out_ptr + out_at, out_st, y * gate, t, rest, p, P)
    d_out = load_tile(d_out_ptr + out_at, out_st, t, rest, p, P).to(tl.float32)
    store_tile(d_gate_ptr + dx_at, dx_st, d_out * y * slope, t, rest, p, P)

    states = number * P * NN
    dx, across = through_state(keys_ptr, before_ptr + states, after_ptr + states, T, P, NN, BP, BN, PRECISION)
    dx *= to_end[:, None]
    left = tl.sum(x.to(tl.float32) * dx, axis=1)  # into the state after the chunk, of an input that enters as it is
    dx = tl.dot(tl.trans(weights), dy, acc=dx * scale[:, None], input_precision=PRECISION)
    store_tile(dx_ptr + dx_at, dx_st, dx + D * dy.to(tl.float32), t, rest, p, P)
    # A decay is on the paths that end at it or later, less those that begin there, and on those that leave the chunk
    d_log = tl.cumsum(arrived - scale * d_scale, axis=0, reverse=True) + across * over
    d_log += tl.cumsum(left * scale, axis=0) - left * scale
    tl.store(d_log_ptr + at + t, d_log)
    tl.store(d_scale_ptr + at + t, d_scale + left)
