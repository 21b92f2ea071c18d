"""Grouped matrix products in Triton, and the kernels between and after them.

A program of a product computes one tile of one expert's rows. It derives the expert from ``ends``, so the host launches
as many programs as there could be and needs no group's size.

Symbols (the rest as in ``operator.py``):

    FAN         k, the experts of a token; the row number at a place divided by it is the token
    BM, BN, BK  rows, columns and summands of a tile
    EXPERTS     E rounded up to a power of two
    PRECISION   of products of float32: "tf32x3" is float32's accuracy from three products of TensorFloat32
    rows        (BM,) the row of each place, in a tensor in sorted order or in one with a row for each token
"""

import triton
import triton.language as tl


@triton.jit
def _group_of(tile, ends_ptr, n_experts, BM: tl.constexpr, EXPERTS: tl.constexpr):
    """Expert, first place and end of the tile's rows; the expert is n_experts or more if there is no such tile."""
    e = tl.arange(0, EXPERTS)
    end = tl.load(ends_ptr + e, mask=e < n_experts, other=0)
    begin = tl.load(ends_ptr + e - 1, mask=(e > 0) & (e < n_experts), other=0)
    tiles = (end - begin + BM - 1) // BM
    until = tl.cumsum(tiles, 0)
    expert = tl.sum((until <= tile).to(tl.int32), 0)
    here = e == expert
    first = tl.sum(tl.where(here, begin + (tile - until + tiles) * BM, 0), 0)
    return expert, first, tl.sum(tl.where(here, end, 0), 0)


@triton.jit
def _rows(order_ptr, place, exists, FAN: tl.constexpr, SPREAD: tl.constexpr):
    if SPREAD:
        rows = tl.load(order_ptr + place, mask=exists, other=0) // FAN
    else:
        rows = place.to(tl.int64)
    return rows


@triton.jit
def product_kernel(
    y_ptr,
    x_ptr,
    w_ptr,
    w_e,
    w_k,
    w_n,
    order_ptr,
    ends_ptr,
    n_experts,
    K,
    N,
    FAN: tl.constexpr,
    SPREAD: tl.constexpr,
    EXPERTS: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """A tile of y (M, N): rows of x (M, K) or (T, K) times the matrix (K, N) of their expert."""
    column_blocks = tl.cdiv(N, BN)
    expert, first, end = _group_of(tl.program_id(0) // column_blocks, ends_ptr, n_experts, BM, EXPERTS)
    if expert < n_experts:
        place = first + tl.arange(0, BM)
        column = (tl.program_id(0) % column_blocks) * BN + tl.arange(0, BN)
        exists = place < end
        k = tl.arange(0, BK)
        x_at = x_ptr + _rows(order_ptr, place, exists, FAN, SPREAD)[:, None] * K + k[None, :]
        w_at = w_ptr + expert.to(tl.int64) * w_e + k[:, None] * w_k + column[None, :] * w_n
        total = tl.zeros((BM, BN), dtype=tl.float32)
        for done in range(0, K, BK):
            x = tl.load(x_at, mask=exists[:, None] & (k[None, :] < K - done), other=0)
            w = tl.load(w_at, mask=(k[:, None] < K - done) & (column[None, :] < N), other=0)
            total = tl.dot(x, w, total, input_precision=PRECISION)
            x_at += BK
            w_at += BK * w_k
        y_at = y_ptr + place.to(tl.int64)[:, None] * N + column[None, :]
        tl.store(y_at, total.to(y_ptr.dtype.element_ty), mask=exists[:, None] & (column[None, :] < N))


@triton.jit
def outer_kernel(
    y_ptr,
    left_ptr,
    right_ptr,
    right_m,
    right_n,
    order_ptr,
    ends_ptr,
    K,
    N,
    y_k,
    y_n,
    FAN: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """A (BK, BN) tile of one expert's y (K, N): the sum of left_m right_m^T over its rows, BM at a time.

    LEFT and RIGHT say which of the two has a row for each token. ``right_m`` and ``right_n`` are right's strides,
    ``y_k`` and ``y_n`` those of one expert's y.
    """
    column_blocks = tl.cdiv(N, BN)
    expert = tl.program_id(1)
    k = (tl.program_id(0) // column_blocks) * BK + tl.arange(0, BK)
    column = (tl.program_id(0) % column_blocks) * BN + tl.arange(0, BN)
    begin = tl.load(ends_ptr + expert - 1, mask=expert > 0, other=0)
    end = tl.load(ends_ptr + expert)
    total = tl.zeros((BK, BN), dtype=tl.float32)
    for first in range(begin, end, BM):
        place = first + tl.arange(0, BM)
        exists = place < end
        left_at = left_ptr + _rows(order_ptr, place, exists, FAN, LEFT)[None, :] * K + k[:, None]
        left = tl.load(left_at, mask=exists[None, :] & (k[:, None] < K), other=0)  # (BK, BM)
        right_row = _rows(order_ptr, place, exists, FAN, RIGHT)[:, None] * right_m
        right_at = right_ptr + right_row + column[None, :].to(tl.int64) * right_n
        right = tl.load(right_at, mask=exists[:, None] & (column[None, :] < N), other=0)  # (BM, BN)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    y_at = y_ptr + expert.to(tl.int64) * K * N + k[:, None] * y_k + column[None, :] * y_n
    tl.store(y_at, total.to(y_ptr.dtype.element_ty), mask=(k[:, None] < K) & (column[None, :] < N))


@triton.jit
def activate_kernel(
    active_ptr, hidden_ptr, gates_ptr, order_ptr, rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """active (M, H) = silu(a) b gate for hidden = [a b] (M, 2 H)."""
    place = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    exists = place < rows
    mask = exists[:, None] & (column[None, :] < width)
    gate = tl.load(gates_ptr + tl.load(order_ptr + place, mask=exists, other=0), mask=exists, other=0)
    a_at = hidden_ptr + place[:, None] * (2 * width) + column[None, :]
    a = tl.load(a_at, mask=mask, other=0).to(tl.float32)
    b = tl.load(a_at + width, mask=mask, other=0).to(tl.float32)
    active = a * tl.sigmoid(a) * b * gate[:, None]
    tl.store(active_ptr + place[:, None] * width + column[None, :], active.to(active_ptr.dtype.element_ty), mask=mask)


@triton.jit
def activate_backward_kernel(
    d_hidden_ptr,
    active_ptr,
    d_gates_ptr,
    d_active_ptr,
    hidden_ptr,
    gates_ptr,
    order_ptr,
    rows,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradients of hidden and of the gates, and active again, for whole rows."""
    place = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    exists = place < rows
    row = tl.load(order_ptr + place, mask=exists, other=0)
    gate = tl.load(gates_ptr + row, mask=exists, other=0)[:, None]
    d_gate = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for done in range(0, width, COLUMNS):
        column = done + tl.arange(0, COLUMNS)[None, :]
        mask = exists[:, None] & (column < width)
        wide, narrow = place[:, None] * (2 * width) + column, place[:, None] * width + column
        a = tl.load(hidden_ptr + wide, mask=mask, other=0).to(tl.float32)
        b = tl.load(hidden_ptr + wide + width, mask=mask, other=0).to(tl.float32)
        d_active = tl.load(d_active_ptr + narrow, mask=mask, other=0).to(tl.float32)
        sigmoid = tl.sigmoid(a)
        silu = a * sigmoid
        d_gate += d_active * silu * b
        tl.store(active_ptr + narrow, (silu * b * gate).to(active_ptr.dtype.element_ty), mask=mask)
        d_active *= gate
        da = d_active * b * sigmoid * (1 + a - silu)
        tl.store(d_hidden_ptr + wide, da.to(d_hidden_ptr.dtype.element_ty), mask=mask)
        tl.store(d_hidden_ptr + wide + width, (d_active * silu).to(d_hidden_ptr.dtype.element_ty), mask=mask)
    tl.store(d_gates_ptr + row, tl.sum(d_gate, 1), mask=exists)


@triton.jit
def collect_kernel(
    y_ptr, rows_ptr, inverse_ptr, tokens, width, FAN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """y (T, D), the sum of each token's FAN rows, in the order of its experts."""
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    exists = token < tokens
    mask = exists[:, None] & (column < width)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for j in range(FAN):
        place = tl.load(inverse_ptr + token * FAN + j, mask=exists, other=0)
        total += tl.load(rows_ptr + place[:, None] * width + column, mask=mask, other=0).to(tl.float32)
    tl.store(y_ptr + token[:, None] * width + column, total.to(y_ptr.dtype.element_ty), mask=mask)
