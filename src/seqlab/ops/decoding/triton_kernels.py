"""The kernels of one position: norm and projection, the state's update, projection and residual connection.

Symbols: B batch, D model width, E inner width, N state size, R rank of delta, K width of the convolution, W = R + 2 N
columns of ``x_proj``, V vocabulary; P programs that a row of inner channels is cut into. Weights are (out, in) as
``nn.Linear`` has them. Sums are in float32.

At batch 1 a kernel's time is that of fetching its weights, and of waiting for the kernel before it. So each program
asks for its weights first, which no other kernel writes, and only then waits (``PDL``: programmatic dependent launch,
where a kernel may begin before its predecessor has ended; ``gdc_wait`` returns when that has). Larger batches go
through tiles of ``BM`` sequences on the tensor cores.
"""

import triton
import triton.language as tl


@triton.jit
def wait(PDL: tl.constexpr):
    """Until the kernels before this one have ended and what they wrote can be read."""
    if PDL:
        tl.extra.cuda.gdc_wait()


@triton.jit
def let_next_begin(PDL: tl.constexpr):
    """The next kernel may take its place on the device; it waits there for this one."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def silu(x):
    """x sigmoid(x), elementwise."""
    return x / (1.0 + tl.exp(-x))


@triton.jit
def softplus(x):
    """log(1 + exp(x)); above 20 it is x in float32, as torch has it."""
    return tl.where(x > 20.0, x, tl.log(1.0 + tl.exp(tl.minimum(x, 20.0))))


@triton.jit
def normalised_row(row, inside, weight, bias, D: tl.constexpr, eps, RMS: tl.constexpr, HAS_BIAS: tl.constexpr):
    """RMSNorm or LayerNorm of one row (BK,), whose first D columns are ``inside``."""
    if not RMS:
        row = tl.where(inside, row - tl.sum(row) / D, 0.0)
    normal = row * tl.rsqrt(tl.sum(row * row) / D + eps) * weight
    if HAS_BIAS:
        normal += bias
    return normal


@triton.jit
def statistics(x, rows, in_batch, D: tl.constexpr, eps, BM: tl.constexpr, BK: tl.constexpr):
    """Mean and the reciprocal of the deviation of rows of x (B, D), as LayerNorm has them: (BM,) each."""
    mean = tl.zeros((BM,), tl.float32)
    for start in range(0, D, BK):
        k = start + tl.arange(0, BK)
        part = tl.load(x + rows[:, None] * D + k[None, :], mask=in_batch[:, None] & (k < D)[None, :], other=0.0)
        mean += tl.sum(part.to(tl.float32), axis=1)
    mean /= D
    squares = tl.zeros((BM,), tl.float32)
    for start in range(0, D, BK):
        k = start + tl.arange(0, BK)
        inside = in_batch[:, None] & (k < D)[None, :]
        part = tl.load(x + rows[:, None] * D + k[None, :], mask=inside, other=0.0).to(tl.float32)
        part = tl.where(inside, part - mean[:, None], 0.0)
        squares += tl.sum(part * part, axis=1)
    return mean, tl.rsqrt(squares / D + eps)


@triton.jit
def weighted(tile, k, norm_weight, norm_bias, D: tl.constexpr, HAS_BIAS: tl.constexpr):
    """Columns k of rows (BM, BK) by the norm's weight and bias, which are 0 past the last column."""
    tile *= tl.load(norm_weight + k, mask=k < D, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        tile += tl.load(norm_bias + k, mask=k < D, other=0.0).to(tl.float32)[None, :]
    return tile


@triton.jit
def last_inputs(state, weight, bias, rows, e, inside, E: tl.constexpr, K: tl.constexpr, KP: tl.constexpr,
                HAS_BIAS: tl.constexpr):  # fmt: skip
    """The last inputs of the convolution (BM, BN, KP), its weights (1, BN, KP) and its bias (1, BN), with KP >= K.

    ``state`` is (B, K - 1, E), the oldest input first; read before ``wait``, so the kernel before must not write it.
    """
    j = tl.arange(0, KP)
    places = (rows[:, None] * (K - 1) * E + e[None, :])[:, :, None] + (j * E)[None, None, :]
    past = tl.load(state + places, mask=inside[:, :, None] & (j < K - 1)[None, None, :], other=0.0)
    kept = (e < E)[None, :, None] & (j < K)[None, None, :]
    taps = tl.load(weight + (e * K)[None, :, None] + j[None, None, :], mask=kept, other=0.0).to(tl.float32)
    shift = tl.load(bias + e, mask=e < E, other=0.0).to(tl.float32)[None, :] if HAS_BIAS else tl.sum(taps, axis=2) * 0.0
    return past, taps, shift


@triton.jit
def convolved(u, past, taps, shift, state, rows, e, inside, E: tl.constexpr, K: tl.constexpr, KP: tl.constexpr):
    """The causal convolution of u (BM, BN) after its last inputs, with silu; the state moves on by one position.

    u is float32 with the precision of the state's dtype.
    """
    j = tl.arange(0, KP)[None, None, :]
    y = tl.sum(tl.where(j == K - 1, u[:, :, None], past.to(tl.float32)) * taps, axis=2) + shift
    if K > 1:
        tl.debug_barrier()  # several lanes may hold an element and have loaded it; one of them stores it
        at = state + rows[:, None] * (K - 1) * E + e[None, :]
        tl.store(at[:, :, None] + (j - 1) * E, past, mask=inside[:, :, None] & (j >= 1) & (j < K - 1))
        tl.store(at + (K - 2) * E, u, mask=inside)
    return silu(y)


@triton.jit
def enter_row_kernel(
    x, norm_weight, norm_bias, in_weight, conv_state, conv_weight, conv_bias, x_weight, u_out, z_out, partial, eps,
    D: tl.constexpr, E: tl.constexpr, W: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, RMS: tl.constexpr,
    HAS_NORM_BIAS: tl.constexpr, HAS_BIAS: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BW: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Norm, ``in_proj``, convolution, and this program's share of ``x_proj``, of one sequence; BK holds a whole row."""
    program, row = tl.program_id(0), tl.program_id(1)
    e, k, w = program * BN + tl.arange(0, BN), tl.arange(0, BK), tl.arange(0, BW)
    in_row, in_width = e < E, k < D
    whole = in_row[:, None] & in_width[None, :]
    at = in_weight + e[:, None] * D + k[None, :]
    to_u = tl.load(at, mask=whole, other=0.0)
    to_z = tl.load(at + E * D, mask=whole, other=0.0)
    to_x = tl.load(x_weight + w[:, None] * E + e[None, :], mask=(w < W)[:, None] & in_row[None, :], other=0.0)
    weight = tl.load(norm_weight + k, mask=in_width, other=0.0).to(tl.float32)
    bias = tl.load(norm_bias + k, mask=in_width, other=0.0).to(tl.float32) if HAS_NORM_BIAS else weight
    rows, inside = row + tl.zeros((1,), tl.int32), in_row[None, :]
    past, taps, shift = last_inputs(conv_state, conv_weight, conv_bias, rows, e, inside, E, K, KP, HAS_BIAS)
    wait(PDL)
    let_next_begin(PDL)
    given = tl.load(x + row * D + k, mask=in_width, other=0.0).to(tl.float32)
    normal = normalised_row(given, in_width, weight, bias, D, eps, RMS, HAS_NORM_BIAS)
    normal = normal.to(in_weight.dtype.element_ty).to(tl.float32)
    u = tl.sum(to_u.to(tl.float32) * normal[None, :], axis=1)
    z = tl.sum(to_z.to(tl.float32) * normal[None, :], axis=1)
    tl.store(z_out + row * E + e, z, mask=in_row)
    u = u.to(u_out.dtype.element_ty).to(tl.float32)
    u = convolved(u[None, :], past, taps, shift, conv_state, rows, e, inside, E, K, KP)
    u = tl.reshape(u, (BN,)).to(u_out.dtype.element_ty)
    tl.store(u_out + row * E + e, u, mask=in_row)
    share = tl.sum(to_x.to(tl.float32) * tl.where(in_row, u.to(tl.float32), 0.0)[None, :], axis=1)
    batch = tl.num_programs(1)
    tl.store(partial + (program * batch + row) * W + w, share, mask=w < W)


@triton.jit
def enter_rows_kernel(
    x, norm_weight, norm_bias, in_weight, conv_state, conv_weight, conv_bias, x_weight, u_out, z_out, partial, eps,
    batch,
    D: tl.constexpr, E: tl.constexpr, W: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, RMS: tl.constexpr,
    HAS_NORM_BIAS: tl.constexpr, HAS_BIAS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    BW: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The same of BM sequences."""
    program = tl.program_id(0)
    rows, e = tl.program_id(1) * BM + tl.arange(0, BM), program * BN + tl.arange(0, BN)
    in_batch, in_row = rows < batch, e < E
    inside = in_batch[:, None] & in_row[None, :]
    dtype = in_weight.dtype.element_ty
    past, taps, shift = last_inputs(conv_state, conv_weight, conv_bias, rows, e, inside, E, K, KP, HAS_BIAS)
    wait(PDL)
    let_next_begin(PDL)
    if not RMS:
        mean, scale = statistics(x, rows, in_batch, D, eps, BM, BK)
    u = tl.zeros((BM, BN), tl.float32)
    z = tl.zeros((BM, BN), tl.float32)
    squares = tl.zeros((BM, BK), tl.float32)
    for start in range(0, D, BK):
        k = start + tl.arange(0, BK)
        given = tl.load(x + rows[:, None] * D + k[None, :], mask=in_batch[:, None] & (k < D)[None, :], other=0.0)
        at = in_weight + e[None, :] * D + k[:, None]
        whole = in_row[None, :] & (k < D)[:, None]
        to_u, to_z = tl.load(at, mask=whole, other=0.0), tl.load(at + E * D, mask=whole, other=0.0)
        given = given.to(tl.float32)
        if RMS:
            squares += given * given
        else:
            given = (given - mean[:, None]) * scale[:, None]
        given = weighted(given, k, norm_weight, norm_bias, D, HAS_NORM_BIAS).to(dtype)
        u = tl.dot(given, to_u, u, input_precision="ieee")
        z = tl.dot(given, to_z, z, input_precision="ieee")
    if RMS:  # once a row is known; that needs no second pass
        scale = tl.rsqrt(tl.sum(squares, axis=1) / D + eps)
        u *= scale[:, None]
        z *= scale[:, None]
    places = rows[:, None] * E + e[None, :]
    tl.store(z_out + places, z, mask=inside)
    u = u.to(dtype).to(tl.float32)
    u = convolved(u, past, taps, shift, conv_state, rows, e, inside, E, K, KP).to(dtype)
    u = tl.where(inside, u, 0.0).to(dtype)
    tl.store(u_out + places, u, mask=inside)
    w = tl.arange(0, BW)
    to_x = tl.load(x_weight + w[None, :] * E + e[:, None], mask=(w < W)[None, :] & in_row[:, None], other=0.0)
    share = tl.dot(u, to_x, input_precision="ieee")
    places = (program * batch + rows[:, None]) * W + w[None, :]
    tl.store(partial + places, share, mask=in_batch[:, None] & (w < W)[None, :])


@triton.jit
def update_kernel(
    partial, u, z, dt_weight, dt_bias, A_log, skip, state, y, programs,
    E: tl.constexpr, N: tl.constexpr, R: tl.constexpr, BE: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr,
    BP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """``dt_proj``, the selective scan's step and the gate, of BE channels of one sequence; the state moves on."""
    row = tl.program_id(1).to(tl.int64)  # states of many sequences are past the range of 32 bits
    e, n, r, p = tl.program_id(0) * BE + tl.arange(0, BE), tl.arange(0, BN), tl.arange(0, BR), tl.arange(0, BP)
    in_row = e < E
    of_state = in_row[:, None] & (n < N)[None, :]
    to_delta = tl.load(dt_weight + e[:, None] * R + r[None, :], mask=in_row[:, None] & (r < R)[None, :], other=0.0)
    A = -tl.exp(tl.load(A_log + e[:, None] * N + n[None, :], mask=of_state, other=0.0).to(tl.float32))
    delta_bias = tl.load(dt_bias + e, mask=in_row, other=0.0).to(tl.float32)
    D = tl.load(skip + e, mask=in_row, other=0.0).to(tl.float32)
    at = state + row * E * N + e[:, None] * N + n[None, :]
    h = tl.load(at, mask=of_state, other=0.0)  # before ``wait``: the kernel before this one does not write it
    wait(PDL)
    let_next_begin(PDL)
    batch, width = tl.num_programs(1), R + 2 * N
    dt, B, C = tl.zeros((BR,), tl.float32), tl.zeros((BN,), tl.float32), tl.zeros((BN,), tl.float32)
    for start in range(0, programs, BP):
        part = start + p
        shares = partial + (part[:, None] * batch + row) * width
        there = (part < programs)[:, None]
        dt += tl.sum(tl.load(shares + r[None, :], mask=there & (r < R)[None, :], other=0.0), axis=0)
        B += tl.sum(tl.load(shares + R + n[None, :], mask=there & (n < N)[None, :], other=0.0), axis=0)
        C += tl.sum(tl.load(shares + R + N + n[None, :], mask=there & (n < N)[None, :], other=0.0), axis=0)
    delta = softplus(tl.sum(to_delta.to(tl.float32) * dt[None, :], axis=1) + delta_bias)
    given = tl.load(u + row * E + e, mask=in_row, other=0.0).to(tl.float32)
    gate = tl.load(z + row * E + e, mask=in_row, other=0.0).to(tl.float32)
    h = tl.exp(delta[:, None] * A) * h + (delta * given)[:, None] * B[None, :]
    tl.debug_barrier()  # several lanes may hold an element and have loaded it; one of them stores it
    tl.store(at, h, mask=of_state)
    out = (tl.sum(h * C[None, :], axis=1) + D * given) * silu(gate)
    tl.store(y + row * E + e, out, mask=in_row)


@triton.jit
def sum_kernel(shares, total, size, programs, BP: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """The sum of (P, size) over P, once: for a large batch, each of the next kernel's programs would add as many."""
    i, p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, BP)
    wait(PDL)
    let_next_begin(PDL)
    found = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, programs, BP):
        part = start + p
        there = (part < programs)[:, None] & (i < size)[None, :]
        found += tl.sum(tl.load(shares + part[:, None] * size + i[None, :], mask=there, other=0.0), axis=0)
    tl.store(total + i, found, mask=i < size)


@triton.jit
def row_linear_kernel(
    x, norm_weight, norm_bias, weight, bias, residual, out, eps, outs,
    INS: tl.constexpr, NORM: tl.constexpr, RMS: tl.constexpr, HAS_NORM_BIAS: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A projection of one row x (B, INS), normalised before or added to a residual stream after; BK holds the row."""
    row = tl.program_id(1)
    o, k = tl.program_id(0) * BN + tl.arange(0, BN), tl.arange(0, BK)
    in_out, in_width = o < outs, k < INS
    places = o[:, None].to(tl.int64) * INS + k[None, :]
    w = tl.load(weight + places, mask=in_out[:, None] & in_width[None, :], other=0.0)
    wait(PDL)
    let_next_begin(PDL)
    given = tl.load(x + row * INS + k, mask=in_width, other=0.0).to(tl.float32)
    if NORM:
        scale = tl.load(norm_weight + k, mask=in_width, other=0.0).to(tl.float32)
        shift = tl.load(norm_bias + k, mask=in_width, other=0.0).to(tl.float32) if HAS_NORM_BIAS else scale
        given = normalised_row(given, in_width, scale, shift, INS, eps, RMS, HAS_NORM_BIAS)
        given = given.to(weight.dtype.element_ty).to(tl.float32)
    found = tl.sum(w.to(tl.float32) * given[None, :], axis=1)
    if HAS_BIAS:
        found += tl.load(bias + o, mask=in_out, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        found = found.to(out.dtype.element_ty).to(tl.float32)
        found += tl.load(residual + row * outs + o, mask=in_out, other=0.0).to(tl.float32)
    tl.store(out + row * outs + o, found, mask=in_out)


@triton.jit
def rows_linear_kernel(
    x, norm_weight, norm_bias, weight, bias, residual, out, eps, outs, batch,
    INS: tl.constexpr, NORM: tl.constexpr, RMS: tl.constexpr, HAS_NORM_BIAS: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The same of BM rows."""
    rows, o = tl.program_id(1) * BM + tl.arange(0, BM), tl.program_id(0) * BN + tl.arange(0, BN)
    in_batch, in_out = rows < batch, o < outs
    inside = in_batch[:, None] & in_out[None, :]
    dtype = weight.dtype.element_ty
    wait(PDL)
    let_next_begin(PDL)
    if NORM and not RMS:
        mean, scale = statistics(x, rows, in_batch, INS, eps, BM, BK)
    found = tl.zeros((BM, BN), tl.float32)
    squares = tl.zeros((BM, BK), tl.float32)
    for start in range(0, INS, BK):
        k = start + tl.arange(0, BK)
        given = tl.load(x + rows[:, None] * INS + k[None, :], mask=in_batch[:, None] & (k < INS)[None, :], other=0.0)
        w = tl.load(
            weight + o[None, :].to(tl.int64) * INS + k[:, None], mask=in_out[None, :] & (k < INS)[:, None], other=0.0
        )
        if NORM:
            given = given.to(tl.float32)
            if RMS:
                squares += given * given
            else:
                given = (given - mean[:, None]) * scale[:, None]
            given = weighted(given, k, norm_weight, norm_bias, INS, HAS_NORM_BIAS).to(dtype)
        found = tl.dot(given, w, found, input_precision="ieee")
    if NORM and RMS:
        found *= tl.rsqrt(tl.sum(squares, axis=1) / INS + eps)[:, None]
    if HAS_BIAS:
        found += tl.load(bias + o, mask=in_out, other=0.0).to(tl.float32)[None, :]
    places = rows[:, None].to(tl.int64) * outs + o[None, :]
    if HAS_RESIDUAL:
        found = found.to(out.dtype.element_ty).to(tl.float32)
        found += tl.load(residual + places, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + places, found, mask=inside)


@triton.jit
def likeliest_kernel(values, columns, best, where, count: tl.constexpr, width: tl.constexpr, BLOCK: tl.constexpr,
                     LAST: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """The largest number of each piece of BLOCK in rows of values (B, count), and its column, the first of equals.

    NaN counts as the largest. ``LAST`` takes the columns from ``columns``, as the first pass left them, and ends with
    the column alone.
    """
    row, piece = tl.program_id(1).to(tl.int64), tl.program_id(0)
    place = piece * BLOCK + tl.arange(0, BLOCK)
    wait(PDL)
    let_next_begin(PDL)
    value = tl.load(values + row * count + place, mask=place < count, other=float("-inf")).to(tl.float32)
    value = tl.where(value != value, float("inf"), value)
    column = tl.load(columns + row * count + place, mask=place < count, other=width) if LAST else place
    highest = tl.max(value)
    first = tl.min(tl.where((value == highest) & (place < count), column, width))
    if LAST:
        tl.store(where + row, first.to(tl.int64))
    else:
        tl.store(best + row * tl.num_programs(0) + piece, highest)
        tl.store(where + row * tl.num_programs(0) + piece, first)
