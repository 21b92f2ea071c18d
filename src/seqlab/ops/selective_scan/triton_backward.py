"""The backward kernels of the selective scan; ``triton_parts.py`` has the layout and the symbols."""

from typing import NamedTuple

import triton
import triton.language as tl

from seqlab.ops.selective_scan.triton_lanes import (
    LANES,
    add_floats,
    await_copies,
    bc_rounds,
    broadcast_from_lane,
    fold_list,
    from_lane,
    get,
    input_bytes,
    load_floats,
    own_memory,
    put,
    receive,
    slot_bytes,
    store_floats,
    store_numbers,
    sums_over_lanes,
    sync,
)
from seqlab.ops.selective_scan.triton_parts import (
    LN2,
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
    sigmoid,
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
def _folded_place(M: tl.constexpr, S: tl.constexpr):
    """The index in a row of dBC of the first value that a lane holds after ``_fold_over_channels``.

    Folding halves the list of 8 M values for each bit of the lane number that distinguishes channels, so these bits
    form the index of what is left. Returns the index, and whether this lane is the one to write it.
    """
    lane = tl.arange(0, LANES)
    index = lane * 0
    keep = lane >= 0
    for level in tl.static_range(5):
        if (S << level) < 32:
            if ((8 * M) >> level) > 1:
                index += tl.where((lane & (S << level)) != 0, (8 * M) >> (level + 1), 0)
            else:
                keep = keep & ((lane & (S << level)) == 0)
    return index, keep


@triton.jit
def _fold_over_channels(values, row, index, keep, M: tl.constexpr, S: tl.constexpr, ROW: tl.constexpr,
                        DETERMINISTIC: tl.constexpr):  # fmt: skip
    """Sum a position's dB and dC, 4 M values each, over the channels of the warp; add them to one row of memory."""
    for level in tl.static_range(5):
        if (S << level) < 32:
            values = fold_list(values, ((8 * M) >> level) if ((8 * M) >> level) > 1 else 1, S << level)
    for i in tl.static_range((8 * M * S // 32) if 8 * M * S > 32 else 1):
        which = index + i  # (kind M + m) 4 + column, kind 0 for B and 1 for C
        tile = which % (4 * M) // 4
        place = row + which // (4 * M) * (ROW // 2) + (tile * S + tl.arange(0, LANES) % S) * 4 + which % 4
        if DETERMINISTIC:
            tl.store(place, values[i], mask=keep)
        else:
            tl.atomic_add(place, values[i], mask=keep, sem="relaxed")


@triton.constexpr_function
def _bc_table_bytes(M):
    """Bytes of a group's dB and dC in shared memory: 4 positions, 2 M tiles, 36 lanes (4 to avoid bank conflicts)."""
    return 4 * 2 * M * 576


@triton.jit
def _add_over_channels(bc_table, row, M: tl.constexpr, ROW: tl.constexpr, DETERMINISTIC: tl.constexpr,
                       WIDE: tl.constexpr):  # fmt: skip
    """Sum a group's dB and dC, in shared memory, over the channels of the warp; add them to four rows of memory.

    A lane sums four neighbouring states of B or C at one position.
    """
    lane = tl.arange(0, LANES) % 32
    for m in tl.static_range(M):
        address = bc_table + (lane // 8 * (2 * M) + lane // 4 % 2 * M + m) * 576 + lane % 4 * 16
        total = get(address, 4)
        for k in tl.static_range(1, 8):
            total = add_each(total, get(address + k * 64, 4), 4)
        place = row + (lane // 8 * 2 + lane // 4 % 2) * (ROW // 2) + (m * 4 + lane % 4) * 4
        if DETERMINISTIC:
            store_floats(place, total, 0, lane >= 0)
        elif WIDE:
            add_floats(place, total)
        else:
            for i in tl.static_range(4):
                tl.atomic_add(place + i, total[i], sem="relaxed")


@triton.jit
def _walk_forward(h, A2, known, reset, place, CPT: tl.constexpr, M: tl.constexpr, S: tl.constexpr,
                  RESETS: tl.constexpr, READ: tl.constexpr, ROW: tl.constexpr):  # fmt: skip
    """One group from h on: the G + 1 states before and after each position, the G decays, and if READ, parts of y.

    ``known`` is dt, x and dy, each for CPT channels.
    """
    G: tl.constexpr = S if S < 4 else 4
    states, decays, parts = h, (), ()
    for j in tl.static_range(G):
        reset_j = from_lane(reset, j, G)
        BC = load_row(place, j, 0, 2 * M if READ else M, M, S, ROW)
        now = broadcast_from_lane(known, j, 3 * CPT, G)
        parts_j = ()
        for c in tl.static_range(CPT):
            part = now[c]
            for n in tl.static_range(4 * M):
                a = tl.exp2(now[c] * A2[c * 4 * M + n])
                h_n = a * carried(states[(j * CPT + c) * 4 * M + n], reset_j, RESETS) + now[CPT + c] * BC[n]
                states, decays = states + (h_n,), decays + (a,)
                if READ:
                    part = h_n * BC[4 * M + n] if n == 0 else part + h_n * BC[4 * M + n]
            parts_j = parts_j + (part,)
        parts = parts + parts_j
    return states, decays, parts


@triton.jit
def _walk_back(ag, dA, A2, known, reset, states, decays, place, bc_table, row, index, keep,
               CPT: tl.constexpr, M: tl.constexpr, S: tl.constexpr, RESETS: tl.constexpr,
               ROW: tl.constexpr, ASYNC: tl.constexpr, DETERMINISTIC: tl.constexpr, SHARED: tl.constexpr):  # fmt: skip
    """One group backwards: a g before it, dA so far, and 2 CPT parts per position, of dx and of ddt / ln 2."""
    G: tl.constexpr = S if S < 4 else 4
    N: tl.constexpr = 4 * M
    parts = ()
    for j in tl.static_range(G - 1, -1, -1):
        new_ag, new_dA, dx_j, ddt_j = (), (), (), ()
        dB, dC = zeros(N), zeros(N)
        BC = load_row(place, j, 0, 2 * M, M, S, 0 if ASYNC else ROW)
        now = broadcast_from_lane(known, j, 3 * CPT, G)
        reset_j = from_lane(reset, j, G)
        for c in tl.static_range(CPT):
            dt, x, dy = now[c], now[CPT + c], now[2 * CPT + c]
            dx_part, dt_part, more_B, more_C = dt, dt, (), ()
            for n in tl.static_range(N):
                g = ag[c * N + n] + dy * BC[N + n]
                more_B = more_B + (dB[n] + g * x if c > 0 else g * x,)
                h = states[((j + 1) * CPT + c) * N + n]
                more_C = more_C + (dC[n] + h * dy if c > 0 else h * dy,)
                ag_n = carried(decays[(j * CPT + c) * N + n] * g, reset_j, RESETS)
                d_exponent = ag_n * carried(states[(j * CPT + c) * N + n], reset_j, RESETS)
                dx_part = g * BC[n] if n == 0 else dx_part + g * BC[n]
                dt_part = d_exponent * A2[c * N + n] if n == 0 else dt_part + d_exponent * A2[c * N + n]
                new_ag = new_ag + (ag_n,)
                new_dA = new_dA + (dA[c * N + n] + d_exponent * dt,)
            dB, dC = more_B, more_C
            dx_j, ddt_j = dx_j + (dx_part,), ddt_j + (dt_part,)
        ag, dA = new_ag, new_dA
        parts = dx_j + ddt_j + parts
        if SHARED:
            place_BC = bc_table + tl.arange(0, LANES) % 32 * 16
            for m in tl.static_range(M):
                put(place_BC + (2 * j * M + m) * 576, dB, 4 * m)
                put(place_BC + ((2 * j + 1) * M + m) * 576, dC, 4 * m)
        else:
            _fold_over_channels(dB + dC, row + j * ROW, index, keep, M, S, ROW, DETERMINISTIC)
    return ag, dA, parts


@triton.jit
def _keep(scratch, values, FIRST: tl.constexpr, COUNT: tl.constexpr, ASYNC: tl.constexpr):
    """Write COUNT tiles of a group, from tile FIRST of its scratch memory on."""
    for tile in tl.static_range(COUNT):
        place = scratch + (FIRST + tile) * (4 * LANES) + tl.arange(0, LANES) * 4
        if ASYNC:
            store_floats(place, values, 4 * tile, tl.arange(0, LANES) >= 0)
        else:
            for i in tl.static_range(4):
                tl.store(place + i, values[4 * tile + i])


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
        _keep(scratch, h, 0, CPT * M, ASYNC)
        scratch += KEPT * 4 * LANES
        raw, _, row, copies = fetch(slots, group, copies, steps, bounds, pointers, strides, rows, 0, t0, base, stop,
                                    channel, D_SIZE, 2, 0, S, M, CPT, ROW, STAGES, False, DTYPE)  # fmt: skip
        dt, x = step_sizes(raw, bias, t, stop, CPT, SOFTPLUS, MASKED)
        if RESETS:
            reset = tl.load(reset_p + t)
        h = advance(h, A2, dt, x, reset, row, CPT, M, S, RESETS, 0 if ASYNC else ROW)


@triton.jit
def _kept(slot, scratch, FIRST: tl.constexpr, COUNT: tl.constexpr, K: tl.constexpr, S: tl.constexpr,
          M: tl.constexpr, CPT: tl.constexpr, ITEM: tl.constexpr, ASYNC: tl.constexpr):  # fmt: skip
    """COUNT tiles that were kept for a group, from tile FIRST on: from its slot, or from scratch memory."""
    lane = tl.arange(0, LANES)
    values = ()
    for tile in tl.static_range(FIRST, FIRST + COUNT):
        if ASYNC:
            place = slot + input_bytes(K, S, CPT, ITEM) + (bc_rounds(S, M) + tile) * 512 + lane % 32 * 16
            values = values + get(place, 4)
        else:
            values = values + load_floats(scratch + tile * (4 * LANES) + lane * 4)
    return values


@triton.jit
def _add_earlier(sums, slot, scratch, part, TILES: tl.constexpr, K: tl.constexpr, S: tl.constexpr, M: tl.constexpr,
                 CPT: tl.constexpr, ITEM: tl.constexpr, ASYNC: tl.constexpr):  # fmt: skip
    """A group's 3 CPT sums over n with those of the parts of n before; kept in TILES tiles for the next part."""
    before = _kept(slot, scratch, CPT * M, TILES, K, S, M, CPT, ITEM, ASYNC)
    added = ()
    for i in tl.static_range(3 * CPT):
        added = added + (sums[i] + tl.where(part > 0, before[i], 0.0),)
    _keep(scratch, added + zeros(4 * TILES - 3 * CPT), CPT * M, TILES, ASYNC)
    return added


@triton.jit
def _finish(
    raw, totals, ys, dt, dy, dD, dbias, bias, skip, t, end, pointers, out, channel, D_SIZE,
    CPT: tl.constexpr, G: tl.constexpr, S: tl.constexpr, HAS_Z: tl.constexpr, SOFTPLUS: tl.constexpr,
    MASKED: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """Write du, ddelta, dz and y at the lane's own position from the sums over n; return dD and dbias so far."""
    du, ddelta, dz, written, new_dD, new_dbias = (), (), (), (), (), ()
    for c in tl.static_range(CPT):
        u, dx = raw[c], totals[c]
        d_step = dx * u + totals[CPT + c] * LN2
        if SOFTPLUS:
            d_step = d_step * sigmoid(raw[CPT + c] + bias[c])
        if MASKED:
            d_step = tl.where(t < end, d_step, 0.0)
        du, ddelta = du + (dx * dt[c] + dy[c] * skip[c],), ddelta + (d_step,)
        new_dD, new_dbias = new_dD + (dD[c] + dy[c] * u,), new_dbias + (dbias[c] + d_step,)
        if HAS_Z:
            z = raw[3 * CPT + c]
            gate = sigmoid(z)
            y = ys[c] + skip[c] * u
            dz = dz + (raw[2 * CPT + c] * y * gate * (1.0 + z * (1.0 - gate)),)
            written = written + (y * z * gate,)
    inside = (t < end) & (tl.arange(0, LANES) % S < G)
    store_numbers(pointers[0] + out, du, inside, channel, D_SIZE, CPT, PAIRS)
    store_numbers(pointers[1] + out, ddelta, inside, channel, D_SIZE, CPT, PAIRS)
    if HAS_Z:
        store_numbers(pointers[2] + out, dz, inside, channel, D_SIZE, CPT, PAIRS)
        if pointers[3] is not None:
            store_numbers(pointers[3] + out, written, inside, channel, D_SIZE, CPT, PAIRS)
    return new_dD, new_dbias


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
def _group_back(
    ag, dA, dD, dbias, A2, tile, reset_ptr, D_SIZE, raw, slot, row, kept, t0, bc_table, dBC, first, rows, out,
    part, index, keep, CPT: tl.constexpr, M: tl.constexpr, S: tl.constexpr, PARTS: tl.constexpr, KEPT: tl.constexpr,
    ROW: tl.constexpr, HAS_Z: tl.constexpr, SOFTPLUS: tl.constexpr, RESETS: tl.constexpr, MASKED: tl.constexpr,
    DETERMINISTIC: tl.constexpr, ASYNC: tl.constexpr, SHARED: tl.constexpr, WIDE: tl.constexpr, PAIRS: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """One group backwards, as fetched: a g before it, and dA, dD and dbias so far."""
    G: tl.constexpr = S if S < 4 else 4
    K: tl.constexpr = 4 if HAS_Z else 3
    ITEM: tl.constexpr = DTYPE.primitive_bitwidth // 8
    t = t0 + tl.arange(0, LANES) % G
    h = _kept(slot, kept, 0, CPT * M, K, S, M, CPT, ITEM, ASYNC)
    reset = tl.zeros([LANES], tl.float32)
    if RESETS:
        reset = tl.load(reset_ptr + t)
    dt, x = step_sizes(raw, tile.bias, t, tile.end, CPT, SOFTPLUS, MASKED)
    dy = gated(raw, 2, 3, CPT, HAS_Z)
    states, decays, parts = _walk_forward(h, A2, dt + x + dy, reset, row, CPT, M, S, RESETS, HAS_Z,
                                          0 if ASYNC else ROW)  # fmt: skip
    ys = dy
    if HAS_Z:
        ys = sums_over_lanes(parts, CPT, G, S)
    dBC_row = dBC + t0.to(tl.int64) * ROW + first
    ag, dA, parts = _walk_back(ag, dA, A2, dt + x + dy, reset, states, decays, row, bc_table, dBC_row, index, keep,
                               CPT, M, S, RESETS, ROW, ASYNC, DETERMINISTIC, SHARED)  # fmt: skip
    totals = sums_over_lanes(parts, 2 * CPT, G, S)
    if SHARED:
        sync()
        _add_over_channels(bc_table, dBC_row, M, ROW, DETERMINISTIC, WIDE)
    if ASYNC:  # read again: fewer registers in between
        raw = receive(slot, K, S, CPT, DTYPE)
    if PARTS == 1:
        dD, dbias = _finish(raw, totals, ys, dt, dy, dD, dbias, tile.bias, tile.skip, t, tile.end, rows, out,
                            tile.channel, D_SIZE, CPT, G, S, HAS_Z, SOFTPLUS, MASKED, PAIRS)  # fmt: skip
    else:
        sums = _add_earlier(totals + ys, slot, kept, part, KEPT - CPT * M, K, S, M, CPT, ITEM, ASYNC)
        if part == PARTS - 1:
            dD, dbias = _finish(raw, sums, sums[2 * CPT:], dt, dy, dD, dbias, tile.bias, tile.skip, t, tile.end, rows,
                                out, tile.channel, D_SIZE, CPT, G, S, HAS_Z, SOFTPLUS, MASKED, PAIRS)  # fmt: skip
    return ag, dA, dD, dbias


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
        ag, dA, dD, dbias = _group_back(
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
    index, keep = _folded_place(M, S)
    scratch = scratch_ptr + tl.program_id(0).to(tl.int64) * ((SEGMENT // G) * KEPT * 4 * LANES)
    slots, bc_table = lane, lane
    if STAGES > 0:
        slots = own_memory(RING + (_bc_table_bytes(M) if SHARED else 0))
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
