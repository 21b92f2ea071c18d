"""The backward kernels of the selective scan; ``triton_parts.py`` has the layout and the symbols."""

from typing import NamedTuple

import triton
import triton.language as tl

from seqlab.ops.selective_scan.triton_group_gradients import bc_table_bytes, folded_place, group_back, keep_tiles
from seqlab.ops.selective_scan.triton_lanes import (
    LANES,
    await_copies,
    broadcast_from_lane,
    from_lane,
    own_memory,
    slot_bytes,
)
from seqlab.ops.selective_scan.triton_parts import (
    LOG2E,
    SIZES,
    add_each,
    advance,
    carried,
    collect,
    fetch,
    gated,
    load_channels,
    load_row,
    load_states,
    open_ring,
    scaled,
    step_sizes,
    store_channels,
    store_states,
    zeros,
)


@triton.jit(do_not_specialize=SIZES)
def chunk_gradients_kernel(
    u_ptr, delta_ptr, z_ptr, dout_ptr, A_ptr, BC_ptr, bias_ptr, reset_ptr, state_ptr, time_ptr, cut_ptr,
    L, L_PADDED, D_SIZE, N_SIZE, CHUNK, N_CHUNKS, delta_sb, delta_st, z_sb, z_st, dout_sb, dout_st,
    HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, RESETS: tl.constexpr, MASKED: tl.constexpr,
    S: tl.constexpr, M: tl.constexpr, CPT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """As ``chunk_states_kernel``, backwards: a g (Bt, K, D, N), each chunk's gradient of the state before it."""
    G: tl.constexpr = S if S < 4 else 4
    K: tl.constexpr = 3 if HAS_Z else 2
    E: tl.constexpr = CPT * M * 4
    ASYNC: tl.constexpr = STAGES > 0
    ROW: tl.constexpr = 8 * S * M
    DTYPE: tl.constexpr = dout_ptr.dtype.element_ty
    RING: tl.constexpr = STAGES * slot_bytes(K, 0, S, M, CPT, DTYPE.primitive_bitwidth // 8)
    lane = tl.arange(0, LANES)
    b = tl.program_id(2).to(tl.int64)
    k = tl.program_id(1)
    channel = tl.program_id(0) * (LANES // S * CPT) + lane // S * CPT
    start = k * CHUNK
    end = tl.minimum(start + CHUNK, L)
    A2 = scaled(load_states(A_ptr, channel, D_SIZE, N_SIZE, CPT, M, S, True), LOG2E, E)
    bias = load_channels(bias_ptr, channel, D_SIZE, CPT, HAS_BIAS)
    ag, time = zeros(E), zeros(CPT)
    reset, cut = tl.zeros([LANES], tl.float32), tl.zeros([LANES], tl.float32)

    last = start + (end - start - 1) // G * G
    pointers, strides = (dout_ptr + b * dout_sb, delta_ptr + b * delta_sb), (dout_st, delta_st)
    if HAS_Z:
        pointers, strides = pointers + (z_ptr + b * z_sb,), strides + (z_st,)
    rows = BC_ptr + b * L_PADDED * ROW
    slots, copies, steps, bounds = lane, (lane,), (lane,), (lane,)
    if ASYNC:
        slots = own_memory(RING)
        copies, steps, bounds = open_ring(slots, pointers, strides, rows, 0, last, start, end, channel, D_SIZE,
                                      K, 0, S, M, CPT, ROW, STAGES, True)  # fmt: skip
    for group in range((end - start + G - 1) // G):
        t0 = last - group * G
        t = t0 + lane % G
        raw, _, place, copies = fetch(slots, group, copies, steps, bounds, pointers, strides, rows, 0, t0, start, end,
                                      channel, D_SIZE, K, 0, S, M, CPT, ROW, STAGES, True, DTYPE)  # fmt: skip
        dt, _ = step_sizes(raw, bias, t, end, CPT, SOFTPLUS, MASKED)
        dy = gated(raw, 0, 2, CPT, HAS_Z)
        if RESETS:
            reset = tl.load(reset_ptr + b * L_PADDED + t)
            cut += reset
        time = add_each(time, dt, CPT)
        for j in tl.static_range(G - 1, -1, -1):
            reset_j = from_lane(reset, j, G)
            C = load_row(place, j, M, M, M, S, 0 if ASYNC else ROW)
            now = broadcast_from_lane(dt + dy, j, 2 * CPT, G)
            after = ()
            for e in tl.static_range(E):
                g = ag[e] + now[CPT + e // (4 * M)] * C[e % (4 * M)]
                after = after + (carried(tl.exp2(now[e // (4 * M)] * A2[e]) * g, reset_j, RESETS),)
            ag = after

    chunk = b * N_CHUNKS + k
    store_states(state_ptr + chunk * D_SIZE * N_SIZE, ag, channel, D_SIZE, N_SIZE, CPT, M, S, False)
    store_channels(time_ptr + chunk * D_SIZE, time, channel, D_SIZE, CPT, G, S)
    if RESETS:
        tl.store(cut_ptr + chunk, tl.min(cut, axis=0))


@triton.jit
def _refill(
    saved_ptr, scratch, slots, pointers, strides, rows, reset_p, base, stop, first, A2, bias, channel, D_SIZE, N_SIZE,
    CPT: tl.constexpr, M: tl.constexpr, S: tl.constexpr, KEPT: tl.constexpr, ROW: tl.constexpr, SOFTPLUS: tl.constexpr,
    RESETS: tl.constexpr, MASKED: tl.constexpr, STAGES: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Recompute a segment from its saved state and write the state before every group of positions to scratch."""
    G: tl.constexpr = S if S < 4 else 4
    ASYNC: tl.constexpr = STAGES > 0
    lane = tl.arange(0, LANES)
    h = load_states(saved_ptr, channel, D_SIZE, N_SIZE, CPT, M, S, True, first)
    reset = tl.zeros([LANES], tl.float32)
    copies, steps, bounds = (lane,), (lane,), (lane,)
    if ASYNC:
        await_copies(0)
        copies, steps, bounds = open_ring(slots, pointers, strides, rows, 0, base, base, stop, channel, D_SIZE,
                                      2, 0, S, M, CPT, ROW, STAGES, False)  # fmt: skip
    for group in range((stop - base + G - 1) // G):
        t0 = base + group * G
        t = t0 + lane % G
        keep_tiles(scratch, h, 0, CPT * M, ASYNC)
        scratch += KEPT * 4 * LANES
        raw, _, row, copies = fetch(slots, group, copies, steps, bounds, pointers, strides, rows, 0, t0, base, stop,
                                    channel, D_SIZE, 2, 0, S, M, CPT, ROW, STAGES, False, DTYPE)  # fmt: skip
        dt, x = step_sizes(raw, bias, t, stop, CPT, SOFTPLUS, MASKED)
        if RESETS:
            reset = tl.load(reset_p + t)
        h = advance(h, A2, dt, x, reset, row, CPT, M, S, RESETS, 0 if ASYNC else ROW)


class _Given(NamedTuple):
    """Where what the backward pass reads is in memory, and the sizes."""

    streams: tuple  # u, delta, dout and, if there is one, z
    along_batch: tuple  # from one sequence to the next, of the same
    along_length: tuple
    BC: tl.tensor
    reset: tl.tensor
    saved: tl.tensor
    A: tl.tensor
    L: tl.tensor
    L_PADDED: tl.tensor
    D_SIZE: tl.tensor
    N_SIZE: tl.tensor
    N_SEGMENTS: tl.tensor


class _After(NamedTuple):
    """Where a g after the last position is in memory, and what later chunks make of it."""

    final: tl.tensor
    states: tl.tensor
    times: tl.tensor
    cuts: tl.tensor
    N_CHUNKS: tl.tensor


class _Tile(NamedTuple):
    """Some channels of one chunk of one sequence."""

    b: tl.tensor
    k: tl.tensor
    start: tl.tensor
    end: tl.tensor
    channel: tl.tensor  # (LANES,)
    bias: tuple  # of each of a lane's channels
    skip: tuple  # likewise D


class _Memory(NamedTuple):
    """A program's own memory."""

    scratch: tl.tensor
    slots: tl.tensor
    bc_table: tl.tensor


class _Written(NamedTuple):
    """Where gradients are written."""

    rows: tuple  # those with a row for each position: du, ddelta, dz and y
    out_st: tl.tensor  # from one of these rows to the next
    maps: tl.tensor  # dBC of a sequence
    carry: tl.tensor
    rates: tl.tensor  # dA
    initial: tl.tensor


@triton.jit
def _segment_back(
    ag, dA, dD, dbias, A2, tile, given, pointers, memory, written, base, part, index, keep,
    CPT: tl.constexpr, M: tl.constexpr, S: tl.constexpr, PARTS: tl.constexpr, KEPT: tl.constexpr, ROW: tl.constexpr,
    HAS_Z: tl.constexpr, SOFTPLUS: tl.constexpr, RESETS: tl.constexpr, SEGMENT: tl.constexpr, MASKED: tl.constexpr,
    DETERMINISTIC: tl.constexpr, STAGES: tl.constexpr, FILL_STAGES: tl.constexpr, SHARED: tl.constexpr,
    WIDE: tl.constexpr, PAIRS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """One segment backwards, for one part of n: a g before it, and dA, dD and dbias so far."""
    G: tl.constexpr = S if S < 4 else 4
    K: tl.constexpr = 4 if HAS_Z else 3
    ASYNC: tl.constexpr = STAGES > 0
    lane, channel, D_SIZE, N_SIZE = tl.arange(0, LANES), tile.channel, given.D_SIZE, given.N_SIZE
    first, stop = part * (4 * S * M), tl.minimum(base + SEGMENT, tile.end)
    rows, reset_p = given.BC + tile.b * given.L_PADDED * ROW + 2 * first, given.reset + tile.b * given.L_PADDED
    saved = given.saved + (tile.b * given.N_SEGMENTS + base // SEGMENT) * D_SIZE * N_SIZE
    _refill(saved, memory.scratch, memory.slots, pointers[:2], given.along_length[:2], rows, reset_p, base, stop,
            first, A2, tile.bias, channel, D_SIZE, N_SIZE, CPT, M, S, KEPT, ROW, SOFTPLUS, RESETS, MASKED, FILL_STAGES,
            DTYPE)  # fmt: skip

    last = base + (stop - base - 1) // G * G
    out = (tile.b * given.L + last + lane % G) * written.out_st + channel
    kept = memory.scratch + (last - base) // G * (KEPT * 4 * LANES)
    copies, steps, bounds = (lane,), (lane,), (lane,)
    if ASYNC:
        await_copies(0)  # and makes what this warp has written to scratch memory visible to it
        copies, steps, bounds = open_ring(memory.slots, pointers, given.along_length, rows, kept.to(tl.int64), last,
                                          base, tile.end, channel, D_SIZE, K, KEPT, S, M, CPT, ROW, STAGES,
                                          True)  # fmt: skip
    for group in range((stop - base + G - 1) // G):
        t0 = last - group * G
        raw, slot, row, copies = fetch(memory.slots, group, copies, steps, bounds, pointers, given.along_length, rows,
                                       kept.to(tl.int64), t0, base, tile.end, channel, D_SIZE, K, KEPT, S, M, CPT, ROW,
                                       STAGES, True, DTYPE)  # fmt: skip
        ag, dA, dD, dbias = group_back(
            ag, dA, dD, dbias, A2, tile, reset_p, D_SIZE, raw, slot, row, kept, t0, memory.bc_table,
            written.maps, first, written.rows, out, part, index, keep, CPT, M, S, PARTS, KEPT,
            ROW, HAS_Z, SOFTPLUS, RESETS, MASKED, DETERMINISTIC, ASYNC, SHARED, WIDE, PAIRS, DTYPE,
        )  # fmt: skip
        kept -= KEPT * 4 * LANES
        out -= G * written.out_st
    return ag, dA, dD, dbias


@triton.jit
def _first_gradient(after, A2, tile, D_SIZE, N_SIZE, first, CPT: tl.constexpr, M: tl.constexpr, S: tl.constexpr,
                    RESETS: tl.constexpr, HAS_FINAL: tl.constexpr):  # fmt: skip
    """a g after a tile, for states from ``first`` on."""
    b, N_CHUNKS, channel = tile.b, after.N_CHUNKS, tile.channel
    ag = load_states(after.final + b * D_SIZE * N_SIZE, channel, D_SIZE, N_SIZE, CPT, M, S, HAS_FINAL, first)
    return collect(ag, A2, after.states, after.times, after.cuts, (b + 1) * N_CHUNKS - 1, N_CHUNKS - 1 - tile.k, -1,
                   D_SIZE, N_SIZE, channel, CPT, M, S, RESETS, first)  # fmt: skip


@triton.jit
def _tile_back(
    tile, given, after, memory, written, index, keep,
    CPT: tl.constexpr, M: tl.constexpr, S: tl.constexpr, PARTS: tl.constexpr, KEPT: tl.constexpr, ROW: tl.constexpr,
    HAS_Z: tl.constexpr, HAS_FINAL: tl.constexpr, SOFTPLUS: tl.constexpr, RESETS: tl.constexpr, SEGMENT: tl.constexpr,
    MASKED: tl.constexpr, DETERMINISTIC: tl.constexpr, WHOLE: tl.constexpr, STAGES: tl.constexpr,
    FILL_STAGES: tl.constexpr, SHARED: tl.constexpr, WIDE: tl.constexpr, PAIRS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """One tile backwards, segment by segment, in each case part by part of n; returns its dD and dbias."""
    E: tl.constexpr = CPT * M * 4
    channel, D_SIZE, N_SIZE = tile.channel, given.D_SIZE, given.N_SIZE
    if PARTS == 1:
        A2 = scaled(load_states(given.A, channel, D_SIZE, N_SIZE, CPT, M, S, True), LOG2E, E)
        ag = _first_gradient(after, A2, tile, D_SIZE, N_SIZE, 0, CPT, M, S, RESETS, HAS_FINAL)
        dA = zeros(E)
    else:
        chunk = tile.b * after.N_CHUNKS + tile.k
        carry, dA_p = written.carry + chunk * D_SIZE * N_SIZE, written.rates + chunk * D_SIZE * N_SIZE
        for part in range(PARTS):
            n = part * (4 * S * M)
            A2_n = scaled(load_states(given.A, channel, D_SIZE, N_SIZE, CPT, M, S, True, n), LOG2E, E)
            ag_n = _first_gradient(after, A2_n, tile, D_SIZE, N_SIZE, n, CPT, M, S, RESETS, HAS_FINAL)
            store_states(carry, ag_n, channel, D_SIZE, N_SIZE, CPT, M, S, WHOLE, n)
            store_states(dA_p, zeros(E), channel, D_SIZE, N_SIZE, CPT, M, S, WHOLE, n)
    dD, dbias, pointers = zeros(CPT), zeros(CPT), ()
    for n in tl.static_range(4 if HAS_Z else 3):
        pointers = pointers + (given.streams[n] + tile.b * given.along_batch[n],)
    segments = (tile.end - tile.start + SEGMENT - 1) // SEGMENT
    for done in range(segments * PARTS):
        part = done % PARTS
        first = part * (4 * S * M)
        base = tile.start + (segments - 1 - done // PARTS) * SEGMENT
        if PARTS > 1:
            A2 = scaled(load_states(given.A, channel, D_SIZE, N_SIZE, CPT, M, S, True, first), LOG2E, E)
            ag = load_states(carry, channel, D_SIZE, N_SIZE, CPT, M, S, True, first)
            dA = load_states(dA_p, channel, D_SIZE, N_SIZE, CPT, M, S, True, first)
        ag, dA, dD, dbias = _segment_back(
            ag, dA, dD, dbias, A2, tile, given, pointers, memory, written, base, part, index, keep,
            CPT, M, S, PARTS, KEPT, ROW, HAS_Z, SOFTPLUS, RESETS, SEGMENT, MASKED, DETERMINISTIC, STAGES, FILL_STAGES,
            SHARED, WIDE, PAIRS, DTYPE,
        )  # fmt: skip
        if PARTS > 1:
            store_states(carry, ag, channel, D_SIZE, N_SIZE, CPT, M, S, WHOLE, first)
            store_states(dA_p, dA, channel, D_SIZE, N_SIZE, CPT, M, S, WHOLE, first)
            if base == 0:
                initial = written.initial + tile.b * D_SIZE * N_SIZE
                store_states(initial, ag, channel, D_SIZE, N_SIZE, CPT, M, S, WHOLE, first)
    if PARTS == 1:
        chunk = tile.b * after.N_CHUNKS + tile.k
        store_states(written.rates + chunk * D_SIZE * N_SIZE, dA, channel, D_SIZE, N_SIZE, CPT, M, S, False)
        if tile.k == 0:
            initial = written.initial + tile.b * D_SIZE * N_SIZE
            store_states(initial, ag, channel, D_SIZE, N_SIZE, CPT, M, S, False)
    return dD, dbias


@triton.jit(do_not_specialize=SIZES)
def backward_kernel(
    u_ptr, delta_ptr, z_ptr, dout_ptr, A_ptr, BC_ptr, D_ptr, bias_ptr, reset_ptr, saved_ptr, final_ptr,
    chunk_state_ptr, chunk_time_ptr, chunk_cut_ptr, scratch_ptr, carry_ptr,
    du_ptr, ddelta_ptr, dz_ptr, y_ptr, dBC_ptr, dA_ptr, dD_ptr, dbias_ptr, initial_ptr,
    L, L_PADDED, D_SIZE, N_SIZE, CHUNK, N_CHUNKS, N_SEGMENTS, N_TILES, TILES, BATCH,
    u_sb, u_st, delta_sb, delta_st, z_sb, z_st, dout_sb, dout_st, out_st,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_FINAL: tl.constexpr,
    SOFTPLUS: tl.constexpr, RESETS: tl.constexpr, SEGMENT: tl.constexpr, MASKED: tl.constexpr,
    DETERMINISTIC: tl.constexpr, S: tl.constexpr, M: tl.constexpr, CPT: tl.constexpr,
    PARTS: tl.constexpr, KEPT: tl.constexpr, ROW: tl.constexpr, WHOLE: tl.constexpr,
    STAGES: tl.constexpr, FILL_STAGES: tl.constexpr, SHARED: tl.constexpr, WIDE: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """Every gradient. A program processes one tile after another: some channels of one chunk of one sequence.

    Gradients of A, D and the bias are written for each sequence and chunk, to be summed; dBC (Bt, L padded, 2, N
    padded) is summed in memory, or with DETERMINISTIC written for each warp's channels, to be summed. The rows of du,
    ddelta, dz and y lie out_st numbers apart. What belongs to a position and channel is written by the warp that alone
    has read it, and for the last time: so these may share the memory of u, delta, z and dout.

    A segment is processed PARTS times, each time for 4 S M other states. The sums over n so far are then among the KEPT
    tiles that each group of positions has in scratch memory, and a g of the other states is in carry (Bt, K, D, N).
    """
    G: tl.constexpr = S if S < 4 else 4
    DTYPE: tl.constexpr = u_ptr.dtype.element_ty
    RING: tl.constexpr = STAGES * slot_bytes(4 if HAS_Z else 3, KEPT, S, M, CPT, DTYPE.primitive_bitwidth // 8)
    lane = tl.arange(0, LANES)
    index, keep = folded_place(M, S)
    scratch = scratch_ptr + tl.program_id(0).to(tl.int64) * ((SEGMENT // G) * KEPT * 4 * LANES)
    slots, bc_table = lane, lane
    if STAGES > 0:
        slots = own_memory(RING + (bc_table_bytes(M) if SHARED else 0))
        bc_table = slots + RING
    memory = _Memory(scratch, slots, bc_table)
    given = _Given(
        (u_ptr, delta_ptr, dout_ptr, z_ptr), (u_sb, delta_sb, dout_sb, z_sb), (u_st, delta_st, dout_st, z_st),
        BC_ptr, reset_ptr, saved_ptr, A_ptr, L, L_PADDED, D_SIZE, N_SIZE, N_SEGMENTS,
    )  # fmt: skip
    after = _After(final_ptr, chunk_state_ptr, chunk_time_ptr, chunk_cut_ptr, N_CHUNKS)
    for work in range(tl.program_id(0), TILES, tl.num_programs(0)):
        k = (work // N_TILES) % N_CHUNKS
        b = (work // N_TILES // N_CHUNKS).to(tl.int64)
        channel = (work % N_TILES) * (LANES // S * CPT) + lane // S * CPT
        start = k * CHUNK
        end = tl.minimum(start + CHUNK, L)
        bias = load_channels(bias_ptr, channel, D_SIZE, CPT, HAS_BIAS)
        skip = load_channels(D_ptr, channel, D_SIZE, CPT, HAS_D)
        tile = _Tile(b, k, start, end, channel, bias, skip)
        dBC = dBC_ptr + b * L_PADDED * ROW
        if DETERMINISTIC:
            dBC += (work % N_TILES * (LANES // 32) + lane // 32) * BATCH.to(tl.int64) * L_PADDED * ROW
        written = _Written((du_ptr, ddelta_ptr, dz_ptr, y_ptr), out_st, dBC, carry_ptr, dA_ptr, initial_ptr)
        dD, dbias = _tile_back(
            tile, given, after, memory, written, index, keep, CPT, M, S, PARTS, KEPT, ROW, HAS_Z, HAS_FINAL, SOFTPLUS,
            RESETS, SEGMENT, MASKED, DETERMINISTIC, WHOLE, STAGES, FILL_STAGES, SHARED, WIDE, PAIRS, DTYPE,
        )  # fmt: skip
        chunk = b * N_CHUNKS + k
        store_channels(dD_ptr + chunk * D_SIZE, dD, channel, D_SIZE, CPT, G, S)
        store_channels(dbias_ptr + chunk * D_SIZE, dbias, channel, D_SIZE, CPT, G, S)
