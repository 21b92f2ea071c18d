"""The device code of the ``triton`` backend; ``triton.py`` launches it.

A program is four warps, each for itself. S lanes of a warp work on the states of one group of CPT neighbouring channels
and keep them in registers as tiles of 4 neighbouring n, M of them for each channel. For c = 0 .. CPT - 1,
m = 0 .. M - 1 and i = 0 .. 3 a lane holds, as element (c M + m) 4 + i of a tuple,

    channel   first channel of the program + lane // S CPT + c
    n         (m S + lane % S) 4 + i

Positions go G = min(S, 4) at a time, a group. What a position needs once for each channel (step size, gate) is computed
by lane % G = position % G alone and told to the other lanes; sums over n come back the same way. States are never
written for each position: the forward pass keeps one every SEGMENT positions where a backward pass follows, and that
computes the others again, twice: from the segment's start to the state before every group, which it writes to scratch
memory of its own, and from there, when it comes back to them.

Long sequences are cut in chunks that run side by side. ``chunk_states_kernel`` computes what each chunk adds to the
state, and its time (the sum of its step sizes); with one exponential for a whole chunk, exp(time A), a program
collects the state it starts from. ``chunk_gradients_kernel`` does the same for the way back.

``triton_lanes.py`` holds what the lanes do together, and how groups come into shared memory before they are wanted.

Symbols (arXiv:2312.00752, Algorithm 2):

    u, z, dt      input, gate, step size after bias and softplus
    A2            A log2(e), so that exp(dt A) = 2^(dt A2)
    BC            (Bt, L padded, N padded / 4, 2, 4) B and C in float32, a row of memory for each position
    x             dt u
    a             decay 2^(dt A2)
    h             state, h_t = a_t h_{t-1} + x_t B_t
    g             gradient of the loss by h_t, g_t = C_t dy_t + a_{t+1} g_{t+1}; ag is a_t g_t
    d...          gradient of the loss by what follows the d; dout by y after the gate, dy before it
"""

import triton
import triton.language as tl

from seqlab.ops.selective_scan.triton_lanes import (
    LANES,
    add_floats,
    await_copies,
    bc_rounds,
    copy_plan,
    exchange,
    fold_list,
    from_lane,
    get,
    input_bytes,
    load_numbers,
    own_memory,
    put,
    receive,
    reciprocal,
    send,
    slot_bytes,
    store_floats,
    store_numbers,
    sums_over_lanes,
    sync,
    told,
)

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

# Triton compiles a kernel again where an integer becomes 1 or a multiple of 16. None of these gains by it; strides and
# widths do, since neighbouring numbers are then loaded together.
SIZES = [
    "L", "L_PADDED", "CHUNK", "N_CHUNKS", "N_SEGMENTS", "N_TILES", "TILES", "BATCH",
    "B_sb", "B_st", "B_sn", "C_sb", "C_st", "C_sn", "seq_sb", "seq_st",
]  # fmt: skip


@triton.jit
def _softplus(x):
    """log(1 + exp(x)) to float32's precision for every x, however small: log1p(e) = 2 artanh(e / (2 + e))."""
    e = tl.exp2(tl.abs(x) * -LOG2E)
    s = e * reciprocal(2.0 + e)
    q = s * s
    # 2 artanh(s) / s as a polynomial in s^2, least squares at Chebyshev points of [0, 1/9]: error 4e-9.
    series = 0.27961419 + q * 0.28174657
    series = 0.40024854 + q * series
    series = 0.66666316 + q * series
    series = 2.0 + q * series
    return tl.maximum(x, 0.0) + s * series


@triton.jit
def _sigmoid(x):
    return reciprocal(1.0 + tl.exp2(x * -LOG2E))


@triton.jit
def _zeros(K: tl.constexpr):
    zeros = ()
    for _ in tl.static_range(K):
        zeros = zeros + (tl.zeros([LANES], tl.float32),)
    return zeros


@triton.jit
def _plus(a, b, K: tl.constexpr):
    sums = ()
    for i in tl.static_range(K):
        sums = sums + (a[i] + b[i],)
    return sums


@triton.jit
def _scaled(values, factor, K: tl.constexpr):
    scaled = ()
    for i in tl.static_range(K):
        scaled = scaled + (values[i] * factor,)
    return scaled


@triton.jit
def _four(values, FIRST: tl.constexpr):
    return values[FIRST], values[FIRST + 1], values[FIRST + 2], values[FIRST + 3]


@triton.jit
def _load_channels(pointer, channel, D_SIZE, CPT: tl.constexpr, PRESENT: tl.constexpr):
    """CPT numbers: a parameter of each channel in float32, zeros where there is none."""
    values = ()
    for c in tl.static_range(CPT):
        if PRESENT:
            here = channel + c
            values = values + (tl.load(pointer + here, mask=here < D_SIZE, other=0.0).to(tl.float32),)
        else:
            values = values + (tl.zeros([LANES], tl.float32),)
    return values


@triton.jit
def _store_channels(pointer, values, channel, D_SIZE, CPT: tl.constexpr, G: tl.constexpr, S: tl.constexpr):
    """Write for each channel the sum of its value over the lanes of all G positions."""
    for c in tl.static_range(CPT):
        total = values[c]
        if G > 1:
            total += exchange(total, 1)
        if G > 2:
            total += exchange(total, 2)
        here = channel + c
        tl.store(pointer + here, total, mask=(here < D_SIZE) & (tl.arange(0, LANES) % S == 0))


@triton.jit
def _load_states(
    pointer, channel, D_SIZE, N_SIZE, CPT: tl.constexpr, M: tl.constexpr, S: tl.constexpr, PRESENT: tl.constexpr
):
    """A lane's part of a (D, N) matrix in float32, zeros where there is none."""
    values = ()
    for tile in tl.static_range(CPT * M):
        here = channel + tile // M
        n = ((tile % M) * S + tl.arange(0, LANES) % S) * 4
        for i in tl.static_range(4):
            if PRESENT:
                inside = (here < D_SIZE) & (n + i < N_SIZE)
                place = pointer + here.to(tl.int64) * N_SIZE + n + i
                values = values + (tl.load(place, mask=inside, other=0.0),)
            else:
                values = values + (tl.zeros([LANES], tl.float32),)
    return values


@triton.jit
def _store_states(
    pointer, values, channel, D_SIZE, N_SIZE, CPT: tl.constexpr, M: tl.constexpr, S: tl.constexpr, WHOLE: tl.constexpr
):
    """The way back; WHOLE: N is 4 S M, so that a tile can be written at once."""
    for tile in tl.static_range(CPT * M):
        here = channel + tile // M
        n = ((tile % M) * S + tl.arange(0, LANES) % S) * 4
        place = pointer + here.to(tl.int64) * N_SIZE + n
        if WHOLE:
            store_floats(place, values, 4 * tile, here < D_SIZE)
        else:
            for i in tl.static_range(4):
                tl.store(place + i, values[4 * tile + i], mask=(here < D_SIZE) & (n + i < N_SIZE))


@triton.jit
def _decay(dt, A2, reset, RESETS: tl.constexpr):
    """a for one position and n; ``reset`` is 0, or minus infinity where another sequence begins."""
    if RESETS:
        return tl.exp2(dt * A2 + reset)
    else:
        return tl.exp2(dt * A2)


@triton.jit
def _steps(raw, bias, t, end, CPT: tl.constexpr, SOFTPLUS: tl.constexpr, MASKED: tl.constexpr):
    """For each of a lane's channels dt and x; past the end both are zero. ``raw`` starts with the CPT u and delta."""
    dt, x = (), ()
    for c in tl.static_range(CPT):
        dt_c = raw[CPT + c] + bias[c]
        if SOFTPLUS:
            dt_c = _softplus(dt_c)
        if MASKED:
            dt_c = tl.where(t < end, dt_c, 0.0)
        dt, x = dt + (dt_c,), x + (dt_c * raw[c],)
    return dt, x


@triton.jit
def _gated(raw, DOUT: tl.constexpr, Z: tl.constexpr, CPT: tl.constexpr, HAS_Z: tl.constexpr):
    """dy before the gate for each of a lane's channels. DOUT and Z say which of the tensors in ``raw`` they are."""
    dy = ()
    for c in tl.static_range(CPT):
        dy_c = raw[DOUT * CPT + c]
        if HAS_Z:
            z = raw[Z * CPT + c]
            dy_c = dy_c * z * _sigmoid(z)
        dy = dy + (dy_c,)
    return dy


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
def _open(
    slots, pointers, strides, rows, states, first, start, end, channel, D_SIZE,
    K: tl.constexpr, STATES: tl.constexpr, S: tl.constexpr, M: tl.constexpr, CPT: tl.constexpr,
    STAGES: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """Plan the copies of a walk over the groups between start and end, and begin those of the first STAGES - 1."""
    ITEM: tl.constexpr = pointers[0].dtype.element_ty.primitive_bitwidth // 8
    STEP: tl.constexpr = (-1 if BACK else 1) * (S if S < 4 else 4)
    warp_channel = channel - tl.arange(0, LANES) % 32 // S * CPT
    addresses, steps, bounds = copy_plan(pointers, strides, rows, first, start, end, warp_channel, D_SIZE, K, S, M, CPT,
                                         BACK)  # fmt: skip
    for n in tl.static_range(STAGES - 1):
        addresses = send(slots, n, addresses, steps, bounds, states - n * STATES * 16 * LANES, first + n * STEP, start,
                         K, STATES, S, M, CPT, ITEM, STAGES, BACK)  # fmt: skip
    return addresses, steps, bounds


@triton.jit
def _next(
    slots, group, addresses, steps, bounds, pointers, strides, rows, states, t0, start, end, channel, D_SIZE,
    K: tl.constexpr, STATES: tl.constexpr, S: tl.constexpr, M: tl.constexpr, CPT: tl.constexpr,
    STAGES: tl.constexpr, BACK: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The numbers of a group at t0 (K CPT), its slot, the place of its rows of BC, and addresses of the next copies.

    With STAGES 0 they are loaded now, and the place is in memory instead of in a slot.
    """
    G: tl.constexpr = S if S < 4 else 4
    lane = tl.arange(0, LANES)
    if STAGES > 0:
        ITEM: tl.constexpr = DTYPE.primitive_bitwidth // 8
        AHEAD: tl.constexpr = STAGES - 1
        await_copies(STAGES - 2)
        addresses = send(slots, group + AHEAD, addresses, steps, bounds, states - AHEAD * STATES * 16 * LANES,
                         t0 + (-1 if BACK else 1) * AHEAD * G, start, K, STATES, S, M, CPT, ITEM, STAGES,
                         BACK)  # fmt: skip
        slot = slots + (group & AHEAD) * slot_bytes(K, STATES, S, M, CPT, ITEM)
        raw = receive(slot, K, S, CPT, DTYPE)
        place = slot + input_bytes(K, S, CPT, ITEM) + lane % S * 32
    else:
        slot = slots
        raw = load_numbers(pointers, strides, t0 + lane % G, end, channel, D_SIZE, K, CPT)
        place = rows + t0.to(tl.int64) * (8 * S * M) + lane % S * 8
    return raw, slot, place, addresses


@triton.jit
def _load_row(place, j: tl.constexpr, FIRST: tl.constexpr, COUNT: tl.constexpr, M: tl.constexpr, S: tl.constexpr,
              ASYNC: tl.constexpr):  # fmt: skip
    """Of row j of a group the M tiles of B (0 .. M - 1) and of C (M .. 2 M - 1), COUNT from tile FIRST on."""
    values = ()
    for tile in tl.static_range(FIRST, FIRST + COUNT):
        offset = j * (8 * S * M) + (tile % M) * 8 * S + (tile // M) * 4
        if ASYNC:
            values = values + get(place + 4 * offset, 4)
        else:
            for i in tl.static_range(4):
                values = values + (tl.load(place + offset + i),)
    return values


@triton.jit
def _advance(h, A2, dt, x, reset, place, CPT: tl.constexpr, M: tl.constexpr, S: tl.constexpr, RESETS: tl.constexpr,
             ASYNC: tl.constexpr):  # fmt: skip
    """h after the positions of a group."""
    G: tl.constexpr = S if S < 4 else 4
    for j in tl.static_range(G):
        reset_j = from_lane(reset, j, G)
        B = _load_row(place, j, 0, M, M, S, ASYNC)
        now = told(dt + x, j, 2 * CPT, G)
        after = ()
        for c in tl.static_range(CPT):
            for n in tl.static_range(4 * M):
                a = _decay(now[c], A2[c * 4 * M + n], reset_j, RESETS)
                after = after + (a * h[c * 4 * M + n] + now[CPT + c] * B[n],)
        h = after
    return h


@triton.jit(do_not_specialize=SIZES)
def chunk_states_kernel(
    u_ptr, delta_ptr, A_ptr, BC_ptr, bias_ptr, reset_ptr, state_ptr, time_ptr, cut_ptr,
    L, L_PADDED, D_SIZE, N_SIZE, CHUNK, N_CHUNKS, u_sb, u_st, delta_sb, delta_st,
    HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, RESETS: tl.constexpr, MASKED: tl.constexpr,
    S: tl.constexpr, M: tl.constexpr, CPT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The state (Bt, K, D, N) that each chunk reaches from zeros, and its time (Bt, K, D); K is N_CHUNKS.

    cut (Bt, K) is minus infinity where a sequence begins inside the chunk, else 0.
    """
    G: tl.constexpr = S if S < 4 else 4
    E: tl.constexpr = CPT * M * 4
    ASYNC: tl.constexpr = STAGES > 0
    DTYPE: tl.constexpr = u_ptr.dtype.element_ty
    RING: tl.constexpr = STAGES * slot_bytes(2, 0, S, M, CPT, DTYPE.primitive_bitwidth // 8)
    lane = tl.arange(0, LANES)
    b = tl.program_id(2).to(tl.int64)
    k = tl.program_id(1)
    channel = tl.program_id(0) * (LANES // S * CPT) + lane // S * CPT
    start = k * CHUNK
    end = tl.minimum(start + CHUNK, L)
    A2 = _scaled(_load_states(A_ptr, channel, D_SIZE, N_SIZE, CPT, M, S, True), LOG2E, E)
    bias = _load_channels(bias_ptr, channel, D_SIZE, CPT, HAS_BIAS)
    h, time = _zeros(E), _zeros(CPT)
    reset, cut = tl.zeros([LANES], tl.float32), tl.zeros([LANES], tl.float32)

    pointers, strides = (u_ptr + b * u_sb, delta_ptr + b * delta_sb), (u_st, delta_st)
    rows = BC_ptr + b * L_PADDED * (8 * S * M)
    slots, copies, steps, bounds = lane, (lane,), (lane,), (lane,)
    if ASYNC:
        slots = own_memory(RING)
        copies, steps, bounds = _open(slots, pointers, strides, rows, 0, start, start, end, channel, D_SIZE,
                                      2, 0, S, M, CPT, STAGES, False)  # fmt: skip
    for group in range((end - start + G - 1) // G):
        t0 = start + group * G
        t = t0 + lane % G
        raw, _, place, copies = _next(slots, group, copies, steps, bounds, pointers, strides, rows, 0, t0, start, end,
                                      channel, D_SIZE, 2, 0, S, M, CPT, STAGES, False, DTYPE)  # fmt: skip
        dt, x = _steps(raw, bias, t, end, CPT, SOFTPLUS, MASKED)
        if RESETS:
            reset = tl.load(reset_ptr + b * L_PADDED + t)
            cut += reset
        time = _plus(time, dt, CPT)
        h = _advance(h, A2, dt, x, reset, place, CPT, M, S, RESETS, ASYNC)

    chunk = b * N_CHUNKS + k
    _store_states(state_ptr + chunk * D_SIZE * N_SIZE, h, channel, D_SIZE, N_SIZE, CPT, M, S, False)
    _store_channels(time_ptr + chunk * D_SIZE, time, channel, D_SIZE, CPT, G, S)
    if RESETS:
        tl.store(cut_ptr + chunk, tl.min(cut, axis=0))


@triton.jit
def _collect(values, A2, state_ptr, time_ptr, cut_ptr, first, count, step, D_SIZE, N_SIZE, channel,
             CPT: tl.constexpr, M: tl.constexpr, S: tl.constexpr, RESETS: tl.constexpr):  # fmt: skip
    """Carry states through ``count`` whole chunks, from chunk ``first`` on, ``step`` apart."""
    for i in range(count):
        place = first + i * step
        time = _load_channels(time_ptr + place * D_SIZE, channel, D_SIZE, CPT, True)
        added = _load_states(state_ptr + place * D_SIZE * N_SIZE, channel, D_SIZE, N_SIZE, CPT, M, S, True)
        cut = tl.zeros([LANES], tl.float32)
        if RESETS:
            cut += tl.load(cut_ptr + place)
        after = ()
        for e in tl.static_range(CPT * M * 4):
            after = after + (_decay(time[e // (4 * M)], A2[e], cut, RESETS) * values[e] + added[e],)
        values = after
    return values


@triton.jit
def _read_out(h, A2, dt, x, reset, place, CPT: tl.constexpr, M: tl.constexpr, S: tl.constexpr, RESETS: tl.constexpr,
              ASYNC: tl.constexpr):  # fmt: skip
    """h after the positions of a group, and for each of a lane's channels C h at the lane's own position."""
    G: tl.constexpr = S if S < 4 else 4
    parts = ()
    for j in tl.static_range(G):
        reset_j = from_lane(reset, j, G)
        BC = _load_row(place, j, 0, 2 * M, M, S, ASYNC)
        now = told(dt + x, j, 2 * CPT, G)
        after, parts_j = (), ()
        for c in tl.static_range(CPT):
            part = now[c]
            for n in tl.static_range(4 * M):
                a = _decay(now[c], A2[c * 4 * M + n], reset_j, RESETS)
                h_n = a * h[c * 4 * M + n] + now[CPT + c] * BC[n]
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
    S: tl.constexpr, M: tl.constexpr, CPT: tl.constexpr, STAGES: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """y (Bt, L, D), the final state (Bt, D, N) and, if KEEP, the states saved (Bt, N_SEGMENTS, D, N)."""
    G: tl.constexpr = S if S < 4 else 4
    K: tl.constexpr = 3 if HAS_Z else 2
    ASYNC: tl.constexpr = STAGES > 0
    DTYPE: tl.constexpr = u_ptr.dtype.element_ty
    RING: tl.constexpr = STAGES * slot_bytes(K, 0, S, M, CPT, DTYPE.primitive_bitwidth // 8)
    lane = tl.arange(0, LANES)
    b = tl.program_id(2).to(tl.int64)
    k = tl.program_id(1)
    channel = tl.program_id(0) * (LANES // S * CPT) + lane // S * CPT
    start = k * CHUNK
    end = tl.minimum(start + CHUNK, L)
    A2 = _scaled(_load_states(A_ptr, channel, D_SIZE, N_SIZE, CPT, M, S, True), LOG2E, CPT * M * 4)
    bias = _load_channels(bias_ptr, channel, D_SIZE, CPT, HAS_BIAS)
    skip = _load_channels(D_ptr, channel, D_SIZE, CPT, HAS_D)
    h = _load_states(initial_ptr + b * D_SIZE * N_SIZE, channel, D_SIZE, N_SIZE, CPT, M, S, HAS_INITIAL)
    h = _collect(h, A2, chunk_state_ptr, chunk_time_ptr, chunk_cut_ptr, b * N_CHUNKS, k, 1, D_SIZE, N_SIZE, channel,
                 CPT, M, S, RESETS)  # fmt: skip
    reset = tl.zeros([LANES], tl.float32)

    pointers, strides = (u_ptr + b * u_sb, delta_ptr + b * delta_sb), (u_st, delta_st)
    if HAS_Z:
        pointers, strides = pointers + (z_ptr + b * z_sb,), strides + (z_st,)
    rows = BC_ptr + b * L_PADDED * (8 * S * M)
    slots, copies, steps, bounds = lane, (lane,), (lane,), (lane,)
    if ASYNC:
        slots = own_memory(RING)
        copies, steps, bounds = _open(slots, pointers, strides, rows, 0, start, start, end, channel, D_SIZE,
                                      K, 0, S, M, CPT, STAGES, False)  # fmt: skip
    y_p = y_ptr + (b * L + start + lane % G) * D_SIZE + channel
    for group in range((end - start + G - 1) // G):
        t0 = start + group * G
        t = t0 + lane % G
        if KEEP:
            if t0 % SEGMENT == 0:
                place = saved_ptr + (b * N_SEGMENTS + t0 // SEGMENT) * D_SIZE * N_SIZE
                _store_states(place, h, channel, D_SIZE, N_SIZE, CPT, M, S, WHOLE)
        raw, _, row, copies = _next(slots, group, copies, steps, bounds, pointers, strides, rows, 0, t0, start, end,
                                    channel, D_SIZE, K, 0, S, M, CPT, STAGES, False, DTYPE)  # fmt: skip
        dt, x = _steps(raw, bias, t, end, CPT, SOFTPLUS, MASKED)
        if RESETS:
            reset = tl.load(reset_ptr + b * L_PADDED + t)
        h, totals = _read_out(h, A2, dt, x, reset, row, CPT, M, S, RESETS, ASYNC)
        ys = ()
        for c in tl.static_range(CPT):
            y = totals[c] + skip[c] * raw[c]
            if HAS_Z:
                z = raw[2 * CPT + c]
                y = y * z * _sigmoid(z)
            ys = ys + (y,)
        store_numbers(y_p, ys, (t < end) & (lane % S < G), channel, D_SIZE, CPT, ASYNC)
        y_p += G * D_SIZE

    if k == N_CHUNKS - 1:
        _store_states(final_ptr + b * D_SIZE * N_SIZE, h, channel, D_SIZE, N_SIZE, CPT, M, S, False)


@triton.jit(do_not_specialize=SIZES)
def chunk_gradients_kernel(
    u_ptr, delta_ptr, z_ptr, dout_ptr, A_ptr, BC_ptr, bias_ptr, reset_ptr, state_ptr, time_ptr, cut_ptr,
    L, L_PADDED, D_SIZE, N_SIZE, CHUNK, N_CHUNKS, delta_sb, delta_st, z_sb, z_st, dout_sb, dout_st,
    HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, RESETS: tl.constexpr, MASKED: tl.constexpr,
    S: tl.constexpr, M: tl.constexpr, CPT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """As ``chunk_states_kernel``, the other way: a g (Bt, K, D, N) that each chunk hands to the state before it."""
    G: tl.constexpr = S if S < 4 else 4
    K: tl.constexpr = 3 if HAS_Z else 2
    E: tl.constexpr = CPT * M * 4
    ASYNC: tl.constexpr = STAGES > 0
    DTYPE: tl.constexpr = dout_ptr.dtype.element_ty
    RING: tl.constexpr = STAGES * slot_bytes(K, 0, S, M, CPT, DTYPE.primitive_bitwidth // 8)
    lane = tl.arange(0, LANES)
    b = tl.program_id(2).to(tl.int64)
    k = tl.program_id(1)
    channel = tl.program_id(0) * (LANES // S * CPT) + lane // S * CPT
    start = k * CHUNK
    end = tl.minimum(start + CHUNK, L)
    A2 = _scaled(_load_states(A_ptr, channel, D_SIZE, N_SIZE, CPT, M, S, True), LOG2E, E)
    bias = _load_channels(bias_ptr, channel, D_SIZE, CPT, HAS_BIAS)
    ag, time = _zeros(E), _zeros(CPT)
    reset, cut = tl.zeros([LANES], tl.float32), tl.zeros([LANES], tl.float32)

    last = start + (end - start - 1) // G * G
    pointers, strides = (dout_ptr + b * dout_sb, delta_ptr + b * delta_sb), (dout_st, delta_st)
    if HAS_Z:
        pointers, strides = pointers + (z_ptr + b * z_sb,), strides + (z_st,)
    rows = BC_ptr + b * L_PADDED * (8 * S * M)
    slots, copies, steps, bounds = lane, (lane,), (lane,), (lane,)
    if ASYNC:
        slots = own_memory(RING)
        copies, steps, bounds = _open(slots, pointers, strides, rows, 0, last, start, end, channel, D_SIZE,
                                      K, 0, S, M, CPT, STAGES, True)  # fmt: skip
    for group in range((end - start + G - 1) // G):
        t0 = last - group * G
        t = t0 + lane % G
        raw, _, place, copies = _next(slots, group, copies, steps, bounds, pointers, strides, rows, 0, t0, start, end,
                                      channel, D_SIZE, K, 0, S, M, CPT, STAGES, True, DTYPE)  # fmt: skip
        dt, _ = _steps(raw, bias, t, end, CPT, SOFTPLUS, MASKED)
        dy = _gated(raw, 0, 2, CPT, HAS_Z)
        if RESETS:
            reset = tl.load(reset_ptr + b * L_PADDED + t)
            cut += reset
        time = _plus(time, dt, CPT)
        for j in tl.static_range(G - 1, -1, -1):
            reset_j = from_lane(reset, j, G)
            C = _load_row(place, j, M, M, M, S, ASYNC)
            now = told(dt + dy, j, 2 * CPT, G)
            after = ()
            for e in tl.static_range(E):
                g = ag[e] + now[CPT + e // (4 * M)] * C[e % (4 * M)]
                after = after + (_decay(now[e // (4 * M)], A2[e], reset_j, RESETS) * g,)
            ag = after

    chunk = b * N_CHUNKS + k
    _store_states(state_ptr + chunk * D_SIZE * N_SIZE, ag, channel, D_SIZE, N_SIZE, CPT, M, S, False)
    _store_channels(time_ptr + chunk * D_SIZE, time, channel, D_SIZE, CPT, G, S)
    if RESETS:
        tl.store(cut_ptr + chunk, tl.min(cut, axis=0))


@triton.jit
def _folded_place(M: tl.constexpr, S: tl.constexpr):
    """Where in a row of dBC the first value stands that a lane ends with after ``_fold_over_channels``.

    Folding halves the list of 8 M values over each bit of the lane that tells channels apart, so the bits spell the
    index of what is left. Returns that index and whether the lane is the one that keeps it.
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
def _fold_over_channels(values, row, index, keep, M: tl.constexpr, S: tl.constexpr, DETERMINISTIC: tl.constexpr):
    """Add a position's dB and dC, 4 M values each, up over the channels of the warp, then to one row of memory."""
    for level in tl.static_range(5):
        if (S << level) < 32:
            values = fold_list(values, ((8 * M) >> level) if ((8 * M) >> level) > 1 else 1, S << level)
    for i in tl.static_range((8 * M * S // 32) if 8 * M * S > 32 else 1):
        which = index + i  # (kind M + m) 4 + column, kind 0 for B and 1 for C
        place = row + (which // 4 * S + tl.arange(0, LANES) % S) * 4 + which % 4
        if DETERMINISTIC:
            tl.store(place, values[i], mask=keep)
        else:
            tl.atomic_add(place, values[i], mask=keep, sem="relaxed")


@triton.constexpr_function
def _bc_table_bytes(M):
    """Of dB and dC of a group in shared memory: 4 positions, 2 M tiles, 36 lanes (32, and 4 against bank conflicts)."""
    return 4 * 2 * M * 576


@triton.jit
def _add_over_channels(bc_table, row, M: tl.constexpr, DETERMINISTIC: tl.constexpr, WIDE: tl.constexpr):
    """Add a group's dB and dC, in shared memory, up over the channels of the warp, then to four rows of memory.

    A lane takes four neighbouring states of B or C at one position.
    """
    lane = tl.arange(0, LANES) % 32
    for m in tl.static_range(M):
        address = bc_table + (lane // 8 * (2 * M) + lane // 4 % 2 * M + m) * 576 + lane % 4 * 16
        total = get(address, 4)
        for k in tl.static_range(1, 8):
            total = _plus(total, get(address + k * 64, 4), 4)
        place = row + (((lane // 8 * 2 + lane // 4 % 2) * M + m) * 4 + lane % 4) * 4
        if DETERMINISTIC:
            store_floats(place, total, 0, lane >= 0)
        elif WIDE:
            add_floats(place, total)
        else:
            for i in tl.static_range(4):
                tl.atomic_add(place + i, total[i], sem="relaxed")


@triton.jit
def _walk_forward(h, A2, known, reset, place, CPT: tl.constexpr, M: tl.constexpr, S: tl.constexpr,
                  RESETS: tl.constexpr, READ: tl.constexpr, ASYNC: tl.constexpr):  # fmt: skip
    """A group from h on: the states before and after each position (G + 1), the decays (G), and if READ, parts of y.

    ``known`` is dt, x and dy, each for CPT channels.
    """
    G: tl.constexpr = S if S < 4 else 4
    states, decays, parts = h, (), ()
    for j in tl.static_range(G):
        reset_j = from_lane(reset, j, G)
        BC = _load_row(place, j, 0, 2 * M if READ else M, M, S, ASYNC)
        now = told(known, j, 3 * CPT, G)
        parts_j = ()
        for c in tl.static_range(CPT):
            part = now[c]
            for n in tl.static_range(4 * M):
                a = _decay(now[c], A2[c * 4 * M + n], reset_j, RESETS)
                h_n = a * states[(j * CPT + c) * 4 * M + n] + now[CPT + c] * BC[n]
                states, decays = states + (h_n,), decays + (a,)
                if READ:
                    part = h_n * BC[4 * M + n] if n == 0 else part + h_n * BC[4 * M + n]
            parts_j = parts_j + (part,)
        parts = parts + parts_j
    return states, decays, parts


@triton.jit
def _walk_back(ag, dA, A2, known, states, decays, place, bc_table, row, index, keep,
               CPT: tl.constexpr, M: tl.constexpr, S: tl.constexpr,
               DETERMINISTIC: tl.constexpr, ASYNC: tl.constexpr, SHARED: tl.constexpr):  # fmt: skip
    """A group back: a g before it, dA so far, and 2 CPT parts a position, of dx and the gradient by dt over ln 2."""
    G: tl.constexpr = S if S < 4 else 4
    N: tl.constexpr = 4 * M
    parts = ()
    for j in tl.static_range(G - 1, -1, -1):
        new_ag, new_dA, dx_j, ddt_j = (), (), (), ()
        dB, dC = _zeros(N), _zeros(N)
        BC = _load_row(place, j, 0, 2 * M, M, S, ASYNC)
        now = told(known, j, 3 * CPT, G)
        for c in tl.static_range(CPT):
            dt, x, dy = now[c], now[CPT + c], now[2 * CPT + c]
            dx_part, dt_part, more_B, more_C = dt, dt, (), ()
            for n in tl.static_range(N):
                g = ag[c * N + n] + dy * BC[N + n]
                more_B = more_B + (dB[n] + g * x if c > 0 else g * x,)
                h = states[((j + 1) * CPT + c) * N + n]
                more_C = more_C + (dC[n] + h * dy if c > 0 else h * dy,)
                ag_n = decays[(j * CPT + c) * N + n] * g
                d_exponent = ag_n * states[(j * CPT + c) * N + n]
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
            _fold_over_channels(dB + dC, row + j * (8 * S * M), index, keep, M, S, DETERMINISTIC)
    return ag, dA, parts


@triton.jit
def _refill(
    saved_ptr, scratch, slots, pointers, strides, rows, reset_p, base, stop, A2, bias, channel, D_SIZE, N_SIZE,
    CPT: tl.constexpr, M: tl.constexpr, S: tl.constexpr, SOFTPLUS: tl.constexpr, RESETS: tl.constexpr,
    MASKED: tl.constexpr, STAGES: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Walk a segment from its saved state and write the state before every group of positions to scratch."""
    G: tl.constexpr = S if S < 4 else 4
    ASYNC: tl.constexpr = STAGES > 0
    lane = tl.arange(0, LANES)
    h = _load_states(saved_ptr, channel, D_SIZE, N_SIZE, CPT, M, S, True)
    reset = tl.zeros([LANES], tl.float32)
    copies, steps, bounds = (lane,), (lane,), (lane,)
    if ASYNC:
        await_copies(0)
        copies, steps, bounds = _open(slots, pointers, strides, rows, 0, base, base, stop, channel, D_SIZE,
                                      2, 0, S, M, CPT, STAGES, False)  # fmt: skip
    for group in range((stop - base + G - 1) // G):
        t0 = base + group * G
        t = t0 + lane % G
        for tile in tl.static_range(CPT * M):
            place = scratch + tile * (4 * LANES) + lane * 4
            if ASYNC:
                store_floats(place, h, 4 * tile, lane >= 0)
            else:
                for i in tl.static_range(4):
                    tl.store(place + i, h[4 * tile + i])
        scratch += CPT * M * 4 * LANES
        raw, _, row, copies = _next(slots, group, copies, steps, bounds, pointers, strides, rows, 0, t0, base, stop,
                                    channel, D_SIZE, 2, 0, S, M, CPT, STAGES, False, DTYPE)  # fmt: skip
        dt, x = _steps(raw, bias, t, stop, CPT, SOFTPLUS, MASKED)
        if RESETS:
            reset = tl.load(reset_p + t)
        h = _advance(h, A2, dt, x, reset, row, CPT, M, S, RESETS, ASYNC)


@triton.jit
def _group_states(slot, kept, K: tl.constexpr, S: tl.constexpr, M: tl.constexpr, CPT: tl.constexpr,
                  ITEM: tl.constexpr, ASYNC: tl.constexpr):  # fmt: skip
    """The states before a group, from its slot or from scratch memory."""
    lane = tl.arange(0, LANES)
    h = ()
    for tile in tl.static_range(CPT * M):
        if ASYNC:
            h = h + get(slot + input_bytes(K, S, CPT, ITEM) + (bc_rounds(S, M) + tile) * 512 + lane % 32 * 16, 4)
        else:
            for i in tl.static_range(4):
                h = h + (tl.load(kept + tile * (4 * LANES) + lane * 4 + i),)
    return h


@triton.jit
def _finish(
    raw, totals, ys, dt, dy, dD, dbias, bias, skip, t, end,
    CPT: tl.constexpr, HAS_Z: tl.constexpr, SOFTPLUS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """From what was summed over n to du, ddelta, dz at the lane's own position; and dD and dbias so far."""
    du, ddelta, dz, new_dD, new_dbias = (), (), (), (), ()
    for c in tl.static_range(CPT):
        u, dx = raw[c], totals[c]
        d_step = dx * u + totals[CPT + c] * LN2
        if SOFTPLUS:
            d_step = d_step * _sigmoid(raw[CPT + c] + bias[c])
        if MASKED:
            d_step = tl.where(t < end, d_step, 0.0)
        du, ddelta = du + (dx * dt[c] + dy[c] * skip[c],), ddelta + (d_step,)
        new_dD, new_dbias = new_dD + (dD[c] + dy[c] * u,), new_dbias + (dbias[c] + d_step,)
        if HAS_Z:
            z = raw[3 * CPT + c]
            sigmoid = _sigmoid(z)
            y = ys[c] + skip[c] * u
            dz = dz + (raw[2 * CPT + c] * y * sigmoid * (1.0 + z * (1.0 - sigmoid)),)
    return du, ddelta, dz, new_dD, new_dbias


@triton.jit(do_not_specialize=SIZES)
def backward_kernel(
    u_ptr, delta_ptr, z_ptr, dout_ptr, A_ptr, BC_ptr, D_ptr, bias_ptr, reset_ptr, saved_ptr, final_ptr,
    chunk_state_ptr, chunk_time_ptr, chunk_cut_ptr, scratch_ptr,
    du_ptr, ddelta_ptr, dz_ptr, dBC_ptr, dA_ptr, dD_ptr, dbias_ptr, initial_ptr,
    L, L_PADDED, D_SIZE, N_SIZE, CHUNK, N_CHUNKS, N_SEGMENTS, N_TILES, TILES, BATCH,
    u_sb, u_st, delta_sb, delta_st, z_sb, z_st, dout_sb, dout_st,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_FINAL: tl.constexpr,
    SOFTPLUS: tl.constexpr, RESETS: tl.constexpr, SEGMENT: tl.constexpr, MASKED: tl.constexpr,
    DETERMINISTIC: tl.constexpr, S: tl.constexpr, M: tl.constexpr, CPT: tl.constexpr,
    STAGES: tl.constexpr, FILL_STAGES: tl.constexpr, SHARED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Every gradient. A program takes one tile after another: some channels of one chunk of one sequence.

    Gradients by A, D and the bias are written for each sequence and chunk, to be added up; dBC (Bt, L padded, 2, N
    padded) is added to in memory, or with DETERMINISTIC written for each warp's channels, to be added up.
    """
    G: tl.constexpr = S if S < 4 else 4
    E: tl.constexpr = CPT * M * 4
    K: tl.constexpr = 4 if HAS_Z else 3
    ASYNC: tl.constexpr = STAGES > 0
    DTYPE: tl.constexpr = u_ptr.dtype.element_ty
    ITEM: tl.constexpr = DTYPE.primitive_bitwidth // 8
    RING: tl.constexpr = STAGES * slot_bytes(K, CPT * M, S, M, CPT, ITEM)
    lane = tl.arange(0, LANES)
    index, keep = _folded_place(M, S)
    scratch = scratch_ptr + tl.program_id(0).to(tl.int64) * ((SEGMENT // G) * E * LANES)
    slots, bc_table = lane, lane
    if ASYNC:
        slots = own_memory(RING + (_bc_table_bytes(M) if SHARED else 0))
        bc_table = slots + RING
    for work in range(tl.program_id(0), TILES, tl.num_programs(0)):
        k = (work // N_TILES) % N_CHUNKS
        b = (work // N_TILES // N_CHUNKS).to(tl.int64)
        channel = (work % N_TILES) * (LANES // S * CPT) + lane // S * CPT
        start = k * CHUNK
        end = tl.minimum(start + CHUNK, L)
        A2 = _scaled(_load_states(A_ptr, channel, D_SIZE, N_SIZE, CPT, M, S, True), LOG2E, E)
        bias = _load_channels(bias_ptr, channel, D_SIZE, CPT, HAS_BIAS)
        skip = _load_channels(D_ptr, channel, D_SIZE, CPT, HAS_D)
        ag = _load_states(final_ptr + b * D_SIZE * N_SIZE, channel, D_SIZE, N_SIZE, CPT, M, S, HAS_FINAL)
        ag = _collect(ag, A2, chunk_state_ptr, chunk_time_ptr, chunk_cut_ptr, (b + 1) * N_CHUNKS - 1,
                      N_CHUNKS - 1 - k, -1, D_SIZE, N_SIZE, channel, CPT, M, S, RESETS)  # fmt: skip
        dA, dD, dbias, reset = _zeros(E), _zeros(CPT), _zeros(CPT), tl.zeros([LANES], tl.float32)
        pointers, strides = (u_ptr + b * u_sb, delta_ptr + b * delta_sb), (u_st, delta_st)
        all_pointers, all_strides = pointers + (dout_ptr + b * dout_sb,), strides + (dout_st,)
        if HAS_Z:
            all_pointers, all_strides = all_pointers + (z_ptr + b * z_sb,), all_strides + (z_st,)
        rows = BC_ptr + b * L_PADDED * (8 * S * M)
        dBC = dBC_ptr + b * L_PADDED * (8 * S * M)
        if DETERMINISTIC:
            dBC += (work % N_TILES * (LANES // 32) + lane // 32) * BATCH.to(tl.int64) * L_PADDED * (8 * S * M)
        segments = (end - start + SEGMENT - 1) // SEGMENT
        for done in range(segments):
            base = start + (segments - 1 - done) * SEGMENT
            stop = tl.minimum(base + SEGMENT, end)
            saved = saved_ptr + (b * N_SEGMENTS + base // SEGMENT) * D_SIZE * N_SIZE
            _refill(saved, scratch, slots, pointers, strides, rows, reset_ptr + b * L_PADDED, base, stop, A2,
                    bias, channel, D_SIZE, N_SIZE, CPT, M, S, SOFTPLUS, RESETS, MASKED, FILL_STAGES, DTYPE)  # fmt: skip

            last = base + (stop - base - 1) // G * G
            out = (b * L + last + lane % G) * D_SIZE + channel
            kept = scratch + (last - base) // G * (E * LANES)
            copies, steps, bounds = (lane,), (lane,), (lane,)
            if ASYNC:
                await_copies(0)  # and what this warp has written to scratch memory is seen by it
                copies, steps, bounds = _open(slots, all_pointers, all_strides, rows, kept.to(tl.int64), last, base,
                                              end, channel, D_SIZE, K, CPT * M, S, M, CPT, STAGES, True)  # fmt: skip
            for group in range((stop - base + G - 1) // G):
                t0 = last - group * G
                t = t0 + lane % G
                raw, slot, row, copies = _next(slots, group, copies, steps, bounds, all_pointers, all_strides, rows,
                                               kept.to(tl.int64), t0, base, end, channel, D_SIZE, K, CPT * M, S, M, CPT,
                                               STAGES, True, DTYPE)  # fmt: skip
                h = _group_states(slot, kept, K, S, M, CPT, ITEM, ASYNC)
                kept -= E * LANES
                if RESETS:
                    reset = tl.load(reset_ptr + b * L_PADDED + t)
                dt, x = _steps(raw, bias, t, end, CPT, SOFTPLUS, MASKED)
                dy = _gated(raw, 2, 3, CPT, HAS_Z)
                states, decays, parts = _walk_forward(h, A2, dt + x + dy, reset, row, CPT, M, S, RESETS, HAS_Z, ASYNC)
                ys = dy
                if HAS_Z:
                    ys = sums_over_lanes(parts, CPT, G, S)
                dBC_row = dBC + t0.to(tl.int64) * (8 * S * M)
                ag, dA, parts = _walk_back(ag, dA, A2, dt + x + dy, states, decays, row, bc_table, dBC_row, index, keep,
                                           CPT, M, S, DETERMINISTIC, ASYNC, SHARED)  # fmt: skip
                totals = sums_over_lanes(parts, 2 * CPT, G, S)
                if SHARED:
                    sync()
                    _add_over_channels(bc_table, dBC_row, M, DETERMINISTIC, WIDE)
                if ASYNC:  # read again: fewer registers in between
                    raw = receive(slot, K, S, CPT, DTYPE)
                du, ddelta, dz, dD, dbias = _finish(raw, totals, ys, dt, dy, dD, dbias, bias, skip, t, end, CPT, HAS_Z,
                                                    SOFTPLUS, MASKED)  # fmt: skip
                inside = (t < end) & (lane % S < G)
                store_numbers(du_ptr + out, du, inside, channel, D_SIZE, CPT, ASYNC)
                store_numbers(ddelta_ptr + out, ddelta, inside, channel, D_SIZE, CPT, ASYNC)
                if HAS_Z:
                    store_numbers(dz_ptr + out, dz, inside, channel, D_SIZE, CPT, ASYNC)
                out -= G * D_SIZE

        chunk = b * N_CHUNKS + k
        _store_states(dA_ptr + chunk * D_SIZE * N_SIZE, dA, channel, D_SIZE, N_SIZE, CPT, M, S, False)
        _store_channels(dD_ptr + chunk * D_SIZE, dD, channel, D_SIZE, CPT, G, S)
        _store_channels(dbias_ptr + chunk * D_SIZE, dbias, channel, D_SIZE, CPT, G, S)
        if k == 0:
            _store_states(initial_ptr + b * D_SIZE * N_SIZE, ag, channel, D_SIZE, N_SIZE, CPT, M, S, False)


SUM_WIDTH = tl.constexpr(128)
ROW_WIDTH = tl.constexpr(1024)


@triton.jit
def _column_sums(pointer, ROWS, WIDTH, column):
    """(SUM_WIDTH,) the sums of columns of a (ROWS, WIDTH) matrix."""
    total = tl.zeros([8, SUM_WIDTH], tl.float32)
    for first in range(0, ROWS, 8):
        row = first + tl.arange(0, 8)
        inside = (row < ROWS)[:, None] & (column < WIDTH)[None, :]
        total += tl.load(pointer + row[:, None].to(tl.int64) * WIDTH + column[None, :], mask=inside, other=0.0)
    return tl.sum(total, axis=0)


@triton.jit(
    do_not_specialize=["ROWS", "DN", "D_SIZE", "PROGRAMS", "NUMBERS", "L", "L_PADDED", "N_SIZE", "COPY", "COPIES"]
)
def finish_kernel(
    partial_A_ptr, partial_D_ptr, partial_bias_ptr, dBC_ptr, dA_ptr, dD_ptr, dbias_ptr, dB_ptr, dC_ptr,
    ROWS, DN, D_SIZE, PROGRAMS, NUMBERS, L, L_PADDED, N_SIZE, COPY, COPIES,
    HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, N_PADDED: tl.constexpr,
):  # fmt: skip
    """The first PROGRAMS programs add up the gradients by A, D and the bias over sequences and chunks (ROWS).

    The others take dB and dC (Bt, L, N) out of dBC, adding up its COPIES, each of COPY numbers.
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
        tl.store(dB_ptr + i, dB.to(dB_ptr.dtype.element_ty), mask=inside)
        tl.store(dC_ptr + i, dC.to(dC_ptr.dtype.element_ty), mask=inside)
