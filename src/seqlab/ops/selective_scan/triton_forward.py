"""The forward kernels of the selective scan; ``triton_parts.py`` has the layout and the symbols."""

import triton
import triton.language as tl

from seqlab.ops.selective_scan.triton_lanes import (
    LANES,
    broadcast_from_lane,
    from_lane,
    own_memory,
    slot_bytes,
    store_numbers,
    sums_over_lanes,
)
from seqlab.ops.selective_scan.triton_parts import (
    LOG2E,
    SIZES,
    add_each,
    advance,
    carried,
    collect,
    fetch,
    load_channels,
    load_row,
    load_states,
    open_ring,
    scaled,
    sigmoid,
    step_sizes,
    store_channels,
    store_states,
    zeros,
)


@triton.jit(do_not_specialize=SIZES)
def chunk_states_kernel(
    u_ptr, delta_ptr, A_ptr, BC_ptr, bias_ptr, reset_ptr, state_ptr, time_ptr, cut_ptr,
    L, L_PADDED, D_SIZE, N_SIZE, CHUNK, N_CHUNKS, u_sb, u_st, delta_sb, delta_st,
    HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, RESETS: tl.constexpr, MASKED: tl.constexpr,
    S: tl.constexpr, M: tl.constexpr, CPT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The state (Bt, K, D, N) at the end of each chunk, from zeros, and the chunk's time (Bt, K, D); K is N_CHUNKS.

    cut (Bt, K) is minus infinity where a sequence begins inside the chunk, else 0.
    """
    G: tl.constexpr = S if S < 4 else 4
    E: tl.constexpr = CPT * M * 4
    ASYNC: tl.constexpr = STAGES > 0
    ROW: tl.constexpr = 8 * S * M
    DTYPE: tl.constexpr = u_ptr.dtype.element_ty
    RING: tl.constexpr = STAGES * slot_bytes(2, 0, S, M, CPT, DTYPE.primitive_bitwidth // 8)
    lane = tl.arange(0, LANES)
    b = tl.program_id(2).to(tl.int64)
    k = tl.program_id(1)
    channel = tl.program_id(0) * (LANES // S * CPT) + lane // S * CPT
    start = k * CHUNK
    end = tl.minimum(start + CHUNK, L)
    A2 = scaled(load_states(A_ptr, channel, D_SIZE, N_SIZE, CPT, M, S, True), LOG2E, E)
    bias = load_channels(bias_ptr, channel, D_SIZE, CPT, HAS_BIAS)
    h, time = zeros(E), zeros(CPT)
    reset, cut = tl.zeros([LANES], tl.float32), tl.zeros([LANES], tl.float32)

    pointers, strides = (u_ptr + b * u_sb, delta_ptr + b * delta_sb), (u_st, delta_st)
    rows = BC_ptr + b * L_PADDED * ROW
    slots, copies, steps, bounds = lane, (lane,), (lane,), (lane,)
    if ASYNC:
        slots = own_memory(RING)
        copies, steps, bounds = open_ring(slots, pointers, strides, rows, 0, start, start, end, channel, D_SIZE,
                                      2, 0, S, M, CPT, ROW, STAGES, False)  # fmt: skip
    for group in range((end - start + G - 1) // G):
        t0 = start + group * G
        t = t0 + lane % G
        raw, _, place, copies = fetch(slots, group, copies, steps, bounds, pointers, strides, rows, 0, t0, start, end,
                                      channel, D_SIZE, 2, 0, S, M, CPT, ROW, STAGES, False, DTYPE)  # fmt: skip
        dt, x = step_sizes(raw, bias, t, end, CPT, SOFTPLUS, MASKED)
        if RESETS:
            reset = tl.load(reset_ptr + b * L_PADDED + t)
            cut += reset
        time = add_each(time, dt, CPT)
        h = advance(h, A2, dt, x, reset, place, CPT, M, S, RESETS, 0 if ASYNC else ROW)

    chunk = b * N_CHUNKS + k
    store_states(state_ptr + chunk * D_SIZE * N_SIZE, h, channel, D_SIZE, N_SIZE, CPT, M, S, False)
    store_channels(time_ptr + chunk * D_SIZE, time, channel, D_SIZE, CPT, G, S)
    if RESETS:
        tl.store(cut_ptr + chunk, tl.min(cut, axis=0))


@triton.jit
def _read_out(h, A2, dt, x, reset, place, CPT: tl.constexpr, M: tl.constexpr, S: tl.constexpr, RESETS: tl.constexpr,
              ROW: tl.constexpr):  # fmt: skip
    """h after a group's positions, and for each of a lane's channels C h at the lane's own position."""
    G: tl.constexpr = S if S < 4 else 4
    parts = ()
    for j in tl.static_range(G):
        reset_j = from_lane(reset, j, G)
        BC = load_row(place, j, 0, 2 * M, M, S, ROW)
        now = broadcast_from_lane(dt + x, j, 2 * CPT, G)
        after, parts_j = (), ()
        for c in tl.static_range(CPT):
            part = now[c]
            for n in tl.static_range(4 * M):
                a = tl.exp2(now[c] * A2[c * 4 * M + n])
                h_n = a * carried(h[c * 4 * M + n], reset_j, RESETS) + now[CPT + c] * BC[n]
                part = h_n * BC[4 * M + n] if n == 0 else part + h_n * BC[4 * M + n]
                after = after + (h_n,)
            parts_j = parts_j + (part,)
        h = after
        parts = parts + parts_j
    return h, sums_over_lanes(parts, CPT, G, S)


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    u_ptr, delta_ptr, z_ptr, A_ptr, BC_ptr, D_ptr, bias_ptr, initial_ptr, reset_ptr,
    chunk_state_ptr, chunk_time_ptr, chunk_cut_ptr, y_ptr, final_ptr, saved_ptr,
    L, L_PADDED, D_SIZE, N_SIZE, CHUNK, N_CHUNKS, N_SEGMENTS, u_sb, u_st, delta_sb, delta_st, z_sb, z_st,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_INITIAL: tl.constexpr,
    SOFTPLUS: tl.constexpr, RESETS: tl.constexpr, KEEP: tl.constexpr, SEGMENT: tl.constexpr, MASKED: tl.constexpr,
    S: tl.constexpr, M: tl.constexpr, CPT: tl.constexpr, STAGES: tl.constexpr, WHOLE: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """y (Bt, L, D), the final state (Bt, D, N) and, if KEEP, the saved states (Bt, N_SEGMENTS, D, N)."""
    G: tl.constexpr = S if S < 4 else 4
    K: tl.constexpr = 3 if HAS_Z else 2
    ASYNC: tl.constexpr = STAGES > 0
    ROW: tl.constexpr = 8 * S * M
    DTYPE: tl.constexpr = u_ptr.dtype.element_ty
    RING: tl.constexpr = STAGES * slot_bytes(K, 0, S, M, CPT, DTYPE.primitive_bitwidth // 8)
    lane = tl.arange(0, LANES)
    b = tl.program_id(2).to(tl.int64)
    k = tl.program_id(1)
    channel = tl.program_id(0) * (LANES // S * CPT) + lane // S * CPT
    start = k * CHUNK
    end = tl.minimum(start + CHUNK, L)
    A2 = scaled(load_states(A_ptr, channel, D_SIZE, N_SIZE, CPT, M, S, True), LOG2E, CPT * M * 4)
    bias = load_channels(bias_ptr, channel, D_SIZE, CPT, HAS_BIAS)
    skip = load_channels(D_ptr, channel, D_SIZE, CPT, HAS_D)
    h = load_states(initial_ptr + b * D_SIZE * N_SIZE, channel, D_SIZE, N_SIZE, CPT, M, S, HAS_INITIAL)
    h = collect(h, A2, chunk_state_ptr, chunk_time_ptr, chunk_cut_ptr, b * N_CHUNKS, k, 1, D_SIZE, N_SIZE, channel,
                 CPT, M, S, RESETS)  # fmt: skip
    reset = tl.zeros([LANES], tl.float32)

    pointers, strides = (u_ptr + b * u_sb, delta_ptr + b * delta_sb), (u_st, delta_st)
    if HAS_Z:
        pointers, strides = pointers + (z_ptr + b * z_sb,), strides + (z_st,)
    rows = BC_ptr + b * L_PADDED * ROW
    slots, copies, steps, bounds = lane, (lane,), (lane,), (lane,)
    if ASYNC:
        slots = own_memory(RING)
        copies, steps, bounds = open_ring(slots, pointers, strides, rows, 0, start, start, end, channel, D_SIZE,
                                      K, 0, S, M, CPT, ROW, STAGES, False)  # fmt: skip
    y_p = y_ptr + (b * L + start + lane % G) * D_SIZE + channel
    for group in range((end - start + G - 1) // G):
        t0 = start + group * G
        t = t0 + lane % G
        if KEEP:
            if t0 % SEGMENT == 0:
                place = saved_ptr + (b * N_SEGMENTS + t0 // SEGMENT) * D_SIZE * N_SIZE
                store_states(place, h, channel, D_SIZE, N_SIZE, CPT, M, S, WHOLE)
        raw, _, row, copies = fetch(slots, group, copies, steps, bounds, pointers, strides, rows, 0, t0, start, end,
                                    channel, D_SIZE, K, 0, S, M, CPT, ROW, STAGES, False, DTYPE)  # fmt: skip
        dt, x = step_sizes(raw, bias, t, end, CPT, SOFTPLUS, MASKED)
        if RESETS:
            reset = tl.load(reset_ptr + b * L_PADDED + t)
        h, totals = _read_out(h, A2, dt, x, reset, row, CPT, M, S, RESETS, 0 if ASYNC else ROW)
        ys = ()
        for c in tl.static_range(CPT):
            y = totals[c] + skip[c] * raw[c]
            if HAS_Z:
                z = raw[2 * CPT + c]
                y = y * z * sigmoid(z)
            ys = ys + (y,)
        store_numbers(y_p, ys, (t < end) & (lane % S < G), channel, D_SIZE, CPT, PAIRS)
        y_p += G * D_SIZE

    if k == N_CHUNKS - 1:
        store_states(final_ptr + b * D_SIZE * N_SIZE, h, channel, D_SIZE, N_SIZE, CPT, M, S, False)
