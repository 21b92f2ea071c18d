"""Mamba-3's block on a GPU, device code: the states before chunks.

One kernel walks over the chunks with a tile of a head's state in registers. Backward it does so for the gradient of the
state, whose recurrence is that of the state with other operands: g before a chunk is its decay times g after it, plus
the sum over positions of exp(s_i) dy_i q_i^T. Symbols as in ``triton.py``.
"""

import triton
import triton.language as tl

from seqlab.ops.mamba3_inner.triton_parts import SIZES, load_decays, load_tile, store_tile


@triton.jit(do_not_specialize=SIZES)
def walk_kernel(
    x_ptr, keys_ptr, scale_ptr, high_ptr, low_ptr, start_ptr, before_ptr, end_ptr, L, H, K, PER, x_sb, x_st,
    P: tl.constexpr, NN: tl.constexpr, T: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, BACK: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The state before each of PER chunks (BACK: its gradient after it), and after the last, BN channels of it.

    BACK: x is dy and keys are q. Grid (blocks H, Bt, segments): a segment is PER chunks,
    its first state ``start``, or zeros.
    """
    first, head = tl.program_id(0) // H * BN, (tl.program_id(0) % H).to(tl.int64)
    batch, segment = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    t, p, n = tl.arange(0, T), tl.arange(0, BP), first + tl.arange(0, BN)
    state = tl.zeros([BP, BN], tl.float32)
    whole = ((batch * tl.num_programs(2) + segment) * H + head) * P * NN
    if BACK:
        keys_ptr += tl.num_programs(1).to(tl.int64) * K * H * T * NN  # of queries
    if start_ptr is not None:
        state += load_tile(start_ptr + whole, NN, p, P, n, NN)
    for step in range(segment * PER, tl.minimum(segment * PER + PER, K)):
        chunk = K - 1 - step if BACK else step
        here, number = chunk * T, (batch * K + chunk) * H + head
        x = load_tile(x_ptr + batch * x_sb + here * x_st + head * P, x_st, t, L - here, p, P).to(tl.float32)
        keys = load_tile(keys_ptr + number * T * NN, NN, t, T, n, NN)  # (T, BN)
        at = (batch * H + head) * K * T + here
        from_start, to_end, over = load_decays(high_ptr + at, low_ptr + at, T)
        left = from_start if BACK else to_end * tl.load(scale_ptr + at + t)
        if before_ptr is not None:
            store_tile(before_ptr + number * P * NN, NN, state, p, P, n, NN)
        x = tl.trans((x * left[:, None]).to(DOT))
        state = tl.dot(x, keys, acc=state * over, input_precision=PRECISION)
    if end_ptr is not None:
        store_tile(end_ptr + whole, NN, state, p, P, n, NN)


@triton.jit(do_not_specialize=SIZES)
def join_kernel(
    ends_ptr, starts_ptr, high_ptr, low_ptr, H, K, PER,
    SIZE: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, BK: tl.constexpr, SEGMENTS: tl.constexpr,
    BACK: tl.constexpr,
):  # fmt: skip
    """The states (Bt, SEGMENTS, H, SIZE) before segments of PER chunks from what each leaves. Grid (blocks, H, Bt)."""
    batch, head = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    place, j = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, BK)
    state = tl.zeros([BLOCK], tl.float32)
    for segment in range(SEGMENTS):
        at = ((batch * SEGMENTS + segment) * H + head) * SIZE + place
        tl.store(starts_ptr + at, state, mask=place < SIZE)
        decay = 0.0
        for first in range(segment * PER, tl.minimum(segment * PER + PER, K), BK):
            step = first + j
            inside = (step < K) & (step < segment * PER + PER)
            chunk = K - 1 - step if BACK else step
            end = ((batch * H + head) * K + chunk) * T + T - 1
            sums = tl.load(high_ptr + end, mask=inside, other=0.0) + tl.load(low_ptr + end, mask=inside, other=0.0)
            decay += tl.sum(sums)
        state = state * tl.exp2(decay) + tl.load(ends_ptr + at, mask=place < SIZE, other=0.0)
