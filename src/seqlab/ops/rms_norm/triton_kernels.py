"""The loops of the fused RMSNorm in Triton.

A program holds R whole rows in registers at a time. Forward it takes one such tile. Backward it walks over several, far
apart, and keeps the sum of their shares of the weight's gradient, so that few shares have to be added up afterwards,
always in the same order.

Each group of columns has programs of its own, along the second axis of the grid.

Symbols (the rest as in ``operator.py``):

    P         D rounded up to a power of two
    R         rows of a tile
    ALIGN     divides the place where each row begins, which is what wide accesses need
    stream    x, or x + update
    normal    (R, P) the stream, times silu of the gate if there is one, times scale: a row before its weights
    g         (R, P) the gradient by normal
    S, C      shares and columns that a program adds at a time
"""

import triton
import triton.language as tl


@triton.jit
def _place(row, stride, D: tl.constexpr, P: tl.constexpr, ALIGN: tl.constexpr):
    """Where a group's numbers of rows (R,) are, in elements: (R, P)."""
    begin = tl.multiple_of(row.to(tl.int64) * stride + tl.program_id(1) * D, ALIGN)
    return begin[:, None] + tl.arange(0, P)[None, :]


@triton.jit
def _silu(gate):
    """silu of a gate, and its derivative."""
    sigma = 1.0 / (1.0 + tl.exp(-gate))
    return gate * sigma, sigma * (1.0 + gate * (1.0 - sigma))


@triton.jit
def forward_kernel(
    stream_ptr, y_ptr, scale_ptr, x_ptr, x_stride, update_ptr, update_stride, gate_ptr, gate_stride, weight_ptr, eps,
    rows, D: tl.constexpr, P: tl.constexpr, R: tl.constexpr, G: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """y (N, G D), scale (N, G) and, with an update, the stream (N, G D); rows of what is written follow one another."""
    row, column = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, P)
    exists, inside = row < rows, column < D
    here = exists[:, None] & inside[None, :]
    group = tl.program_id(1)
    x = tl.load(x_ptr + _place(row, x_stride, D, P, ALIGN), mask=here, other=0).to(tl.float32)
    if update_ptr is not None:
        x += tl.load(update_ptr + _place(row, update_stride, D, P, ALIGN), mask=here, other=0)
        stream = x.to(stream_ptr.dtype.element_ty)
        tl.store(stream_ptr + _place(row, G * D, D, P, ALIGN), stream, mask=here)
        x = stream.to(tl.float32)  # the norm is of what the backward pass will read
    if gate_ptr is not None:
        gate = tl.load(gate_ptr + _place(row, gate_stride, D, P, ALIGN), mask=here, other=0).to(tl.float32)
        silu, _ = _silu(gate)
        x *= silu
    weight = tl.load(weight_ptr + group * D + column, mask=inside, other=0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 1) / D + eps)  # (R,)
    y = x * scale[:, None] * weight[None, :]
    tl.store(y_ptr + _place(row, G * D, D, P, ALIGN), y.to(y_ptr.dtype.element_ty), mask=here)
    tl.store(scale_ptr + row * G + group, scale, mask=exists)


@triton.jit
def backward_kernel(
    dx_ptr, d_update_ptr, shares_ptr, y_ptr, d_gate_ptr, d_gate_stride, dy_ptr, dy_stride, d_stream_ptr,
    d_stream_stride, stream_ptr, stream_stride, gate_ptr, gate_stride, weight_ptr, scale_ptr, rows,
    D: tl.constexpr, P: tl.constexpr, R: tl.constexpr, G: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """dx (N, G D), whose rows follow one another, and each program's share (programs, G D) of the weight's gradient.

    With a gate d_gate (N, G D) too, and if it is wanted y (N, G D) again, whose rows follow one another. The gradient
    by the update is dx, written once more if its dtype is another.
    """
    group, column = tl.program_id(1), tl.arange(0, P)
    inside = column < D
    weight = tl.load(weight_ptr + group * D + column, mask=inside, other=0).to(tl.float32)[None, :]
    d_weight = tl.zeros([R, P], tl.float32)
    for first in range(tl.program_id(0) * R, rows, tl.num_programs(0) * R):
        row = first + tl.arange(0, R)
        exists = row < rows
        here = exists[:, None] & inside[None, :]
        place = _place(row, G * D, D, P, ALIGN)
        x = tl.load(stream_ptr + _place(row, stream_stride, D, P, ALIGN), mask=here, other=0).to(tl.float32)
        dy = tl.load(dy_ptr + _place(row, dy_stride, D, P, ALIGN), mask=here, other=0).to(tl.float32)
        scale = tl.load(scale_ptr + row * G + group, mask=exists, other=0)[:, None]
        normal, g = x * scale, dy * weight
        if gate_ptr is not None:
            gate = tl.load(gate_ptr + _place(row, gate_stride, D, P, ALIGN), mask=here, other=0).to(tl.float32)
            silu, slope = _silu(gate)
            normal = x * silu * scale
        along = tl.sum(g * normal, 1)[:, None] / D  # of g, what would only lengthen the row
        dx = (g - normal * along) * scale
        if gate_ptr is not None:
            d_gate = dx * x * slope
            d_gate_at = d_gate_ptr + _place(row, d_gate_stride, D, P, ALIGN)
            tl.store(d_gate_at, d_gate.to(d_gate_ptr.dtype.element_ty), mask=here)
            dx *= silu
        if y_ptr is not None:
            tl.store(y_ptr + place, (normal * weight).to(y_ptr.dtype.element_ty), mask=here)
        if d_stream_ptr is not None:
            dx += tl.load(d_stream_ptr + _place(row, d_stream_stride, D, P, ALIGN), mask=here, other=0)
        tl.store(dx_ptr + place, dx.to(dx_ptr.dtype.element_ty), mask=here)
        if d_update_ptr is not None:
            tl.store(d_update_ptr + place, dx.to(d_update_ptr.dtype.element_ty), mask=here)
        d_weight += dy * normal
    share = (tl.program_id(0) * G + group) * D
    tl.store(shares_ptr + share + column, tl.sum(d_weight, 0), mask=inside)


@triton.jit
def sum_shares_kernel(
    d_weight_ptr, shares_ptr, programs, D: tl.constexpr, S: tl.constexpr, C: tl.constexpr
):  # fmt: skip
    """d_weight (D,) from the shares (programs, D), D being all columns."""
    column = tl.program_id(0) * C + tl.arange(0, C)
    share = tl.arange(0, S)[:, None]
    total = tl.zeros([S, C], tl.float32)
    for first in range(0, programs, S):
        here = (first + share < programs) & (column < D)[None, :]
        total += tl.load(shares_ptr + (first + share) * D + column[None, :], mask=here, other=0)
    tl.store(d_weight_ptr + column, tl.sum(total, 0).to(d_weight_ptr.dtype.element_ty), mask=column < D)
