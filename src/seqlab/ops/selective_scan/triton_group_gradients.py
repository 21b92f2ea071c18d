"""The selective scan on a GPU, device code: one group of positions backwards. Symbols in ``triton_parts.py``."""

import triton
import triton.language as tl

from seqlab.ops.selective_scan.triton_lanes import (
    LANES,
    add_floats,
    bc_rounds,
    broadcast_from_lane,
    fold_list,
    from_lane,
    get,
    input_bytes,
    load_floats,
    put,
    receive,
    store_floats,
    store_numbers,
    sums_over_lanes,
    sync,
)
from seqlab.ops.selective_scan.triton_parts import LN2, add_each, carried, gated, load_row, sigmoid, step_sizes, zeros


@triton.jit
def folded_place(M: tl.constexpr, S: tl.constexpr):
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
def bc_table_bytes(M):
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
def keep_tiles(scratch, values, FIRST: tl.constexpr, COUNT: tl.constexpr, ASYNC: tl.constexpr):
    """Write COUNT tiles of a group, from tile FIRST of its scratch memory on."""
    for tile in tl.static_range(COUNT):
        place = scratch + (FIRST + tile) * (4 * LANES) + tl.arange(0, LANES) * 4
        if ASYNC:
            store_floats(place, values, 4 * tile, tl.arange(0, LANES) >= 0)
        else:
            for i in tl.static_range(4):
                tl.store(place + i, values[4 * tile + i])


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
    keep_tiles(scratch, added + zeros(4 * TILES - 3 * CPT), CPT * M, TILES, ASYNC)
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


@triton.jit
def group_back(
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
