"""State-space duality on a GPU, device code: the outputs of a chunk from its inputs and the state before it.

Symbols as in ``triton_states.py``.
"""

import triton
import triton.language as tl

from seqlab.ops.ssd.triton_states import SIZES, chosen, load_decays, load_numbers, load_taint, load_tile, paired


@triton.jit
def decay_square(high, low, T: tl.constexpr):
    """M (T, T): exp(s_i - s_j) from j to i, 0 for j > i."""
    i = tl.arange(0, T)
    exponent = (high[:, None] - high[None, :]) + (low[:, None] - low[None, :])
    return tl.exp2(tl.where(i[:, None] >= i[None, :], exponent, float("-inf")))


@triton.jit
def multiply(
    B_ptr, B_st, C_ptr, C_st, t, n, rest, N: tl.constexpr, BN: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """C_i B_j (T, T) of a chunk and group, BN states at a time, and the first BN columns of B and C."""
    B, C = load_tile(B_ptr, B_st, t, n, rest, N, DOT), load_tile(C_ptr, C_st, t, n, rest, N, DOT)  # (T, BN)
    products = tl.dot(C, tl.trans(B), input_precision=PRECISION)  # (T, T)
    for part in range(BN, N, BN):
        further_B = load_tile(B_ptr, B_st, t, part + n, rest, N, DOT)
        further_C = load_tile(C_ptr, C_st, t, part + n, rest, N, DOT)
        products = tl.dot(further_C, tl.trans(further_B), acc=products, input_precision=PRECISION)
    return products, B, C


@triton.jit
def load_part(first, pointer, stride, rows, n, n_rows, N: tl.constexpr, BN: tl.constexpr, DOT: tl.constexpr):
    """Columns n of B or C: ``first``, its first BN, if these are all; else from memory."""
    if BN >= N:
        return first
    else:
        return load_tile(pointer, stride, rows, n, n_rows, N, DOT)


@triton.jit(do_not_specialize=SIZES)
def outputs_kernel(
    x_ptr, B_ptr, C_ptr, D_ptr, number_ptr, step_ptr, high_ptr, low_ptr, before_ptr, taint_ptr, y_ptr, L, H, K,
    HEADS, x_sb, x_st, x_sh, B_sb, B_st, B_sg, C_sb, C_st, C_sg, y_sb, y_st, y_sh,
    P: tl.constexpr, N: tl.constexpr, T: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, SHARE: tl.constexpr,
    HAS_D: tl.constexpr, RESETS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y of one chunk for SHARE heads of a group: sum over j of (C_i B_j) M_ij u_j + exp(s_i) h C_i + D x_i."""
    chunk, batch = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    first_head = tl.program_id(1).to(tl.int64) * SHARE
    group = first_head // HEADS
    t, n, here = tl.arange(0, T), tl.arange(0, BN), chunk * T
    rest = L - here
    B_ptr += batch * B_sb + here * B_st + group * B_sg
    C_ptr += batch * C_sb + here * C_st + group * C_sg
    products, _B, C = multiply(B_ptr, B_st, C_ptr, C_st, t, n, rest, N, BN, DOT, PRECISION)
    number, _last = load_numbers(number_ptr, batch * K * T + here, T, RESETS)

    for head in range(first_head, first_head + SHARE):
        first = (batch * H + head) * K * T + here
        high, low, _, _ = load_decays(high_ptr + first, low_ptr + first, T)
        step = tl.load(step_ptr + first + t)
        taint, finite = load_taint(taint_ptr, first, t, rest, RESETS)
        scores = products * decay_square(high, low, T) * step[None, :]
        scores = paired(scores, taint[None, :], number, False, RESETS).to(DOT)
        from_start = tl.exp2(high + low)
        state_ptr = before_ptr + ((batch * K + chunk) * H + head) * P * N
        for block in range(0, P, BP):
            p = block + tl.arange(0, BP)
            y = tl.zeros([T, BP], tl.float32)
            for part in range(0, N, BN):
                state = load_tile(state_ptr, N, p, part + n, P, N, DOT)  # (BP, BN)
                read = load_part(C, C_ptr, C_st, t, part + n, rest, N, BN, DOT)
                y = tl.dot(read, tl.trans(state), acc=y, input_precision=PRECISION)
            y = chosen((number == 0)[:, None], y * from_start[:, None], RESETS)
            x = load_tile(x_ptr + batch * x_sb + here * x_st + head * x_sh, x_st, finite, p, rest, P, DOT)
            y = tl.dot(scores, x, acc=y, input_precision=PRECISION)
            if HAS_D:
                y += tl.load(D_ptr + head) * x.to(tl.float32)
            out = y_ptr + batch * y_sb + here * y_st + head * y_sh + t[:, None] * y_st + p[None, :]
            tl.store(out, y, mask=(t[:, None] < rest) & (p[None, :] < P))
