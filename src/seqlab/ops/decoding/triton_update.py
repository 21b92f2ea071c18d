"""The selective scan's step: of what ``enter`` gives to what leaves through ``out_proj``.

Symbols: B batch, E inner width, N state size, R rank of delta, W = R + 2 N columns of ``x_proj``; P shares of its sum,
one from each program that had some of its inputs.
"""

import triton
import triton.language as tl

from seqlab.ops.decoding.triton_parts import let_next_begin, silu, softplus, wait


@triton.jit
def update_kernel(
    partial, u, z, dt_weight, dt_bias, A_log, skip, state, y,
    P: tl.constexpr, E: tl.constexpr, N: tl.constexpr, R: tl.constexpr, BE: tl.constexpr, BN: tl.constexpr,
    BR: tl.constexpr, BP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """``dt_proj``, the selective scan's step and the gate, of BE channels of one sequence; the state moves on."""
    row = tl.program_id(1).to(tl.int64)  # states of many sequences are past the range of 32 bits
    e, n, r = tl.program_id(0) * BE + tl.arange(0, BE), tl.arange(0, BN), tl.arange(0, BR)
    in_row, in_size, in_rank = e < E, n < N, r < R
    of_state = in_row[:, None] & in_size[None, :]
    to_delta = tl.load(dt_weight + e[:, None] * R + r[None, :], mask=in_row[:, None] & in_rank[None, :], other=0.0)
    A = -tl.exp(tl.load(A_log + e[:, None] * N + n[None, :], mask=of_state, other=0.0).to(tl.float32))
    delta_bias = tl.load(dt_bias + e, mask=in_row, other=0.0).to(tl.float32)
    D = tl.load(skip + e, mask=in_row, other=0.0).to(tl.float32)
    at = state + row * E * N + e[:, None] * N + n[None, :]
    h = tl.load(at, mask=of_state, other=0.0)  # before ``wait``: the kernel before this one does not write it
    wait(PDL)
    given = tl.load(u + row * E + e, mask=in_row, other=0.0).to(tl.float32)
    gate = tl.load(z + row * E + e, mask=in_row, other=0.0).to(tl.float32)
    width: tl.constexpr = R + 2 * N
    to_dt = partial + row * width + r
    to_B = partial + row * width + R + n
    if P == 1:
        dt = tl.load(to_dt, mask=in_rank, other=0.0)
        B = tl.load(to_B, mask=in_size, other=0.0)
        C = tl.load(to_B + N, mask=in_size, other=0.0)
    else:
        dt, B, C = tl.zeros((BR,), tl.float32), tl.zeros((BN,), tl.float32), tl.zeros((BN,), tl.float32)
        for start in tl.static_range(0, P, BP):
            p = start + tl.arange(0, BP)[:, None]
            share = p * tl.num_programs(1) * width
            of_dt = tl.load(to_dt[None, :] + share, mask=(p < P) & in_rank[None, :], other=0.0)
            of_B = tl.load(to_B[None, :] + share, mask=(p < P) & in_size[None, :], other=0.0)
            of_C = tl.load(to_B[None, :] + N + share, mask=(p < P) & in_size[None, :], other=0.0)
            dt += tl.sum(of_dt, axis=0)
            B += tl.sum(of_B, axis=0)
            C += tl.sum(of_C, axis=0)
    delta = softplus(tl.sum(to_delta.to(tl.float32) * dt[None, :], axis=1) + delta_bias)
    let_next_begin(PDL)  # here it also keeps the compiler from holding more at once: 80 registers in place of 128
    h = tl.exp(delta[:, None] * A) * h + (delta * given)[:, None] * B[None, :]
    tl.debug_barrier()  # several lanes may hold an element and have loaded it; one of them stores it
    tl.store(at, h, mask=of_state)
    out = (tl.sum(h * C[None, :], axis=1) + D * given) * silu(gate)
    tl.store(y + row * E + e, out, mask=in_row)


@triton.jit
def sum_kernel(shares, total, size, P: tl.constexpr, BP: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """The sum of (P, size) over P, once: for a large batch, each of the next kernel's programs would add as many."""
    i, p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, BP)
    wait(PDL)
    let_next_begin(PDL)
    found = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, P, BP):
        part = start + p
        there = (part < P)[:, None] & (i < size)[None, :]
        found += tl.sum(tl.load(shares + part[:, None] * size + i[None, :], mask=there, other=0.0), axis=0)
    tl.store(total + i, found, mask=i < size)
