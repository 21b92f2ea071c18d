"""Kernels before and after those of the selective scan: the first lay out what it reads, the last sums gradients."""

import triton
import triton.language as tl

from seqlab.ops.selective_scan.triton_parts import SIZES

SUM_WIDTH = tl.constexpr(128)
ROW_WIDTH = tl.constexpr(1024)


@triton.jit(do_not_specialize=SIZES)
def stage_kernel(
    B_ptr, C_ptr, seq_ptr, BC_ptr, reset_ptr,
    L, L_PADDED, N_SIZE, B_sb, B_st, B_sn, C_sb, C_st, C_sn, seq_sb, seq_st,
    N_PADDED: tl.constexpr, ROWS: tl.constexpr, HAS_SEQ: tl.constexpr,
):  # fmt: skip
    """B and C into BC, zeros around them; the resets: minus infinity where another sequence begins, else 0."""
    b = tl.program_id(1).to(tl.int64)
    t = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n = tl.arange(0, N_PADDED)
    inside = (t < L)[:, None] & (n < N_SIZE)[None, :]
    B = tl.load(B_ptr + b * B_sb + t[:, None] * B_st + n[None, :] * B_sn, mask=inside, other=0.0)
    C = tl.load(C_ptr + b * C_sb + t[:, None] * C_st + n[None, :] * C_sn, mask=inside, other=0.0)
    rows = BC_ptr + (b * L_PADDED + t[:, None]) * (2 * N_PADDED) + (n // 4 * 8 + n % 4)[None, :]
    written = (t < L_PADDED)[:, None] & (n >= 0)[None, :]
    tl.store(rows, B.to(tl.float32), mask=written)
    tl.store(rows + 4, C.to(tl.float32), mask=written)
    if HAS_SEQ:
        later = (t >= 1) & (t < L)
        here = tl.load(seq_ptr + b * seq_sb + t * seq_st, mask=later, other=0)
        before = tl.load(seq_ptr + b * seq_sb + (t - 1) * seq_st, mask=later, other=0)
        tl.store(reset_ptr + b * L_PADDED + t, tl.where(here == before, 0.0, float("-inf")), mask=t < L_PADDED)


@triton.jit
def _pad(from_ptr, to_ptr, L, D_SIZE, WIDTH, from_sb, from_st, from_sd, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    b = tl.program_id(2).to(tl.int64)
    t = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    d = (tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    numbers = tl.load(from_ptr + b * from_sb + t * from_st + d * from_sd, mask=(t < L) & (d < D_SIZE), other=0.0)
    tl.store(to_ptr + (b * L + t) * WIDTH + d, numbers, mask=(t < L) & (d < WIDTH))


@triton.jit(do_not_specialize=["L", "D_SIZE", "a_sb", "a_st", "b_sb", "b_st", "c_sb", "c_st", "d_sb", "d_st"])
def pad_kernel(
    a_ptr, b_ptr, c_ptr, d_ptr, to_ptr, L, D_SIZE, WIDTH, SIZE,
    a_sb, a_st, a_sd, b_sb, b_st, b_sd, c_sb, c_st, c_sd, d_sb, d_st, d_sd,
    COUNT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The first COUNT of four tensors (Bt, L, D), one after another in rows of WIDTH numbers, zeros after D.

    SIZE numbers lie from the beginning of one copy to that of the next.
    """
    _pad(a_ptr, to_ptr, L, D_SIZE, WIDTH, a_sb, a_st, a_sd, ROWS, COLUMNS)
    if COUNT > 1:
        _pad(b_ptr, to_ptr + SIZE, L, D_SIZE, WIDTH, b_sb, b_st, b_sd, ROWS, COLUMNS)
    if COUNT > 2:
        _pad(c_ptr, to_ptr + 2 * SIZE, L, D_SIZE, WIDTH, c_sb, c_st, c_sd, ROWS, COLUMNS)
    if COUNT > 3:
        _pad(d_ptr, to_ptr + 3 * SIZE, L, D_SIZE, WIDTH, d_sb, d_st, d_sd, ROWS, COLUMNS)


@triton.jit
def _column_sums(pointer, ROWS, WIDTH, column):
    """(SUM_WIDTH,) the sums of these columns of a (ROWS, WIDTH) matrix."""
    total = tl.zeros([8, SUM_WIDTH], tl.float32)
    for first in range(0, ROWS, 8):
        row = first + tl.arange(0, 8)
        inside = (row < ROWS)[:, None] & (column < WIDTH)[None, :]
        total += tl.load(pointer + row[:, None].to(tl.int64) * WIDTH + column[None, :], mask=inside, other=0.0)
    return tl.sum(total, axis=0)


@triton.jit(
    do_not_specialize=[
        "ROWS",
        "DN",
        "D_SIZE",
        "PROGRAMS",
        "NUMBERS",
        "L",
        "L_PADDED",
        "N_SIZE",
        "STEP",
        "COPY",
        "COPIES",
    ]
)
def finish_kernel(
    partial_A_ptr, partial_D_ptr, partial_bias_ptr, dBC_ptr, dA_ptr, dD_ptr, dbias_ptr, dB_ptr, dC_ptr,
    ROWS, DN, D_SIZE, PROGRAMS, NUMBERS, L, L_PADDED, N_SIZE, STEP, COPY, COPIES,
    HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, N_PADDED: tl.constexpr,
):  # fmt: skip
    """The first PROGRAMS programs sum the gradients of A, D and the bias over sequences and chunks (ROWS).

    The others extract dB and dC (Bt, L, N), whose rows lie STEP numbers apart, from dBC, summing its COPIES, each of
    COPY numbers.
    """
    program = tl.program_id(0)
    if program < PROGRAMS:
        column = program * SUM_WIDTH + tl.arange(0, SUM_WIDTH)
        dA = _column_sums(partial_A_ptr, ROWS, DN, column)
        tl.store(dA_ptr + column, dA.to(dA_ptr.dtype.element_ty), mask=column < DN)
        if program * SUM_WIDTH < D_SIZE:
            if HAS_D:
                dD = _column_sums(partial_D_ptr, ROWS, D_SIZE, column)
                tl.store(dD_ptr + column, dD.to(dD_ptr.dtype.element_ty), mask=column < D_SIZE)
            if HAS_BIAS:
                dbias = _column_sums(partial_bias_ptr, ROWS, D_SIZE, column)
                tl.store(dbias_ptr + column, dbias.to(dbias_ptr.dtype.element_ty), mask=column < D_SIZE)
    else:
        i = (program - PROGRAMS).to(tl.int64) * ROW_WIDTH + tl.arange(0, ROW_WIDTH)
        inside = i < NUMBERS
        position = i // N_SIZE
        place = dBC_ptr + (position // L * L_PADDED + position % L) * (2 * N_PADDED) + i % N_SIZE
        dB = tl.zeros([ROW_WIDTH], tl.float32)
        dC = tl.zeros([ROW_WIDTH], tl.float32)
        for copy in range(COPIES):
            dB += tl.load(place + copy * COPY.to(tl.int64), mask=inside, other=0.0)
            dC += tl.load(place + copy * COPY.to(tl.int64) + N_PADDED, mask=inside, other=0.0)
        out = position * STEP + i % N_SIZE
        tl.store(dB_ptr + out, dB.to(dB_ptr.dtype.element_ty), mask=inside)
        tl.store(dC_ptr + out, dC.to(dC_ptr.dtype.element_ty), mask=inside)
