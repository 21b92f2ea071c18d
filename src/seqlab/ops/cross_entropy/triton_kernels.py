"""The loops of the fused cross-entropy in Triton.

A program owns R rows: one, or several where the vocabulary is small. It walks along them in rounds of T groups of W
columns; a group is what a thread moves in one access of 16 bytes, so the walk begins at the first column of a row whose
address allows that. The few columns before it and after the last whole group are the row's edges.

Each thread keeps a running maximum and sum for every group place of its own, and only at the end of a row do threads
meet, which leaves it free to have several loads under way.

Symbols (the rest as in ``operator.py``):

    R, T, W     rows of a program, groups of a round, columns of a group
    EDGES       whether rows have edges, known from their distance and length
    begin       (R,) where each row begins in its tensor, in elements
    first       (R,) the column of each row's first whole group
    groups      (R,) how many whole groups follow it
    m, s        the running maximum and the sum of exp(x - m)
"""

import triton
import triton.language as tl


@triton.jit
def _whole_groups(begin, columns, W: tl.constexpr, EDGES: tl.constexpr):
    """first and groups, (R,) int32, of rows that begin there."""
    first = tl.zeros_like(begin).to(tl.int32)
    if EDGES:
        first = tl.minimum(((W - begin % W) % W).to(tl.int32), columns)
    return first, (columns - first) // W


@triton.jit
def _edge_columns(first, groups, columns, W: tl.constexpr):
    """The columns (R, 2 W) before and after the whole groups, and which of them exist."""
    e = tl.arange(0, 2 * W)[None, :]
    column = tl.where(e < W, e, (first + groups * W)[:, None] + (e - W))
    return column, tl.where(e < W, e < first[:, None], column < columns)


@triton.jit
def _base(m):
    """What to subtract from logits whose maximum is m: where all are -inf, not that, for it would give NaN."""
    return tl.where(m == float("-inf"), 0.0, m)


@triton.jit
def forward_kernel(
    losses_ptr, kept_ptr, logits_ptr, stride, targets_ptr, ignore_index, rows, columns,
    R: tl.constexpr, T: tl.constexpr, W: tl.constexpr, EDGES: tl.constexpr,
):  # fmt: skip
    """losses (N,) and kept (2, N)."""
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    exists = row < rows
    target = tl.load(targets_ptr + row, mask=exists, other=ignore_index)
    counts = target != ignore_index
    begin = row * stride
    first, groups = _whole_groups(begin, columns, W, EDGES)
    groups = tl.where(counts, groups, 0)
    row_at = logits_ptr + tl.multiple_of(begin + first, W)[:, None, None]
    place, inside = tl.arange(0, T)[None, :], tl.arange(0, W)[None, None, :]

    m = tl.full((R, T), float("-inf"), tl.float32)
    s = tl.zeros((R, T), tl.float32)
    for done in range(0, tl.max(groups, 0), T):
        group = done + place  # (1, T)
        here = (group < groups[:, None])[:, :, None]
        x = tl.load(row_at + (group[:, :, None] * W + inside), mask=here, other=float("-inf")).to(tl.float32)
        highest = tl.maximum(m, tl.max(x, 2))
        base = _base(highest)
        s = s * tl.exp(m - base) + tl.sum(tl.exp(x - base[:, :, None]), 2)
        m = highest

    highest = tl.max(m, 1)  # (R,)
    if EDGES:
        column, here = _edge_columns(first, groups, columns, W)
        edge_at = logits_ptr + begin[:, None] + column
        x_edge = tl.load(edge_at, mask=here & counts[:, None], other=float("-inf")).to(tl.float32)
        highest = tl.maximum(highest, tl.max(x_edge, 1))
    base = _base(highest)
    total = tl.sum(s * tl.exp(m - base[:, None]), 1)
    if EDGES:
        total += tl.sum(tl.exp(x_edge - base[:, None]), 1)
    valid = (target >= 0) & (target < columns)
    own = tl.load(logits_ptr + begin + target, mask=counts & valid, other=float("nan")).to(tl.float32)
    log_sum = tl.where(valid, tl.log(tl.where(counts, total, 1.0)), float("nan"))
    tl.store(losses_ptr + row, tl.where(counts, log_sum - (own - highest), 0.0), mask=exists)
    tl.store(kept_ptr + row, tl.where(counts, highest, 0.0), mask=exists)
    tl.store(kept_ptr + rows + row, tl.where(counts, log_sum, 0.0), mask=exists)


@triton.jit
def backward_kernel(
    d_logits_ptr, d_stride, d_losses_ptr, losses_stride, logits_ptr, stride, targets_ptr, kept_ptr, ignore_index,
    rows, columns,
    R: tl.constexpr, T: tl.constexpr, W: tl.constexpr, EDGES: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """d_logits (N, V), which may be the logits; ALIGNED says whether whole groups of its rows are the logits'."""
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    exists = row < rows
    target = tl.load(targets_ptr + row, mask=exists, other=ignore_index)
    g = tl.load(d_losses_ptr + row * losses_stride, mask=exists, other=0).to(tl.float32)
    reads = (target != ignore_index) & (g != 0)
    g = tl.where(reads, g, 0.0)[:, None, None]
    m = tl.load(kept_ptr + row, mask=reads, other=0)[:, None, None]
    log_sum = tl.load(kept_ptr + rows + row, mask=reads, other=0)[:, None, None]
    begin, d_begin = row * stride, row * d_stride
    first, groups = _whole_groups(d_begin, columns, W, EDGES)
    source = begin + first
    if ALIGNED:
        source = tl.multiple_of(source, W)
    row_at = logits_ptr + source[:, None, None]
    d_row_at = d_logits_ptr + tl.multiple_of(d_begin + first, W)[:, None, None]
    place, inside = tl.arange(0, T)[None, :], tl.arange(0, W)[None, None, :]
    own = (target - first)[:, None, None]  # the target's column, counted from the first whole group
    until = tl.where(exists, groups, 0)

    for done in range(0, tl.max(until, 0), T):
        group = done + place
        column = group[:, :, None] * W + inside  # (1, T, W)
        here = (group < until[:, None])[:, :, None]  # (R, T, 1)
        x = tl.load(row_at + column, mask=here & reads[:, None, None], other=0).to(tl.float32)
        dx = g * (tl.exp((x - m) - log_sum) - (column == own).to(tl.float32))
        tl.store(d_row_at + column, dx.to(d_logits_ptr.dtype.element_ty), mask=here)

    if EDGES:
        column, here = _edge_columns(first, groups, columns, W)  # (R, 2 W)
        here = here & exists[:, None]
        x = tl.load(logits_ptr + begin[:, None] + column, mask=here & reads[:, None], other=0).to(tl.float32)
        softmax = tl.exp((x - m.reshape(R, 1)) - log_sum.reshape(R, 1))
        dx = g.reshape(R, 1) * (softmax - (column == target[:, None]).to(tl.float32))
        tl.store(d_logits_ptr + d_begin[:, None] + column, dx.to(d_logits_ptr.dtype.element_ty), mask=here)
