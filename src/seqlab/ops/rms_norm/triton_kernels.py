"""The loops of the fused RMSNorm in Triton.

A program holds R whole rows in registers at a time. Forward it takes one such tile. Backward it walks over several, far
apart, and keeps the sum of their shares of the weight's gradient, so that few shares have to be added up afterwards,
always in the same order.

Symbols (the rest as in ``operator.py``):

    P         D rounded up to a power of two
    R         rows of a tile
    ALIGN     divides the place where each row begins, which is what wide accesses need
    stream    x, or x + update
    normal    (R, P) the stream times scale: a row before its weights
    g         (R, P) the gradient by normal
    S, C      shares and columns that a program adds at a time
"""

import triton
import triton.language as tl


@triton.jit
def _begin(row, stride, ALIGN: tl.constexpr):
    """Where rows (R,) begin, in elements, as a column."""
    return tl.multiple_of(row.to(tl.int64) * stride, ALIGN)[:, None]


@triton.jit
def forward_kernel(
    stream_ptr, y_ptr, scale_ptr, x_ptr, x_stride, update_ptr, update_stride, weight_ptr, eps, rows,
    D: tl.constexpr, P: tl.constexpr, R: tl.constexpr, ALIGN: tl.constexpr, HAS_UPDATE: tl.constexpr,
):  # fmt: skip
    """y (N, D), scale (N,) and, with an update, the stream (N, D); the rows of what is written follow one another."""
    row, column = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, P)
    exists, inside = row < rows, column < D
    here = exists[:, None] & inside[None, :]
    x = tl.load(x_ptr + _begin(row, x_stride, ALIGN) + column[None, :], mask=here, other=0).to(tl.float32)
    if HAS_UPDATE:
        x += tl.load(update_ptr + _begin(row, update_stride, ALIGN) + column[None, :], mask=here, other=0)
        stream = x.to(stream_ptr.dtype.element_ty)
        tl.store(stream_ptr + _begin(row, D, ALIGN) + column[None, :], stream, mask=here)
        x = stream.to(tl.float32)  # the norm is of what the backward pass will read
    weight = tl.load(weight_ptr + column, mask=inside, other=0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 1) / D + eps)  # (R,)
    y = x * scale[:, None] * weight[None, :]
    tl.store(y_ptr + _begin(row, D, ALIGN) + column[None, :], y.to(y_ptr.dtype.element_ty), mask=here)
    tl.store(scale_ptr + row, scale, mask=exists)


@triton.jit
def backward_kernel(
    dx_ptr, d_update_ptr, shares_ptr, dy_ptr, dy_stride, d_stream_ptr, d_stream_stride, stream_ptr, stream_stride,
    weight_ptr, scale_ptr, rows,
    D: tl.constexpr, P: tl.constexpr, R: tl.constexpr, ALIGN: tl.constexpr, HAS_D_STREAM: tl.constexpr,
    ROUNDS_UPDATE: tl.constexpr,
):  # fmt: skip
    """dx (N, D), whose rows follow one another, and each program's share (programs, D) of the weight's gradient.

    The gradient by the update is dx, which ``ROUNDS_UPDATE`` writes once more in the update's dtype.
    """
    column = tl.arange(0, P)
    inside = column < D
    weight = tl.load(weight_ptr + column, mask=inside, other=0).to(tl.float32)[None, :]
    d_weight = tl.zeros([R, P], tl.float32)
    for first in range(tl.program_id(0) * R, rows, tl.num_programs(0) * R):
        row = first + tl.arange(0, R)
        exists = row < rows
        here = exists[:, None] & inside[None, :]
        x = tl.load(stream_ptr + _begin(row, stream_stride, ALIGN) + column[None, :], mask=here, other=0).to(tl.float32)
        dy = tl.load(dy_ptr + _begin(row, dy_stride, ALIGN) + column[None, :], mask=here, other=0).to(tl.float32)
        scale = tl.load(scale_ptr + row, mask=exists, other=0)[:, None]
        normal, g = x * scale, dy * weight
        along = tl.sum(g * normal, 1)[:, None] / D  # of g, what would only lengthen the row
        dx = (g - normal * along) * scale
        if HAS_D_STREAM:
            dx += tl.load(d_stream_ptr + _begin(row, d_stream_stride, ALIGN) + column[None, :], mask=here, other=0)
        place = _begin(row, D, ALIGN) + column[None, :]
        tl.store(dx_ptr + place, dx.to(dx_ptr.dtype.element_ty), mask=here)
        if ROUNDS_UPDATE:
            tl.store(d_update_ptr + place, dx.to(d_update_ptr.dtype.element_ty), mask=here)
        d_weight += dy * normal
    tl.store(shares_ptr + tl.program_id(0) * D + column, tl.sum(d_weight, 0), mask=inside)


@triton.jit
def sum_shares_kernel(
    d_weight_ptr, shares_ptr, programs, D: tl.constexpr, S: tl.constexpr, C: tl.constexpr
):  # fmt: skip
    """d_weight (D,) from the shares (programs, D)."""
    column = tl.program_id(0) * C + tl.arange(0, C)
    share = tl.arange(0, S)[:, None]
    total = tl.zeros([S, C], tl.float32)
    for first in range(0, programs, S):
        here = (first + share < programs) & (column < D)[None, :]
        total += tl.load(shares_ptr + (first + share) * D + column[None, :], mask=here, other=0)
    tl.store(d_weight_ptr + column, tl.sum(total, 0).to(d_weight_ptr.dtype.element_ty), mask=column < D)
