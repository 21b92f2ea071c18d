"""From the residual stream into a layer: norm, ``in_proj``, convolution, and shares of ``x_proj``'s sum.

Symbols: B batch, D model width, E inner width, K width of the convolution, W columns of ``x_proj``. The first half of
the programs makes columns of u, the second of z; each of u's makes its share (B, W) of what ``x_proj`` gives.
"""

import triton
import triton.language as tl

from seqlab.ops.decoding.triton_parts import let_next_begin, normalised_row, product, silu, wait


@triton.jit
def half_and_place(E: tl.constexpr, BN: tl.constexpr):
    """Whether this program is one of u's, and its place among those of its half."""
    place, of_u = tl.program_id(0), tl.cdiv(E, BN)
    is_u = place < of_u
    return is_u, tl.where(is_u, place, place - of_u)


@triton.jit
def last_inputs(state, weight, bias, rows, e, inside, E: tl.constexpr, K: tl.constexpr, HAS_BIAS: tl.constexpr):
    """The convolution's last K - 1 inputs (BM, BN) each, the oldest first, its K weights (BN,) each, its bias (BN,).

    ``state`` is (B, K - 1, E); read before ``wait``, so the kernel before must not write it.
    """
    at = state + rows[:, None] * (K - 1) * E + e[None, :]
    pasts, taps = (), ()
    for j in tl.static_range(K - 1):
        pasts = pasts + (tl.load(at + j * E, mask=inside, other=0.0),)
    for j in tl.static_range(K):
        taps = taps + (tl.load(weight + e * K + j, mask=e < E, other=0.0),)
    return pasts, taps, tl.load((bias if HAS_BIAS else weight) + e, mask=(e < E) & HAS_BIAS, other=0.0)


@triton.jit
def convolved(newest, pasts, taps, shift, state, rows, e, inside, E: tl.constexpr, K: tl.constexpr):
    """silu of the causal convolution, (BM, BN) float32, after the newest inputs (BM, BN); the state takes them in."""
    found = newest.to(tl.float32) * taps[K - 1].to(tl.float32)[None, :] + shift.to(tl.float32)[None, :]
    for j in tl.static_range(K - 1):
        found += pasts[j].to(tl.float32) * taps[j].to(tl.float32)[None, :]
    if K > 1:
        tl.debug_barrier()  # several lanes may hold an element and have loaded it; one of them stores it
        at = state + rows[:, None] * (K - 1) * E + e[None, :]
        for j in tl.static_range(1, K - 1):
            tl.store(at + (j - 1) * E, pasts[j], mask=inside)
        tl.store(at + (K - 2) * E, newest, mask=inside)
    return silu(found)


@triton.jit
def fetch(tensor, size):
    """This program's part of a contiguous tensor, of so many elements, into the L2 cache, by lines of 128 bytes."""
    step: tl.constexpr = 128 * 8 // tensor.dtype.element_ty.primitive_bitwidth
    lines = tl.cdiv(size, step)
    part = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    for first in range(part * 128, lines, tl.num_programs(0) * tl.num_programs(1) * 128):
        line = tl.minimum(first + tl.arange(0, 128), lines - 1)
        at = (tensor + line.to(tl.int64) * step).to(tl.int64)
        tl.inline_asm_elementwise(
            "{ prefetch.global.L2 [$1]; mov.u32 $0, 0; }", "=r,l", [at], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit
def enter_row_kernel(
    x, norm_weight, norm_bias, in_weight, conv_state, conv_weight, conv_bias, x_weight, u_out, z_out, partial, eps,
    D: tl.constexpr, E: tl.constexpr, W: tl.constexpr, K: tl.constexpr, RMS: tl.constexpr,
    HAS_NORM_BIAS: tl.constexpr, HAS_BIAS: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BW: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Of one sequence; BK holds a whole row."""
    is_u, place = half_and_place(E, BN)
    row = tl.program_id(1)
    e, k, w = place * BN + tl.arange(0, BN), tl.arange(0, BK), tl.arange(0, BW)
    in_row, in_width = e < E, k < D
    in_u = e < tl.where(is_u, E, 0)  # z has no convolution, and no part in x_proj
    at = in_weight + tl.where(is_u, 0, E * D) + e[:, None] * D + k[None, :]
    to_half = tl.load(at, mask=in_row[:, None] & in_width[None, :], other=0.0)
    to_x = tl.load(x_weight + w[:, None] * E + e[None, :], mask=(w < W)[:, None] & in_u[None, :], other=0.0)
    weight = tl.load(norm_weight + k, mask=in_width, other=0.0).to(tl.float32)
    bias = tl.load(norm_bias + k, mask=in_width, other=0.0).to(tl.float32) if HAS_NORM_BIAS else weight
    rows = row + tl.zeros((1,), tl.int32)
    pasts, taps, shift = last_inputs(conv_state, conv_weight, conv_bias, rows, e, in_u[None, :], E, K, HAS_BIAS)
    wait(PDL)
    given = tl.load(x + row * D + k, mask=in_width, other=0.0).to(tl.float32)
    normal = normalised_row(given, in_width, weight, bias, D, eps, RMS, HAS_NORM_BIAS)
    normal = normal.to(in_weight.dtype.element_ty).to(tl.float32)
    let_next_begin(PDL)
    found = tl.sum(to_half.to(tl.float32) * normal[None, :], axis=1)
    if is_u:
        newest = found.to(u_out.dtype.element_ty)[None, :]
        u = convolved(newest, pasts, taps, shift, conv_state, rows, e, in_row[None, :], E, K)
        u = tl.reshape(u, (BN,)).to(u_out.dtype.element_ty)
        tl.store(u_out + row * E + e, u, mask=in_row)
        share = tl.sum(to_x.to(tl.float32) * tl.where(in_row, u.to(tl.float32), 0.0)[None, :], axis=1)
        tl.store(partial + (place * tl.num_programs(1) + row) * W + w, share, mask=w < W)
    else:
        tl.store(z_out + row * E + e, found, mask=in_row)


@triton.jit
def enter_rows_kernel(
    x, in_weight, conv_state, conv_weight, conv_bias, x_weight, u_out, z_out, partial, batch,
    dt_weight, A_log, state, out_weight, D: tl.constexpr, E: tl.constexpr, W: tl.constexpr, K: tl.constexpr,
    N: tl.constexpr, R: tl.constexpr, HAS_BIAS: tl.constexpr, AHEAD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, BW: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The same of BM sequences, after the norm. ``AHEAD``: what the layer's next kernels read is fetched into L2."""
    is_u, place = half_and_place(E, BN)
    rows, e, w = tl.program_id(1) * BM + tl.arange(0, BM), place * BN + tl.arange(0, BN), tl.arange(0, BW)
    in_batch, in_row = rows < batch, e < E
    inside = in_batch[:, None] & in_row[None, :]
    in_u = e < tl.where(is_u, E, 0)
    past_inside = in_batch[:, None] & in_u[None, :]
    pasts, taps, shift = last_inputs(conv_state, conv_weight, conv_bias, rows, e, past_inside, E, K, HAS_BIAS)
    at_x = x_weight + e[:, None]
    to_x = tl.load(at_x + w[None, :] * E, mask=(w < W)[None, :] & in_u[:, None], other=0.0)
    wait(PDL)
    weight = in_weight + tl.where(is_u, 0, E * D)
    found = product(x, rows, in_batch, weight, e, in_row, D, BM, BN, BK, PDL)
    if AHEAD:
        fetch(state, batch * E * N)
        fetch(out_weight, D * E)
        fetch(dt_weight, E * R)
        fetch(A_log, E * N)
    places = rows[:, None] * E + e[None, :]
    if is_u:
        newest = found.to(u_out.dtype.element_ty)
        u = convolved(newest, pasts, taps, shift, conv_state, rows, e, inside, E, K)
        u = tl.where(inside, u, 0.0).to(u_out.dtype.element_ty)
        tl.store(u_out + places, u, mask=inside)
        at_share = partial + (place * batch + rows[:, None]) * W
        for first in tl.static_range(0, W, BW):
            if first > 0:
                w = first + tl.arange(0, BW)
                to_x = tl.load(at_x + w[None, :] * E, mask=(w < W)[None, :] & in_row[:, None], other=0.0)
            share = tl.dot(u, to_x, input_precision="ieee")
            tl.store(at_share + w[None, :], share, mask=in_batch[:, None] & (w < W)[None, :])
    else:
        tl.store(z_out + places, found, mask=inside)
