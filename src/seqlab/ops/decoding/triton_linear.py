"""Projections out of a layer and onto the vocabulary, and the likeliest word.

Symbols: B batch, I and O columns into and out of a projection. Weights are (O, I) as ``nn.Linear`` has them.
"""

import triton
import triton.language as tl

from seqlab.ops.decoding.triton_parts import let_next_begin, normalised_row, product, wait


@triton.jit
def row_linear_kernel(
    x, norm_weight, norm_bias, weight, bias, residual, out, eps, outs,
    INS: tl.constexpr, NORM: tl.constexpr, RMS: tl.constexpr, HAS_NORM_BIAS: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A projection of one row x (B, I), normalised before or added to a residual stream after; BK holds the row."""
    row = tl.program_id(1)
    o, k = tl.program_id(0) * BN + tl.arange(0, BN), tl.arange(0, BK)
    in_out, in_width = o < outs, k < INS
    places = o[:, None].to(tl.int64) * INS + k[None, :]
    w = tl.load(weight + places, mask=in_out[:, None] & in_width[None, :], other=0.0)
    if NORM:
        scale = tl.load(norm_weight + k, mask=in_width, other=0.0).to(tl.float32)
        shift = tl.load(norm_bias + k, mask=in_width, other=0.0).to(tl.float32) if HAS_NORM_BIAS else scale
    wait(PDL)
    let_next_begin(PDL)
    given = tl.load(x + row * INS + k, mask=in_width, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        before = tl.load(residual + row * outs + o, mask=in_out, other=0.0).to(tl.float32)
    if NORM:
        given = normalised_row(given, in_width, scale, shift, INS, eps, RMS, HAS_NORM_BIAS)
        given = given.to(weight.dtype.element_ty).to(tl.float32)
    found = tl.sum(w.to(tl.float32) * given[None, :], axis=1)
    if HAS_BIAS:
        found += tl.load(bias + o, mask=in_out, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        found = found.to(out.dtype.element_ty).to(tl.float32) + before
    tl.store(out + row * outs + o, found, mask=in_out)


@triton.jit
def rows_linear_kernel(
    x, weight, bias, residual, out, outs, batch, INS: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The same of BM rows, after a norm if there is one."""
    rows, o = tl.program_id(1) * BM + tl.arange(0, BM), tl.program_id(0) * BN + tl.arange(0, BN)
    in_batch, in_out = rows < batch, o < outs
    inside = in_batch[:, None] & in_out[None, :]
    places = rows[:, None].to(tl.int64) * outs + o[None, :]
    wait(PDL)
    if HAS_RESIDUAL:
        before = tl.load(residual + places, mask=inside, other=0.0).to(tl.float32)
    found = product(x, rows, in_batch, weight, o.to(tl.int64), in_out, INS, BM, BN, BK, PDL)
    if HAS_BIAS:
        found += tl.load(bias + o, mask=in_out, other=0.0).to(tl.float32)[None, :]
    if HAS_RESIDUAL:
        found = found.to(out.dtype.element_ty).to(tl.float32) + before
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
