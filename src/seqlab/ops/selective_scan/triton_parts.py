"""The selective scan on a GPU, device code: what its kernels share.

A program is four independent warps. S lanes of a warp work on the states of one group of CPT neighbouring channels and
hold them in registers as tiles of 4 neighbouring n, M of them for each channel. For c = 0 .. CPT - 1, m = 0 .. M - 1
and i = 0 .. 3 a lane holds, as element (c M + m) 4 + i of a tuple,

    channel   first channel of the program + lane // S CPT + c
    n         (m S + lane % S) 4 + i

Positions are processed in groups of G = min(S, 4). What is computed once per position and channel (step size, gate) is
computed by lane % G = position % G alone and broadcast to the other lanes; sums over n return the same way. States are
not written for each position: if a backward pass follows, the forward pass saves one every SEGMENT positions, and the
backward pass recomputes the others twice: from the segment's start up to the state before each group, which it writes
to scratch memory of its own, and from there when it reaches that group on its way back. Many states are taken in parts
there: a segment is processed once for each, and what is summed over n waits in scratch memory for the next part.

Long sequences are cut into chunks that run in parallel. ``chunk_states_kernel`` computes what each chunk adds to the
state, and its time (the sum of its step sizes); from these a program computes the state that it starts from, with one
exponential for a whole chunk, exp(time A). ``chunk_gradients_kernel`` does the same for the backward pass.

``triton_forward.py`` and ``triton_backward.py`` hold the kernels, ``triton_ends.py`` those before and after them;
``triton_group_gradients.py`` what the backward pass does with a group; ``triton_lanes.py`` the operations across lanes,
and the copies of groups to shared memory ahead of their use.

Symbols (arXiv:2312.00752, Algorithm 2):

    u, z, dt      input, gate, step size after bias and softplus
    A2            A log2(e), so that exp(dt A) = 2^(dt A2)
    BC            (Bt, L padded, N padded / 4, 2, 4) B and C in float32, a row of memory for each position
    x             dt u
    a             decay 2^(dt A2)
    h             state, h_t = a_t h_{t-1} + x_t B_t
    g             gradient of the loss w.r.t. h_t, g_t = C_t dy_t + a_{t+1} g_{t+1}; ag is a_t g_t
    d...          gradient of the loss w.r.t. what follows the d; dout by y after the gate, dy before it
"""

import triton
import triton.language as tl

from seqlab.ops.selective_scan.triton_lanes import (
    LANES,
    await_copies,
    broadcast_from_lane,
    copy_plan,
    exchange,
    from_lane,
    get,
    input_bytes,
    load_float,
    load_floats,
    load_numbers,
    receive,
    reciprocal,
    send,
    slot_bytes,
    store_float,
    store_floats,
)

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

# Triton recompiles a kernel when an integer is 1 or a multiple of 16. These gain nothing by it; strides and widths do,
# since neighbouring numbers are then loaded together.
SIZES = [
    "L", "L_PADDED", "CHUNK", "N_CHUNKS", "N_SEGMENTS", "N_TILES", "TILES", "BATCH",
    "B_sb", "B_st", "B_sn", "C_sb", "C_st", "C_sn", "seq_sb", "seq_st",
]  # fmt: skip


@triton.jit
def softplus(x):
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
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return reciprocal(1.0 + tl.exp2(x * -LOG2E))


@triton.jit
def zeros(K: tl.constexpr):
    """A tuple of K zeros (LANES,)."""
    zeros = ()
    for _ in tl.static_range(K):
        zeros = zeros + (tl.zeros([LANES], tl.float32),)
    return zeros


@triton.jit
def add_each(a, b, K: tl.constexpr):
    """The sums of the elements of two tuples of K."""
    sums = ()
    for i in tl.static_range(K):
        sums = sums + (a[i] + b[i],)
    return sums


@triton.jit
def scaled(values, factor, K: tl.constexpr):
    """The elements of a tuple of K times a factor."""
    scaled = ()
    for i in tl.static_range(K):
        scaled = scaled + (values[i] * factor,)
    return scaled


@triton.jit
def load_channels(pointer, channel, D_SIZE, CPT: tl.constexpr, PRESENT: tl.constexpr):
    """A parameter of each of the CPT channels in float32, zeros unless PRESENT."""
    values = ()
    for c in tl.static_range(CPT):
        if PRESENT:
            here = channel + c
            values = values + (tl.load(pointer + here, mask=here < D_SIZE, other=0.0).to(tl.float32),)
        else:
            values = values + (tl.zeros([LANES], tl.float32),)
    return values


@triton.jit
def store_channels(pointer, values, channel, D_SIZE, CPT: tl.constexpr, G: tl.constexpr, S: tl.constexpr):
    """Write for each channel the sum of its value over the lanes of all G positions."""
    for c in tl.static_range(CPT):
        total = values[c]
        if G > 1:
            total += exchange(total, 1)
        if G > 2:
            total += exchange(total, 2)
        here = channel + c
        store_float(pointer + here, total, (here < D_SIZE) & (tl.arange(0, LANES) % S == 0))


@triton.jit
def load_states(
    pointer, channel, D_SIZE, N_SIZE, CPT: tl.constexpr, M: tl.constexpr, S: tl.constexpr, PRESENT: tl.constexpr,
    first=0,
):  # fmt: skip
    """A lane's part of a (D, N) matrix in float32, of states from ``first`` on; zeros unless PRESENT."""
    values = ()
    for tile in tl.static_range(CPT * M):
        here = channel + tile // M
        n = first + ((tile % M) * S + tl.arange(0, LANES) % S) * 4
        for i in tl.static_range(4):
            if PRESENT:
                inside = (here < D_SIZE) & (n + i < N_SIZE)
                place = pointer + here.to(tl.int64) * N_SIZE + n + i
                values = values + (load_float(place, inside),)
            else:
                values = values + (tl.zeros([LANES], tl.float32),)
    return values


@triton.jit
def store_states(
    pointer, values, channel, D_SIZE, N_SIZE, CPT: tl.constexpr, M: tl.constexpr, S: tl.constexpr, WHOLE: tl.constexpr,
    first=0,
):  # fmt: skip
    """The inverse of ``load_states``; WHOLE: N is a multiple of 4 S M, so that a tile can be written at once."""
    for tile in tl.static_range(CPT * M):
        here = channel + tile // M
        n = first + ((tile % M) * S + tl.arange(0, LANES) % S) * 4
        place = pointer + here.to(tl.int64) * N_SIZE + n
        if WHOLE:
            store_floats(place, values, 4 * tile, here < D_SIZE)
        else:
            for i in tl.static_range(4):
                store_float(place + i, values[4 * tile + i], (here < D_SIZE) & (n + i < N_SIZE))


@triton.jit
def carried(value, reset, RESETS: tl.constexpr):
    """The value passed from one position to the next: 0 where ``reset`` is not 0, since another sequence begins.

    It is selected, not multiplied: 0 times infinity would pass one sequence's overflow to the other.
    """
    if RESETS:
        return tl.where(reset < 0.0, 0.0, value)
    else:
        return value


@triton.jit
def step_sizes(raw, bias, t, end, CPT: tl.constexpr, SOFTPLUS: tl.constexpr, MASKED: tl.constexpr):
    """For each of a lane's channels dt and x; past the end both are zero. ``raw`` starts with the CPT u and delta."""
    dt, x = (), ()
    for c in tl.static_range(CPT):
        dt_c = raw[CPT + c] + bias[c]
        if SOFTPLUS:
            dt_c = softplus(dt_c)
        if MASKED:
            dt_c = tl.where(t < end, dt_c, 0.0)
        dt, x = dt + (dt_c,), x + (dt_c * raw[c],)
    return dt, x


@triton.jit
def gated(raw, DOUT: tl.constexpr, Z: tl.constexpr, CPT: tl.constexpr, HAS_Z: tl.constexpr):
    """dy before the gate for each of a lane's channels. DOUT and Z are the places of dout and z in ``raw``."""
    dy = ()
    for c in tl.static_range(CPT):
        dy_c = raw[DOUT * CPT + c]
        if HAS_Z:
            z = raw[Z * CPT + c]
            dy_c = dy_c * z * sigmoid(z)
        dy = dy + (dy_c,)
    return dy


@triton.jit
def open_ring(
    slots, pointers, strides, rows, states, first, start, end, channel, D_SIZE,
    K: tl.constexpr, STATES: tl.constexpr, S: tl.constexpr, M: tl.constexpr, CPT: tl.constexpr, ROW: tl.constexpr,
    STAGES: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """Plan the copies for all groups between start and end, and start those of the first STAGES - 1."""
    ITEM: tl.constexpr = pointers[0].dtype.element_ty.primitive_bitwidth // 8
    STEP: tl.constexpr = (-1 if BACK else 1) * (S if S < 4 else 4)
    warp_channel = channel - tl.arange(0, LANES) % 32 // S * CPT
    addresses, steps, bounds = copy_plan(pointers, strides, rows, first, start, end, warp_channel, D_SIZE, K, S, M, CPT,
                                         ROW, BACK)  # fmt: skip
    for n in tl.static_range(STAGES - 1):
        addresses = send(slots, n, addresses, steps, bounds, states - n * STATES * 16 * LANES, first + n * STEP, start,
                         K, STATES, S, M, CPT, ITEM, STAGES, BACK)  # fmt: skip
    return addresses, steps, bounds


@triton.jit
def fetch(
    slots, group, addresses, steps, bounds, pointers, strides, rows, states, t0, start, end, channel, D_SIZE,
    K: tl.constexpr, STATES: tl.constexpr, S: tl.constexpr, M: tl.constexpr, CPT: tl.constexpr, ROW: tl.constexpr,
    STAGES: tl.constexpr, BACK: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The K CPT numbers of the group at t0, its slot, the address of its rows of BC, and addresses of the next copies.

    With STAGES 0 they are loaded now, and the rows are in memory instead of in a slot.
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
        place = rows + t0.to(tl.int64) * ROW + lane % S * 8
    return raw, slot, place, addresses


@triton.jit
def load_row(place, j: tl.constexpr, FIRST: tl.constexpr, COUNT: tl.constexpr, M: tl.constexpr, S: tl.constexpr,
              ROW: tl.constexpr):  # fmt: skip
    """COUNT tiles from FIRST on of row j of a group, which has M tiles of B (0 .. M - 1) and M of C (M .. 2 M - 1).

    ROW is the number of float32 from one row to the next in memory, 0 for rows in a slot.
    """
    values = ()
    for tile in tl.static_range(FIRST, FIRST + COUNT):
        offset = j * (8 * S * M if ROW == 0 else ROW) + (tile % M) * 8 * S + (tile // M) * 4
        if ROW == 0:
            values = values + get(place + 4 * offset, 4)
        else:
            values = values + load_floats(place + offset)
    return values


@triton.jit
def advance(h, A2, dt, x, reset, place, CPT: tl.constexpr, M: tl.constexpr, S: tl.constexpr, RESETS: tl.constexpr,
             ROW: tl.constexpr):  # fmt: skip
    """h after the positions of a group."""
    G: tl.constexpr = S if S < 4 else 4
    for j in tl.static_range(G):
        reset_j = from_lane(reset, j, G)
        B = load_row(place, j, 0, M, M, S, ROW)
        now = broadcast_from_lane(dt + x, j, 2 * CPT, G)
        after = ()
        for c in tl.static_range(CPT):
            for n in tl.static_range(4 * M):
                a = tl.exp2(now[c] * A2[c * 4 * M + n])
                after = after + (a * carried(h[c * 4 * M + n], reset_j, RESETS) + now[CPT + c] * B[n],)
        h = after
    return h


@triton.jit
def collect(values, A2, state_ptr, time_ptr, cut_ptr, chunk, count, step, D_SIZE, N_SIZE, channel,
             CPT: tl.constexpr, M: tl.constexpr, S: tl.constexpr, RESETS: tl.constexpr, first=0):  # fmt: skip
    """Advance states, those from ``first`` on, by ``count`` whole chunks, from ``chunk`` on, ``step`` apart."""
    for i in range(count):
        place = chunk + i * step
        time = load_channels(time_ptr + place * D_SIZE, channel, D_SIZE, CPT, True)
        added = load_states(state_ptr + place * D_SIZE * N_SIZE, channel, D_SIZE, N_SIZE, CPT, M, S, True, first)
        cut = tl.zeros([LANES], tl.float32)
        if RESETS:
            cut += tl.load(cut_ptr + place)
        after = ()
        for e in tl.static_range(CPT * M * 4):
            after = after + (carried(tl.exp2(time[e // (4 * M)] * A2[e]) * values[e], cut, RESETS) + added[e],)
        values = after
    return values
