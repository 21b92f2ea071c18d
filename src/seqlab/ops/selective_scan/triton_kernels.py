"""The device code of the ``triton`` backend; ``triton.py`` launches it.

A program is one warp. Its 32 lanes are S lanes for each of Q = 32 / S channels, and each lane keeps the states of its
channels in registers: tiles of 4 neighbouring n, M of them for each of CPT channels that lie Q apart. So

    lane      channel + c Q, c = 0 .. CPT - 1          first channel of the program + lane // S
              n = (m S + lane % S) 4 + 0 .. 3          m = 0 .. M - 1

and every tensor below is (32,), one number a lane, or (32, 4), one tile a lane: no shared memory, no barrier.

Positions go G = min(S, 4) at a time. What a position needs once for each channel (step size, gate) is computed by
lane % G = position % G alone and handed to the other lanes by a shuffle; sums over n come back the same way. The state
is never written for each position: the forward pass keeps it every SEGMENT positions where a backward pass follows,
and that computes the rest again.

Long sequences are cut in chunks that run side by side. ``chunk_states`` computes what each chunk adds to the state,
and its time (the sum of its step sizes); with one exponential for the whole chunk, exp(time A), a program collects
the state it starts from. ``chunk_gradients`` does the same for the way back.

Symbols (arXiv:2312.00752, Algorithm 2):

    u, z, dt      input, gate, step size after bias and softplus
    A2            A log2(e), so that exp(dt A) = 2^(dt A2)
    BC            (Bt, L padded, 2, N padded) B and C in float32, one row of memory for a position
    x             dt u
    a             decay 2^(dt A2)
    h             state, h_t = a_t h_{t-1} + x_t B_t
    g             gradient of the loss by h_t, g_t = C_t dy_t + a_{t+1} g_{t+1}; ag is a_t g_t
    d...          gradient of the loss by what follows the d; dy before the gate
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _softplus(x):
    """log(1 + exp(x)) to float32's precision for every x, however small: log1p(e) = 2 artanh(e / (2 + e))."""
    e = tl.exp2(tl.abs(x) * -LOG2E)
    s = e / (2.0 + e)
    q = s * s
    # 2 artanh(s) / s as a polynomial in s^2, least squares at Chebyshev points of [0, 1/9]: error 4e-9.
    series = 0.27961419 + q * 0.28174657
    series = 0.40024854 + q * series
    series = 0.66666316 + q * series
    series = 2.0 + q * series
    return tl.maximum(x, 0.0) + s * series


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(x * -LOG2E))


@triton.jit
def _from_lane(v, j: tl.constexpr, G: tl.constexpr):
    """(32,) what the lane of position j holds, for every lane of the same G."""
    if G == 1:
        return v
    lane = tl.arange(0, 32)
    return tl.gather(v, (lane & (32 - G)) | j, 0)


@triton.jit
def _exchange(v, bit: tl.constexpr):
    """(32,) what the lane with the other value of this bit holds."""
    return tl.gather(v, tl.arange(0, 32) ^ bit, 0)


@triton.jit
def _fold(low, high, bit: tl.constexpr):
    """Add two values over pairs of lanes: lanes without the bit end with the sum of low, the others with high's."""
    without = (tl.arange(0, 32) & bit) == 0
    return tl.where(without, low, high) + _exchange(tl.where(without, high, low), bit)


@triton.jit
def _sum_over_states(v, c: tl.constexpr, CPT: tl.constexpr, G: tl.constexpr, S: tl.constexpr):
    """(32,) at lane % G = j the sum over a channel's S lanes of v[j CPT + c]."""
    if G == 4:
        total = _fold(_fold(v[c], v[CPT + c], 1), _fold(v[2 * CPT + c], v[3 * CPT + c], 1), 2)
    elif G == 2:
        total = _fold(v[c], v[CPT + c], 1)
    else:
        total = v[c]
    if S > 4:
        total += _exchange(total, 4)
    if S > 8:
        total += _exchange(total, 8)
    if S > 16:
        total += _exchange(total, 16)
    return total


@triton.jit
def _columns(tile):
    """The four columns of a (32, 4) tile."""
    even, odd = tl.split(tl.reshape(tile, [32, 2, 2]))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def _load(pointer, mask, MASKED: tl.constexpr):
    if MASKED:
        return tl.load(pointer, mask=mask, other=0.0)
    else:
        return tl.load(pointer)


@triton.jit
def _load_lanes(pointer, t, end, channel, D_SIZE, CPT: tl.constexpr, Q: tl.constexpr, MASKED: tl.constexpr):
    """CPT x (32,) one position of each of a lane's channels."""
    values = ()
    for c in tl.static_range(CPT):
        values = values + (_load(pointer + c * Q, (t < end) & (channel + c * Q < D_SIZE), MASKED),)
    return values


@triton.jit
def _load_channels(pointer, channel, D_SIZE, CPT: tl.constexpr, Q: tl.constexpr, PRESENT: tl.constexpr):
    """CPT x (32,) a parameter of each channel in float32, zeros where there is none."""
    values = ()
    for c in tl.static_range(CPT):
        if PRESENT:
            here = channel + c * Q
            values = values + (tl.load(pointer + here, mask=here < D_SIZE, other=0.0).to(tl.float32),)
        else:
            values = values + (tl.zeros([32], tl.float32),)
    return values


@triton.jit
def _tile_offsets(i: tl.constexpr, channel, D_SIZE, N_SIZE, M: tl.constexpr, S: tl.constexpr):
    """Offsets (32, 4) of tile i = c M + m in (D, N), and where it lies within."""
    here = channel + (i // M) * (32 // S)
    n = (((i % M) * S + tl.arange(0, 32) % S) * 4)[:, None] + tl.arange(0, 4)[None, :]
    return here[:, None].to(tl.int64) * N_SIZE + n, (here < D_SIZE)[:, None] & (n < N_SIZE)


@triton.jit
def _load_tiles(
    pointer, channel, D_SIZE, N_SIZE, CPT: tl.constexpr, M: tl.constexpr, S: tl.constexpr, PRESENT: tl.constexpr
):
    """CPT M x (32, 4) a program's part of a (D, N) matrix in float32, zeros where there is none."""
    tiles = ()
    for i in tl.static_range(CPT * M):
        if PRESENT:
            offsets, inside = _tile_offsets(i, channel, D_SIZE, N_SIZE, M, S)
            tiles = tiles + (tl.load(pointer + offsets, mask=inside, other=0.0),)
        else:
            tiles = tiles + (tl.zeros([32, 4], tl.float32),)
    return tiles


@triton.jit
def _store_tiles(
    pointer, tiles, channel, D_SIZE, N_SIZE, CPT: tl.constexpr, M: tl.constexpr, S: tl.constexpr
):
    for i in tl.static_range(CPT * M):
        offsets, inside = _tile_offsets(i, channel, D_SIZE, N_SIZE, M, S)
        tl.store(pointer + offsets, tiles[i], mask=inside)


@triton.jit
def _scaled(tiles, factor, K: tl.constexpr):
    scaled = ()
    for i in tl.static_range(K):
        scaled = scaled + (tiles[i] * factor,)
    return scaled


@triton.jit
def _decay(dt, A2, reset, RESETS: tl.constexpr):
    """a (32, 4) for one position; ``reset`` is 0, or minus infinity where another sequence begins."""
    if RESETS:
        return tl.exp2(dt[:, None] * A2 + reset[:, None])
    else:
        return tl.exp2(dt[:, None] * A2)


@triton.jit
def _steps(
    raw_delta, bias, raw_u, t, end, CPT: tl.constexpr, SOFTPLUS: tl.constexpr, MASKED: tl.constexpr
):
    """For each of a lane's channels: u, delta + bias, dt and x, (32,) each; past the end dt and x are zero."""
    u, delta, dt, x = (), (), (), ()
    for c in tl.static_range(CPT):
        u_c = raw_u[c].to(tl.float32)
        delta_c = raw_delta[c].to(tl.float32) + bias[c]
        dt_c = delta_c
        if SOFTPLUS:
            dt_c = _softplus(delta_c)
        if MASKED:
            dt_c = tl.where(t < end, dt_c, 0.0)
        u, delta, dt, x = u + (u_c,), delta + (delta_c,), dt + (dt_c,), x + (dt_c * u_c,)
    return u, delta, dt, x


@triton.jit
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
    rows = BC_ptr + (b * L_PADDED + t[:, None]) * (2 * N_PADDED) + n[None, :]
    written = (t < L_PADDED)[:, None] & (n >= 0)[None, :]
    tl.store(rows, B.to(tl.float32), mask=written)
    tl.store(rows + N_PADDED, C.to(tl.float32), mask=written)
    if HAS_SEQ:
        later = (t >= 1) & (t < L)
        here = tl.load(seq_ptr + b * seq_sb + t * seq_st, mask=later, other=0)
        before = tl.load(seq_ptr + b * seq_sb + (t - 1) * seq_st, mask=later, other=0)
        tl.store(reset_ptr + b * L_PADDED + t, tl.where(here == before, 0.0, float("-inf")), mask=t < L_PADDED)


@triton.jit
def _advance(h, A2, dt, x, reset, BC_row, CPT: tl.constexpr, M: tl.constexpr, S: tl.constexpr, G: tl.constexpr,
             RESETS: tl.constexpr):  # fmt: skip
    """h after G positions whose B stand at BC_row."""
    for j in tl.static_range(G):
        reset_j = _from_lane(reset, j, G)
        after = ()
        for c in tl.static_range(CPT):
            dt_j, x_j = _from_lane(dt[c], j, G), _from_lane(x[c], j, G)
            for m in tl.static_range(M):
                B = tl.load(BC_row + j * (8 * S * M) + m * 4 * S)
                after = after + (_decay(dt_j, A2[c * M + m], reset_j, RESETS) * h[c * M + m] + x_j[:, None] * B,)
        h = after
    return h


@triton.jit
def chunk_states_kernel(
    u_ptr, delta_ptr, A_ptr, BC_ptr, bias_ptr, reset_ptr, state_ptr, time_ptr, cut_ptr,
    L, L_PADDED, D_SIZE, N_SIZE, CHUNK, N_CHUNKS, u_sb, u_st, delta_sb, delta_st,
    HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, RESETS: tl.constexpr, MASKED: tl.constexpr,
    S: tl.constexpr, M: tl.constexpr, CPT: tl.constexpr,
):  # fmt: skip
    """The state (Bt, K, D, N) that each chunk reaches from zeros, and its time (Bt, K, D); K is N_CHUNKS.

    cut (Bt, K) is minus infinity where a sequence begins inside the chunk, else 0.
    """
    G: tl.constexpr = S if S < 4 else 4
    Q: tl.constexpr = 32 // S
    lane = tl.arange(0, 32)
    b = tl.program_id(2).to(tl.int64)
    k = tl.program_id(1)
    channel = tl.program_id(0) * (Q * CPT) + lane // S
    start = k * CHUNK
    end = tl.minimum(start + CHUNK, L)
    A2 = _scaled(_load_tiles(A_ptr, channel, D_SIZE, N_SIZE, CPT, M, S, True), LOG2E, CPT * M)
    bias = _load_channels(bias_ptr, channel, D_SIZE, CPT, Q, HAS_BIAS)
    h = _load_tiles(A_ptr, channel, D_SIZE, N_SIZE, CPT, M, S, False)
    time = _load_channels(bias_ptr, channel, D_SIZE, CPT, Q, False)
    reset = tl.zeros([32], tl.float32)
    cut = tl.zeros([32], tl.float32)

    t = start + lane % G
    u_p = u_ptr + b * u_sb + t.to(tl.int64) * u_st + channel
    delta_p = delta_ptr + b * delta_sb + t.to(tl.int64) * delta_st + channel
    row = BC_ptr + (b * L_PADDED + start) * (8 * S * M)
    tile = (lane % S * 4)[:, None] + tl.arange(0, 4)[None, :]
    next_u = _load_lanes(u_p, t, end, channel, D_SIZE, CPT, Q, MASKED)
    next_delta = _load_lanes(delta_p, t, end, channel, D_SIZE, CPT, Q, MASKED)
    for t0 in range(start, end, G):
        now_u, now_delta = next_u, next_delta
        ahead = tl.where(t0 + G < end, G, 0)
        u_p += ahead * u_st
        delta_p += ahead * delta_st
        t = t0 + lane % G
        next_u = _load_lanes(u_p, t + ahead, end, channel, D_SIZE, CPT, Q, MASKED)
        next_delta = _load_lanes(delta_p, t + ahead, end, channel, D_SIZE, CPT, Q, MASKED)
        if RESETS:
            reset = tl.load(reset_ptr + b * L_PADDED + t)
            cut += reset
        _, _, dt, x = _steps(now_delta, bias, now_u, t, end, CPT, SOFTPLUS, MASKED)
        later = ()
        for c in tl.static_range(CPT):
            later = later + (time[c] + dt[c],)
        time = later
        h = _advance(h, A2, dt, x, reset, row + tile, CPT, M, S, G, RESETS)
        row += G * (8 * S * M)

    place = b * N_CHUNKS + k
    _store_tiles(state_ptr + place * D_SIZE * N_SIZE, h, channel, D_SIZE, N_SIZE, CPT, M, S)
    for c in tl.static_range(CPT):
        total = time[c]
        if G > 1:
            total += _exchange(total, 1)
        if G > 2:
            total += _exchange(total, 2)
        here = channel + c * Q
        tl.store(time_ptr + place * D_SIZE + here, total, mask=(here < D_SIZE) & (lane % S == 0))
    if RESETS:
        tl.store(cut_ptr + place, tl.min(cut, axis=0))


@triton.jit
def _collect(tiles, A2, state_ptr, time_ptr, cut_ptr, first, count, step, D_SIZE, N_SIZE, channel,
             CPT: tl.constexpr, M: tl.constexpr, S: tl.constexpr, RESETS: tl.constexpr):  # fmt: skip
    """Carry tiles through ``count`` whole chunks, from chunk ``first`` on, ``step`` apart."""
    for i in range(count):
        place = first + i * step
        time = _load_channels(time_ptr + place * D_SIZE, channel, D_SIZE, CPT, 32 // S, True)
        added = _load_tiles(state_ptr + place * D_SIZE * N_SIZE, channel, D_SIZE, N_SIZE, CPT, M, S, True)
        cut = tl.zeros([32], tl.float32)
        if RESETS:
            cut += tl.load(cut_ptr + place)
        after = ()
        for i in tl.static_range(CPT * M):
            after = after + (_decay(time[i // M], A2[i], cut, RESETS) * tiles[i] + added[i],)
        tiles = after
    return tiles


@triton.jit
def forward_kernel(
    u_ptr, delta_ptr, z_ptr, A_ptr, BC_ptr, D_ptr, bias_ptr, initial_ptr, reset_ptr,
    chunk_state_ptr, chunk_time_ptr, chunk_cut_ptr, y_ptr, final_ptr, saved_ptr,
    L, L_PADDED, D_SIZE, N_SIZE, CHUNK, N_CHUNKS, N_SEGMENTS, u_sb, u_st, delta_sb, delta_st, z_sb, z_st,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_INITIAL: tl.constexpr,
    SOFTPLUS: tl.constexpr, RESETS: tl.constexpr, KEEP: tl.constexpr, SEGMENT: tl.constexpr, MASKED: tl.constexpr,
    S: tl.constexpr, M: tl.constexpr, CPT: tl.constexpr,
):  # fmt: skip
    """y (Bt, L, D), the final state (Bt, D, N) and, if KEEP, the states saved (Bt, N_SEGMENTS, D, N)."""
    G: tl.constexpr = S if S < 4 else 4
    Q: tl.constexpr = 32 // S
    lane = tl.arange(0, 32)
    b = tl.program_id(2).to(tl.int64)
    k = tl.program_id(1)
    channel = tl.program_id(0) * (Q * CPT) + lane // S
    start = k * CHUNK
    end = tl.minimum(start + CHUNK, L)
    A2 = _scaled(_load_tiles(A_ptr, channel, D_SIZE, N_SIZE, CPT, M, S, True), LOG2E, CPT * M)
    bias = _load_channels(bias_ptr, channel, D_SIZE, CPT, Q, HAS_BIAS)
    skip = _load_channels(D_ptr, channel, D_SIZE, CPT, Q, HAS_D)
    h = _load_tiles(initial_ptr + b * D_SIZE * N_SIZE, channel, D_SIZE, N_SIZE, CPT, M, S, HAS_INITIAL)
    h = _collect(h, A2, chunk_state_ptr, chunk_time_ptr, chunk_cut_ptr, b * N_CHUNKS, k, 1, D_SIZE, N_SIZE, channel,
                 CPT, M, S, RESETS)  # fmt: skip
    reset = tl.zeros([32], tl.float32)

    t = start + lane % G
    u_p = u_ptr + b * u_sb + t.to(tl.int64) * u_st + channel
    delta_p = delta_ptr + b * delta_sb + t.to(tl.int64) * delta_st + channel
    z_p = z_ptr + b * z_sb + t.to(tl.int64) * z_st + channel
    y_p = y_ptr + (b * L + t) * D_SIZE + channel
    row = BC_ptr + (b * L_PADDED + start) * (8 * S * M)
    tile = (lane % S * 4)[:, None] + tl.arange(0, 4)[None, :]
    next_u = _load_lanes(u_p, t, end, channel, D_SIZE, CPT, Q, MASKED)
    next_delta = _load_lanes(delta_p, t, end, channel, D_SIZE, CPT, Q, MASKED)
    next_z = next_u
    if HAS_Z:
        next_z = _load_lanes(z_p, t, end, channel, D_SIZE, CPT, Q, MASKED)
    for t0 in range(start, end, G):
        if KEEP:
            if t0 % SEGMENT == 0:
                place = b * N_SEGMENTS + t0 // SEGMENT
                _store_tiles(saved_ptr + place * D_SIZE * N_SIZE, h, channel, D_SIZE, N_SIZE, CPT, M, S)
        now_u, now_delta, now_z = next_u, next_delta, next_z
        ahead = tl.where(t0 + G < end, G, 0)
        u_p += ahead * u_st
        delta_p += ahead * delta_st
        t = t0 + lane % G
        next_u = _load_lanes(u_p, t + ahead, end, channel, D_SIZE, CPT, Q, MASKED)
        next_delta = _load_lanes(delta_p, t + ahead, end, channel, D_SIZE, CPT, Q, MASKED)
        if HAS_Z:
            z_p += ahead * z_st
            next_z = _load_lanes(z_p, t + ahead, end, channel, D_SIZE, CPT, Q, MASKED)
        if RESETS:
            reset = tl.load(reset_ptr + b * L_PADDED + t)
        u, _, dt, x = _steps(now_delta, bias, now_u, t, end, CPT, SOFTPLUS, MASKED)

        parts = ()
        for j in tl.static_range(G):
            reset_j = _from_lane(reset, j, G)
            after = ()
            for c in tl.static_range(CPT):
                dt_j, x_j = _from_lane(dt[c], j, G), _from_lane(x[c], j, G)
                part = tl.zeros([32, 4], tl.float32)
                for m in tl.static_range(M):
                    B = tl.load(row + tile + (j * (8 * S * M) + m * 4 * S))
                    C = tl.load(row + tile + (j * (8 * S * M) + (M + m) * 4 * S))
                    h_j = _decay(dt_j, A2[c * M + m], reset_j, RESETS) * h[c * M + m] + x_j[:, None] * B
                    part = h_j * C if m == 0 else part + h_j * C
                    after = after + (h_j,)
                parts = parts + (tl.sum(part, axis=1),)
            h = after
        for c in tl.static_range(CPT):
            y = _sum_over_states(parts, c, CPT, G, S) + skip[c] * u[c]
            if HAS_Z:
                z = now_z[c].to(tl.float32)
                y = y * z * _sigmoid(z)
            inside = (t < end) & (channel + c * Q < D_SIZE) & (lane % S < G)
            if MASKED or S > G:
                tl.store(y_p + c * Q, y.to(y_ptr.dtype.element_ty), mask=inside)
            else:
                tl.store(y_p + c * Q, y.to(y_ptr.dtype.element_ty))
        y_p += G * D_SIZE
        row += G * (8 * S * M)

    if k == N_CHUNKS - 1:
        _store_tiles(final_ptr + b * D_SIZE * N_SIZE, h, channel, D_SIZE, N_SIZE, CPT, M, S)


@triton.jit
def _gated(raw_dout, raw_z, t, end, CPT: tl.constexpr, HAS_Z: tl.constexpr, MASKED: tl.constexpr):
    """dy before the gate for each of a lane's channels, and the gate's z and sigmoid(z), (32,) each."""
    dy, z, sigmoid = (), (), ()
    for c in tl.static_range(CPT):
        dy_c = raw_dout[c].to(tl.float32)
        z_c, sigmoid_c = dy_c, dy_c
        if HAS_Z:
            z_c = raw_z[c].to(tl.float32)
            sigmoid_c = _sigmoid(z_c)
            dy_c = dy_c * z_c * sigmoid_c
        dy, z, sigmoid = dy + (dy_c,), z + (z_c,), sigmoid + (sigmoid_c,)
    return dy, z, sigmoid


@triton.jit
def chunk_gradients_kernel(
    u_ptr, delta_ptr, z_ptr, dout_ptr, A_ptr, BC_ptr, bias_ptr, reset_ptr, state_ptr, time_ptr, cut_ptr,
    L, L_PADDED, D_SIZE, N_SIZE, CHUNK, N_CHUNKS, delta_sb, delta_st, z_sb, z_st, dout_sb, dout_st,
    HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, RESETS: tl.constexpr, MASKED: tl.constexpr,
    S: tl.constexpr, M: tl.constexpr, CPT: tl.constexpr,
):  # fmt: skip
    """As ``chunk_states_kernel``, the other way: a g (Bt, K, D, N) that each chunk hands to the state before it."""
    G: tl.constexpr = S if S < 4 else 4
    Q: tl.constexpr = 32 // S
    lane = tl.arange(0, 32)
    b = tl.program_id(2).to(tl.int64)
    k = tl.program_id(1)
    channel = tl.program_id(0) * (Q * CPT) + lane // S
    start = k * CHUNK
    end = tl.minimum(start + CHUNK, L)
    A2 = _scaled(_load_tiles(A_ptr, channel, D_SIZE, N_SIZE, CPT, M, S, True), LOG2E, CPT * M)
    bias = _load_channels(bias_ptr, channel, D_SIZE, CPT, Q, HAS_BIAS)
    ag = _load_tiles(A_ptr, channel, D_SIZE, N_SIZE, CPT, M, S, False)
    time = _load_channels(bias_ptr, channel, D_SIZE, CPT, Q, False)
    reset = tl.zeros([32], tl.float32)
    cut = tl.zeros([32], tl.float32)

    last = start + (end - start - 1) // G * G
    t = last + lane % G
    delta_p = delta_ptr + b * delta_sb + t.to(tl.int64) * delta_st + channel
    z_p = z_ptr + b * z_sb + t.to(tl.int64) * z_st + channel
    dout_p = dout_ptr + b * dout_sb + t.to(tl.int64) * dout_st + channel
    row = BC_ptr + (b * L_PADDED + last) * (8 * S * M)
    tile = (lane % S * 4)[:, None] + tl.arange(0, 4)[None, :]
    next_delta = _load_lanes(delta_p, t, end, channel, D_SIZE, CPT, Q, MASKED)
    next_dout = _load_lanes(dout_p, t, end, channel, D_SIZE, CPT, Q, MASKED)
    next_z = next_dout
    if HAS_Z:
        next_z = _load_lanes(z_p, t, end, channel, D_SIZE, CPT, Q, MASKED)
    for back in range(0, end - start, G):
        t0 = last - back
        now_delta, now_dout, now_z = next_delta, next_dout, next_z
        ahead = tl.where(t0 > start, G, 0)
        delta_p -= ahead * delta_st
        dout_p -= ahead * dout_st
        t = t0 + lane % G
        next_delta = _load_lanes(delta_p, t - ahead, end, channel, D_SIZE, CPT, Q, MASKED)
        next_dout = _load_lanes(dout_p, t - ahead, end, channel, D_SIZE, CPT, Q, MASKED)
        if HAS_Z:
            z_p -= ahead * z_st
            next_z = _load_lanes(z_p, t - ahead, end, channel, D_SIZE, CPT, Q, MASKED)
        if RESETS:
            reset = tl.load(reset_ptr + b * L_PADDED + t)
            cut += reset
        _, _, dt, _ = _steps(now_delta, bias, now_delta, t, end, CPT, SOFTPLUS, MASKED)
        dy, _, _ = _gated(now_dout, now_z, t, end, CPT, HAS_Z, MASKED)
        later = ()
        for c in tl.static_range(CPT):
            later = later + (time[c] + dt[c],)
        time = later
        for j in tl.static_range(G - 1, -1, -1):
            reset_j = _from_lane(reset, j, G)
            after = ()
            for c in tl.static_range(CPT):
                dt_j, dy_j = _from_lane(dt[c], j, G), _from_lane(dy[c], j, G)
                for m in tl.static_range(M):
                    C = tl.load(row + tile + (j * (8 * S * M) + (M + m) * 4 * S))
                    g = ag[c * M + m] + dy_j[:, None] * C
                    after = after + (_decay(dt_j, A2[c * M + m], reset_j, RESETS) * g,)
            ag = after
        row -= G * (8 * S * M)

    place = b * N_CHUNKS + k
    _store_tiles(state_ptr + place * D_SIZE * N_SIZE, ag, channel, D_SIZE, N_SIZE, CPT, M, S)
    for c in tl.static_range(CPT):
        total = time[c]
        if G > 1:
            total += _exchange(total, 1)
        if G > 2:
            total += _exchange(total, 2)
        here = channel + c * Q
        tl.store(time_ptr + place * D_SIZE + here, total, mask=(here < D_SIZE) & (lane % S == 0))
    if RESETS:
        tl.store(cut_ptr + place, tl.min(cut, axis=0))


@triton.jit
def _fold_list(values, K: tl.constexpr, bit: tl.constexpr):
    """Halve a list of K values over pairs of lanes; a single value is added up in both lanes."""
    folded = ()
    if K == 1:
        folded = folded + (values[0] + _exchange(values[0], bit),)
    else:
        for i in tl.static_range(K // 2):
            folded = folded + (_fold(values[i], values[i + K // 2], bit),)
    return folded


@triton.jit
def _folded_place(M: tl.constexpr, S: tl.constexpr):
    """Where in a row of BC the first value stands that a lane ends with after ``_add_over_channels``' folding.

    Folding halves the list of 8 M values over each bit of the lane that tells channels apart, so the bits spell the
    index of what is left. Returns that index and whether the lane is the one that keeps it.
    """
    lane = tl.arange(0, 32)
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
def _add_over_channels(
    tiles_B, tiles_C, row, index, keep, M: tl.constexpr, S: tl.constexpr, DETERMINISTIC: tl.constexpr
):
    """Add M tiles each of dB and dC up over the channels of the program, then to one row (2, N padded) of memory."""
    values = ()
    for m in tl.static_range(M):
        values = values + _columns(tiles_B[m])
    for m in tl.static_range(M):
        values = values + _columns(tiles_C[m])
    for level in tl.static_range(5):
        if (S << level) < 32:
            values = _fold_list(values, ((8 * M) >> level) if ((8 * M) >> level) > 1 else 1, S << level)
    for i in tl.static_range((8 * M * S // 32) if 8 * M * S > 32 else 1):
        which = index + i  # (kind M + m) 4 + column, kind 0 for B and 1 for C
        place = row + (which // 4 * S + tl.arange(0, 32) % S) * 4 + which % 4
        if DETERMINISTIC:
            tl.store(place, values[i], mask=keep)
        else:
            tl.atomic_add(place, values[i], mask=keep, sem="relaxed")


@triton.jit
def _zeros(K: tl.constexpr, WIDTH: tl.constexpr):
    """K tiles (32, 4) of zeros, or K x (32,) where WIDTH is 1."""
    zeros = ()
    for _ in tl.static_range(K):
        if WIDTH == 1:
            zeros = zeros + (tl.zeros([32], tl.float32),)
        else:
            zeros = zeros + (tl.zeros([32, WIDTH], tl.float32),)
    return zeros


@triton.jit
def _walk_forward(h, A2, dt, x, reset, BC_row, CPT: tl.constexpr, M: tl.constexpr, S: tl.constexpr, G: tl.constexpr,
                  RESETS: tl.constexpr, READ: tl.constexpr):  # fmt: skip
    """G positions from h on: the states before and after each (G + 1), the decays (G), and if READ, parts of y."""
    states, decays, parts = h, (), ()
    for j in tl.static_range(G):
        reset_j = _from_lane(reset, j, G)
        for c in tl.static_range(CPT):
            dt_j, x_j = _from_lane(dt[c], j, G), _from_lane(x[c], j, G)
            part = tl.zeros([32, 4], tl.float32)
            for m in tl.static_range(M):
                B = tl.load(BC_row + (j * (8 * S * M) + m * 4 * S))
                a = _decay(dt_j, A2[c * M + m], reset_j, RESETS)
                h_j = a * states[(j * CPT + c) * M + m] + x_j[:, None] * B
                states, decays = states + (h_j,), decays + (a,)
                if READ:
                    C = tl.load(BC_row + (j * (8 * S * M) + (M + m) * 4 * S))
                    part = h_j * C if m == 0 else part + h_j * C
            if READ:
                parts = parts + (tl.sum(part, axis=1),)
    return states, decays, parts


@triton.jit
def _walk_back(ag, dA, A2, dt, x, dy, states, decays, BC_row, dBC_row, index, keep,
               CPT: tl.constexpr, M: tl.constexpr, S: tl.constexpr, G: tl.constexpr,
               DETERMINISTIC: tl.constexpr):  # fmt: skip
    """G positions back: a g before them, dA so far, and parts of dx and of the gradient by dt over ln 2."""
    dx_parts, dt_parts = (), ()
    for j in tl.static_range(G - 1, -1, -1):
        new_ag, new_dA, dx_j, ddt_j = (), (), (), ()
        dB, dC = _zeros(M, 4), _zeros(M, 4)
        for c in tl.static_range(CPT):
            dt_j, x_j, dy_j = _from_lane(dt[c], j, G), _from_lane(x[c], j, G), _from_lane(dy[c], j, G)
            dx_part, dt_part = tl.zeros([32, 4], tl.float32), tl.zeros([32, 4], tl.float32)
            more_B, more_C = (), ()
            for m in tl.static_range(M):
                B = tl.load(BC_row + (j * (8 * S * M) + m * 4 * S))
                C = tl.load(BC_row + (j * (8 * S * M) + (M + m) * 4 * S))
                g = ag[c * M + m] + dy_j[:, None] * C
                more_B = more_B + (dB[m] + g * x_j[:, None] if c > 0 else g * x_j[:, None],)
                h_j = states[((j + 1) * CPT + c) * M + m]
                more_C = more_C + (dC[m] + h_j * dy_j[:, None] if c > 0 else h_j * dy_j[:, None],)
                ag_j = decays[(j * CPT + c) * M + m] * g
                d_exponent = ag_j * states[(j * CPT + c) * M + m]
                dx_part = g * B if m == 0 else dx_part + g * B
                dt_part = d_exponent * A2[c * M + m] if m == 0 else dt_part + d_exponent * A2[c * M + m]
                new_ag = new_ag + (ag_j,)
                new_dA = new_dA + (dA[c * M + m] + d_exponent * dt_j[:, None],)
            dB, dC = more_B, more_C
            dx_j, ddt_j = dx_j + (tl.sum(dx_part, axis=1),), ddt_j + (tl.sum(dt_part, axis=1),)
        ag, dA = new_ag, new_dA
        dx_parts, dt_parts = dx_j + dx_parts, ddt_j + dt_parts
        _add_over_channels(dB, dC, dBC_row + j * (8 * S * M), index, keep, M, S, DETERMINISTIC)
    return ag, dA, dx_parts, dt_parts


@triton.jit
def _scratch_tiles(pointer, CPT_M: tl.constexpr):
    offsets = tl.arange(0, 32)[:, None] * 4 + tl.arange(0, 4)[None, :]
    tiles = ()
    for i in tl.static_range(CPT_M):
        tiles = tiles + (tl.load(pointer + i * 128 + offsets),)
    return tiles


@triton.jit
def _refill(
    saved_ptr, scratch, u_p, u_st, delta_p, delta_st, row, reset_p, base, stop, A2, bias, channel, D_SIZE, N_SIZE,
    CPT: tl.constexpr, M: tl.constexpr, S: tl.constexpr, G: tl.constexpr, SOFTPLUS: tl.constexpr,
    RESETS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Walk a segment from its saved state and write the state before every G positions to scratch."""
    Q: tl.constexpr = 32 // S
    lane = tl.arange(0, 32)
    offsets = lane[:, None] * 4 + tl.arange(0, 4)[None, :]
    h = _load_tiles(saved_ptr, channel, D_SIZE, N_SIZE, CPT, M, S, True)
    reset = tl.zeros([32], tl.float32)
    t = base + lane % G
    next_u = _load_lanes(u_p, t, stop, channel, D_SIZE, CPT, Q, MASKED)
    next_delta = _load_lanes(delta_p, t, stop, channel, D_SIZE, CPT, Q, MASKED)
    for t0 in range(base, stop - G, G):
        for i in tl.static_range(CPT * M):
            tl.store(scratch + i * 128 + offsets, h[i])
        scratch += CPT * M * 128
        now_u, now_delta = next_u, next_delta
        u_p += G * u_st
        delta_p += G * delta_st
        t = t0 + lane % G
        next_u = _load_lanes(u_p, t + G, stop, channel, D_SIZE, CPT, Q, MASKED)
        next_delta = _load_lanes(delta_p, t + G, stop, channel, D_SIZE, CPT, Q, MASKED)
        if RESETS:
            reset = tl.load(reset_p + t)
        _, _, dt, x = _steps(now_delta, bias, now_u, t, stop, CPT, SOFTPLUS, MASKED)
        h = _advance(h, A2, dt, x, reset, row, CPT, M, S, G, RESETS)
        row += G * (8 * S * M)
    for i in tl.static_range(CPT * M):
        tl.store(scratch + i * 128 + offsets, h[i])


@triton.jit
def backward_kernel(
    u_ptr, delta_ptr, z_ptr, dout_ptr, A_ptr, BC_ptr, D_ptr, bias_ptr, reset_ptr, saved_ptr, final_ptr,
    chunk_state_ptr, chunk_time_ptr, chunk_cut_ptr, scratch_ptr,
    du_ptr, ddelta_ptr, dz_ptr, dBC_ptr, dA_ptr, dD_ptr, dbias_ptr, initial_ptr,
    L, L_PADDED, D_SIZE, N_SIZE, CHUNK, N_CHUNKS, N_SEGMENTS, N_TILES, TILES, BATCH, u_sb, u_st, delta_sb, delta_st,
    z_sb, z_st, dout_sb, dout_st,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_FINAL: tl.constexpr,
    SOFTPLUS: tl.constexpr, RESETS: tl.constexpr, SEGMENT: tl.constexpr, MASKED: tl.constexpr,
    DETERMINISTIC: tl.constexpr, S: tl.constexpr, M: tl.constexpr, CPT: tl.constexpr,
):  # fmt: skip
    """Every gradient. A program takes one tile after another: some channels of one chunk of one sequence.

    Gradients by A, D and the bias are written for each sequence and chunk, to be added up; dBC (Bt, L padded, 2, N
    padded) is added to in memory, or with DETERMINISTIC written for each tile of channels, to be added up.
    """
    G: tl.constexpr = S if S < 4 else 4
    Q: tl.constexpr = 32 // S
    lane = tl.arange(0, 32)
    tile = (lane % S * 4)[:, None] + tl.arange(0, 4)[None, :]
    index, keep = _folded_place(M, S)
    scratch_tile = lane[:, None] * 4 + tl.arange(0, 4)[None, :]
    scratch = scratch_ptr + tl.program_id(0).to(tl.int64) * ((SEGMENT // G) * CPT * M * 128)
    for work in range(tl.program_id(0), TILES, tl.num_programs(0)):
        k = (work // N_TILES) % N_CHUNKS
        b = (work // N_TILES // N_CHUNKS).to(tl.int64)
        channel = (work % N_TILES) * (Q * CPT) + lane // S
        start = k * CHUNK
        end = tl.minimum(start + CHUNK, L)
        A2 = _scaled(_load_tiles(A_ptr, channel, D_SIZE, N_SIZE, CPT, M, S, True), LOG2E, CPT * M)
        bias = _load_channels(bias_ptr, channel, D_SIZE, CPT, Q, HAS_BIAS)
        skip = _load_channels(D_ptr, channel, D_SIZE, CPT, Q, HAS_D)
        ag = _load_tiles(final_ptr + b * D_SIZE * N_SIZE, channel, D_SIZE, N_SIZE, CPT, M, S, HAS_FINAL)
        ag = _collect(ag, A2, chunk_state_ptr, chunk_time_ptr, chunk_cut_ptr, (b + 1) * N_CHUNKS - 1,
                      N_CHUNKS - 1 - k, -1, D_SIZE, N_SIZE, channel, CPT, M, S, RESETS)  # fmt: skip
        dA, dD, dbias = _zeros(CPT * M, 4), _zeros(CPT, 1), _zeros(CPT, 1)
        reset = tl.zeros([32], tl.float32)
        dBC = dBC_ptr + b * L_PADDED * (8 * S * M)
        if DETERMINISTIC:
            dBC += (work % N_TILES) * BATCH.to(tl.int64) * L_PADDED * (8 * S * M)
        segments = (end - start + SEGMENT - 1) // SEGMENT
        for done in range(segments):
            base = start + (segments - 1 - done) * SEGMENT
            stop = tl.minimum(base + SEGMENT, end)
            first = base + (lane % G).to(tl.int64)
            place = b * N_SEGMENTS + base // SEGMENT
            _refill(saved_ptr + place * D_SIZE * N_SIZE, scratch, u_ptr + b * u_sb + first * u_st + channel, u_st,
                    delta_ptr + b * delta_sb + first * delta_st + channel, delta_st,
                    BC_ptr + (b * L_PADDED + base) * (8 * S * M) + tile, reset_ptr + b * L_PADDED, base, stop, A2,
                    bias, channel, D_SIZE, N_SIZE, CPT, M, S, G, SOFTPLUS, RESETS, MASKED)  # fmt: skip
            tl.debug_barrier()

            last = base + (stop - base - 1) // G * G
            t = last + lane % G
            first = t.to(tl.int64)
            u_p = u_ptr + b * u_sb + first * u_st + channel
            delta_p = delta_ptr + b * delta_sb + first * delta_st + channel
            z_p = z_ptr + b * z_sb + first * z_st + channel
            dout_p = dout_ptr + b * dout_sb + first * dout_st + channel
            out = (b * L + first) * D_SIZE + channel
            row = (b * L_PADDED + last) * (8 * S * M)
            kept = scratch + (last - base) // G * (CPT * M * 128)
            next_u = _load_lanes(u_p, t, end, channel, D_SIZE, CPT, Q, MASKED)
            next_delta = _load_lanes(delta_p, t, end, channel, D_SIZE, CPT, Q, MASKED)
            next_dout = _load_lanes(dout_p, t, end, channel, D_SIZE, CPT, Q, MASKED)
            next_z = next_dout
            if HAS_Z:
                next_z = _load_lanes(z_p, t, end, channel, D_SIZE, CPT, Q, MASKED)
            next_h = _scratch_tiles(kept, CPT * M)
            for back in range(0, stop - base, G):
                t0 = last - back
                t = t0 + lane % G
                now_u, now_delta, now_dout, now_z, h = next_u, next_delta, next_dout, next_z, next_h
                ahead = tl.where(t0 > base, G, 0)
                u_p -= ahead * u_st
                delta_p -= ahead * delta_st
                dout_p -= ahead * dout_st
                next_u = _load_lanes(u_p, t - ahead, end, channel, D_SIZE, CPT, Q, MASKED)
                next_delta = _load_lanes(delta_p, t - ahead, end, channel, D_SIZE, CPT, Q, MASKED)
                next_dout = _load_lanes(dout_p, t - ahead, end, channel, D_SIZE, CPT, Q, MASKED)
                if HAS_Z:
                    z_p -= ahead * z_st
                    next_z = _load_lanes(z_p, t - ahead, end, channel, D_SIZE, CPT, Q, MASKED)
                kept -= (ahead // G) * (CPT * M * 128)
                next_h = _scratch_tiles(kept, CPT * M)
                if RESETS:
                    reset = tl.load(reset_ptr + b * L_PADDED + t)
                u, delta, dt, x = _steps(now_delta, bias, now_u, t, end, CPT, SOFTPLUS, MASKED)
                dy, z, sigmoid = _gated(now_dout, now_z, t, end, CPT, HAS_Z, MASKED)
                states, decays, y_parts = _walk_forward(h, A2, dt, x, reset, BC_ptr + row + tile, CPT, M, S, G,
                                                        RESETS, HAS_Z)  # fmt: skip
                ag, dA, dx_parts, dt_parts = _walk_back(ag, dA, A2, dt, x, dy, states, decays, BC_ptr + row + tile,
                                                        dBC + (t0 * (8 * S * M)), index, keep, CPT, M, S, G,
                                                        DETERMINISTIC)  # fmt: skip
                new_dD, new_dbias = (), ()
                for c in tl.static_range(CPT):
                    inside = (t < end) & (channel + c * Q < D_SIZE)
                    dx = _sum_over_states(dx_parts, c, CPT, G, S)
                    d_delta = dx * u[c] + _sum_over_states(dt_parts, c, CPT, G, S) * LN2
                    if SOFTPLUS:
                        d_delta = d_delta * _sigmoid(delta[c])
                    if MASKED:
                        d_delta = tl.where(inside, d_delta, 0.0)
                    new_dD, new_dbias = new_dD + (dD[c] + dy[c] * u[c],), new_dbias + (dbias[c] + d_delta,)
                    inside = inside & (lane % S < G)
                    tl.store(du_ptr + out + c * Q, (dx * dt[c] + dy[c] * skip[c]).to(du_ptr.dtype.element_ty), mask=inside)
                    tl.store(ddelta_ptr + out + c * Q, d_delta.to(ddelta_ptr.dtype.element_ty), mask=inside)
                    if HAS_Z:
                        y = _sum_over_states(y_parts, c, CPT, G, S) + skip[c] * u[c]
                        dz = now_dout[c].to(tl.float32) * y * sigmoid[c] * (1.0 + z[c] * (1.0 - sigmoid[c]))
                        tl.store(dz_ptr + out + c * Q, dz.to(dz_ptr.dtype.element_ty), mask=inside)
                dD, dbias = new_dD, new_dbias
                out -= G * D_SIZE
                row -= G * (8 * S * M)
            tl.debug_barrier()

        place = b * N_CHUNKS + k
        _store_tiles(dA_ptr + place * D_SIZE * N_SIZE, dA, channel, D_SIZE, N_SIZE, CPT, M, S)
        for c in tl.static_range(CPT):
            here = channel + c * Q
            writes = (here < D_SIZE) & (lane % S == 0)
            total_D, total_bias = dD[c], dbias[c]
            if G > 1:
                total_D, total_bias = total_D + _exchange(total_D, 1), total_bias + _exchange(total_bias, 1)
            if G > 2:
                total_D, total_bias = total_D + _exchange(total_D, 2), total_bias + _exchange(total_bias, 2)
            tl.store(dD_ptr + place * D_SIZE + here, total_D, mask=writes)
            tl.store(dbias_ptr + place * D_SIZE + here, total_bias, mask=writes)
        if k == 0:
            _store_tiles(initial_ptr + b * D_SIZE * N_SIZE, ag, channel, D_SIZE, N_SIZE, CPT, M, S)
