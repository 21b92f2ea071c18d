"""The device code of the ``triton`` backend; ``triton.py`` launches it.

A program is four warps that share nothing but what they read, and no lane waits for a barrier: there is no shared
memory. S lanes of a warp work on the states of one group of CPT neighbouring channels, and keep them in registers as
tiles of 4 neighbouring n, M of them for each channel. For c = 0 .. CPT - 1 and m = 0 .. M - 1 a lane holds

    channel   first channel of the program + lane // S CPT + c
    n         (m S + lane % S) 4 + 0 .. 3

so every tensor below is (LANES,), one number a lane, or (LANES, 4), one tile a lane.

Positions go G = min(S, 4) at a time. What a position needs once for each channel (step size, gate) is computed by
lane % G = position % G alone and handed to the other lanes by a shuffle; sums over n come back the same way. States
are never written for each position: the forward pass keeps one every SEGMENT positions where a backward pass follows,
and that computes the others again, twice: from the segment's start to the state before every G positions, which it
writes to scratch memory of its own, and from there, when it comes back to them.

Long sequences are cut in chunks that run side by side. ``chunk_states_kernel`` computes what each chunk adds to the
state, and its time (the sum of its step sizes); with one exponential for a whole chunk, exp(time A), a program
collects the state it starts from. ``chunk_gradients_kernel`` does the same for the way back.

The next positions are loaded while the current ones are computed. The compiler would put these loads off until their
values are wanted, so the arithmetic stands in a branch that is always taken (ONCE is 1), which it does not know; and
since a warp that waits for one load waits for all it has begun, each value is waited for before the next is asked for.

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

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
LANES = tl.constexpr(128)  # of a program

# Triton compiles a kernel again where an integer becomes 1 or a multiple of 16. None of these gains by it; strides and
# widths do, since loads of neighbouring channels become one.
SIZES = [
    "L", "L_PADDED", "CHUNK", "N_CHUNKS", "N_SEGMENTS", "N_TILES", "TILES", "BATCH",
    "B_sb", "B_st", "B_sn", "C_sb", "C_st", "C_sn", "seq_sb", "seq_st",
]  # fmt: skip


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
def _shuffle(v, source):
    """(LANES,) what another lane of the same warp holds; ``source`` (LANES,) is its number in the program."""
    warps: tl.constexpr = LANES // 32
    within = tl.reshape(source % 32, [warps, 32])
    return tl.reshape(tl.gather(tl.reshape(v, [warps, 32]), within, 1), [LANES])


@triton.jit
def _from_lane(v, j: tl.constexpr, G: tl.constexpr):
    """(LANES,) what the lane of position j holds, for every lane of the same G."""
    if G == 1:
        return v
    else:
        return _shuffle(v, (tl.arange(0, LANES) & (LANES - G)) | j)


@triton.jit
def _exchange(v, bit: tl.constexpr):
    """(LANES,) what the lane with the other value of this bit holds."""
    return _shuffle(v, tl.arange(0, LANES) ^ bit)


@triton.jit
def _fold(low, high, bit: tl.constexpr):
    """Add two values over pairs of lanes: lanes without the bit end with the sum of low, the others with high's."""
    without = (tl.arange(0, LANES) & bit) == 0
    return tl.where(without, low, high) + _exchange(tl.where(without, high, low), bit)


@triton.jit
def _sum_over_states(v, c: tl.constexpr, CPT: tl.constexpr, G: tl.constexpr, S: tl.constexpr):
    """(LANES,) at lane % G = j the sum over a channel's S lanes of v[j CPT + c]."""
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
    """The four columns of a (LANES, 4) tile."""
    even, odd = tl.split(tl.reshape(tile, [LANES, 2, 2]))
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
def _load_lanes(pointer, t, end, channel, D_SIZE, CPT: tl.constexpr, MASKED: tl.constexpr):
    """CPT x (LANES,) one position of each of a lane's channels."""
    if CPT == 1:
        return (_load(pointer, (t < end) & (channel < D_SIZE), MASKED),)
    else:
        c = tl.arange(0, CPT)[None, :]
        tile = _load(pointer[:, None] + c, (t < end)[:, None] & (channel[:, None] + c < D_SIZE), MASKED)
        if CPT == 2:
            return tl.split(tile)
        else:
            return _columns(tile)


@triton.jit
def _store_lanes(pointer, values, mask, channel, D_SIZE, CPT: tl.constexpr, MASKED: tl.constexpr):
    """The way back of ``_load_lanes``; the mask also says which lanes hold the values."""
    dtype: tl.constexpr = pointer.dtype.element_ty
    if CPT == 1:
        if MASKED:
            tl.store(pointer, values[0].to(dtype), mask=mask & (channel < D_SIZE))
        else:
            tl.store(pointer, values[0].to(dtype))
    else:
        if CPT == 2:
            tile = tl.join(values[0], values[1])
        else:
            tile = tl.join(tl.join(values[0], values[2]), tl.join(values[1], values[3]))
            tile = tl.reshape(tile, [LANES, 4])
        c = tl.arange(0, CPT)[None, :]
        if MASKED:
            tl.store(pointer[:, None] + c, tile.to(dtype), mask=mask[:, None] & (channel[:, None] + c < D_SIZE))
        else:
            tl.store(pointer[:, None] + c, tile.to(dtype))


@triton.constexpr_function
def _ceil(a, b):
    return -(-a // b)


@triton.constexpr_function
def _input_bytes(K, S, CPT, ITEM):
    """Of one group of positions of K tensors in a slot of a warp's ring, rounded up to whole copies by all lanes."""
    row = 32 // S * CPT * ITEM
    part = min(row, 16)
    return _ceil(K * min(S, 4) * (row // part), 32) * 32 * part


@triton.constexpr_function
def _row_bytes(S, M):
    """Of the rows of BC of one group of positions in a slot, rounded up likewise."""
    return _ceil(min(S, 4) * 2 * S * M, 32) * 512


@triton.constexpr_function
def _slot_bytes(K, STATES, S, M, CPT, ITEM):
    return _input_bytes(K, S, CPT, ITEM) + _row_bytes(S, M) + 512 * STATES


@triton.constexpr_function
def _asm_of_ring(size):
    return "{ .shared .align 16 .b8 ring[" + str(size) + "]; mov.u32 $0, ring; }"


@triton.constexpr_function
def _asm_of_copy(size, cache):
    return "cp.async." + cache + ".shared.global [$1], [$2], " + str(size) + ", $3; mov.u32 $0, 0;"


@triton.constexpr_function
def _asm_of_read(words, kind, again):
    """``again``: not to be merged with an earlier read of the same place."""
    many = {1: "", 2: ".v2", 4: ".v4"}[words]
    registers = ", ".join("$" + str(i) for i in range(words))
    load = "ld" + (".volatile" if again else "") + ".shared" + many + "." + kind
    return load + (" {" + registers + "}" if words > 1 else " $0") + ", [$" + str(words) + "];"


@triton.jit
def _ring(BYTES: tl.constexpr):
    """(LANES,) the address of BYTES of shared memory that this warp has for itself. To be called once in a kernel."""
    lane = tl.arange(0, LANES)
    whole = tl.inline_asm_elementwise(
        _asm_of_ring(BYTES * (LANES // 32)), "=r,r", [lane], tl.int32, is_pure=False, pack=1
    )
    return whole + lane // 32 * BYTES


@triton.jit
def _copy(to, address, size, BYTES: tl.constexpr, CACHE: tl.constexpr):
    """Begin to copy BYTES from memory at ``address`` to shared memory; ``size`` 0 writes zeros instead."""
    tl.inline_asm_elementwise(
        _asm_of_copy(BYTES, CACHE), "=r,r,l,r", [to, address, size], tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _close_copies(lane):
    """What has been begun since the last call is one group of copies."""
    tl.inline_asm_elementwise("cp.async.commit_group; mov.u32 $0, 0;", "=r,r", [lane], tl.int32, is_pure=False, pack=1)


@triton.constexpr_function
def _asm_of_wait(pending):
    return "cp.async.wait_group " + str(pending) + "; bar.warp.sync 0xffffffff; mov.u32 $0, 0;"


@triton.jit
def _await_copies(lane, PENDING: tl.constexpr):
    """Wait until all groups of copies but the last PENDING are there, for every lane of the warp."""
    tl.inline_asm_elementwise(_asm_of_wait(PENDING), "=r,r", [lane], tl.int32, is_pure=False, pack=1)


@triton.jit
def _read_tile(address):
    """(LANES, 4) float32 from shared memory, 16 bytes a lane."""
    a, b, c, d = tl.inline_asm_elementwise(
        _asm_of_read(4, "f32", False), "=f,=f,=f,=f,r", [address], (tl.float32, tl.float32, tl.float32, tl.float32),
        is_pure=False, pack=1,
    )  # fmt: skip
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [LANES, 4])


@triton.jit
def _halves(word, DTYPE: tl.constexpr):
    """The two 16-bit numbers of a word (LANES,) in float32."""
    if DTYPE == tl.bfloat16:
        low = (word << 16).to(tl.float32, bitcast=True)
        high = (word & -65536).to(tl.float32, bitcast=True)
    else:
        low = (word & 65535).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        high = (word >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return low, high


@triton.jit
def _read_numbers(address, CPT: tl.constexpr, DTYPE: tl.constexpr):
    """CPT x (LANES,) in float32: neighbouring numbers in shared memory."""
    if DTYPE == tl.float32:
        if CPT == 1:
            return (tl.inline_asm_elementwise(
                _asm_of_read(1, "f32", True), "=f,r", [address], tl.float32, is_pure=False, pack=1),)  # fmt: skip
        elif CPT == 2:
            return tl.inline_asm_elementwise(
                _asm_of_read(2, "f32", True), "=f,=f,r", [address], (tl.float32, tl.float32), is_pure=False, pack=1
            )
        else:
            return tl.inline_asm_elementwise(
                _asm_of_read(4, "f32", True), "=f,=f,=f,=f,r", [address],
                (tl.float32, tl.float32, tl.float32, tl.float32), is_pure=False, pack=1,
            )  # fmt: skip
    else:
        if CPT == 1:
            word = tl.inline_asm_elementwise(_asm_of_read(1, "u16", True), "=r,r", [address], tl.int32, is_pure=False, pack=1)
            low, _ = _halves(word, DTYPE)
            return (low,)
        elif CPT == 2:
            word = tl.inline_asm_elementwise(_asm_of_read(1, "u32", True), "=r,r", [address], tl.int32, is_pure=False, pack=1)
            return _halves(word, DTYPE)
        else:
            first, second = tl.inline_asm_elementwise(
                _asm_of_read(2, "u32", True), "=r,=r,r", [address], (tl.int32, tl.int32), is_pure=False, pack=1
            )
            return _halves(first, DTYPE) + _halves(second, DTYPE)


@triton.jit
def _sources(
    pointers, strides, rows, first, start, end, channel, D_SIZE,
    K: tl.constexpr, S: tl.constexpr, M: tl.constexpr, CPT: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """What a lane copies of each group of positions: tuples over the rounds of copies by all lanes.

    First K tensors, then the rows of BC. Returns addresses at the group of position ``first``, the way to the next
    group in bytes (BACK: to the one before), and the bound that a group's position has to be below. ``pointers`` and
    ``rows`` stand at position 0, ``channel`` is the warp's first.
    """
    ITEM: tl.constexpr = pointers[0].dtype.element_ty.primitive_bitwidth // 8
    G: tl.constexpr = S if S < 4 else 4
    SIGN: tl.constexpr = -1 if BACK else 1
    ROW: tl.constexpr = 32 // S * CPT * ITEM
    BYTES: tl.constexpr = 16 if ROW > 16 else ROW
    PARTS: tl.constexpr = ROW // BYTES
    addresses, steps, bounds = (), (), ()
    lane = tl.arange(0, LANES) % 32
    for r in tl.static_range(_ceil(K * G * PARTS, 32)):
        i = r * 32 + lane
        position = i // PARTS % G
        address = tl.zeros([LANES], tl.int64)
        step = tl.zeros([LANES], tl.int64)
        for k in tl.static_range(K):
            mine = i // (PARTS * G) == k
            row = (first + position).to(tl.int64) * strides[k]
            address = tl.where(mine, pointers[k].to(tl.int64) + row * ITEM, address)
            step = tl.where(mine, tl.cast(strides[k], tl.int64) * (SIGN * G * ITEM), step)
        here = channel + i % PARTS * (BYTES // ITEM)
        used = (i < K * G * PARTS) & (here < D_SIZE)
        addresses = addresses + (address + here.to(tl.int64) * ITEM,)
        steps = steps + (step,)
        bounds = bounds + (tl.where(used, end - position, start),)
    for r in tl.static_range(_ceil(G * 2 * S * M, 32)):
        i = r * 32 + lane
        addresses = addresses + (rows.to(tl.int64) + first.to(tl.int64) * (32 * S * M) + i * 16,)
        steps = steps + (SIGN * G * 32 * S * M,)
        bounds = bounds + (tl.where(i < G * 2 * S * M, end, start),)
    return addresses, steps, bounds


@triton.jit
def _send(
    slots, n, addresses, steps, bounds, states, t0, start,
    K: tl.constexpr, STATES: tl.constexpr, S: tl.constexpr, M: tl.constexpr, CPT: tl.constexpr, ITEM: tl.constexpr,
    STAGES: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """Begin to copy group n, that of position t0, as one group of copies; returns the addresses of the next.

    ``states`` is the address of its states, if STATES tiles of them are wanted.
    """
    ROW: tl.constexpr = 32 // S * CPT * ITEM
    BYTES: tl.constexpr = 16 if ROW > 16 else ROW
    INPUTS: tl.constexpr = _ceil(K * (S if S < 4 else 4) * (ROW // BYTES), 32)
    ROUNDS: tl.constexpr = INPUTS + _row_bytes(S, M) // 512
    lane = tl.arange(0, LANES)
    slot = slots + (n & (STAGES - 1)) * _slot_bytes(K, STATES, S, M, CPT, ITEM)
    place = slot + lane % 32 * 16
    moved = ()
    for r in tl.static_range(ROUNDS):
        within = t0 < bounds[r]
        if BACK:
            within = within & (t0 >= start)
        if r < INPUTS:
            to = slot + lane % 32 * BYTES + r * 32 * BYTES
            _copy(to, addresses[r], tl.where(within, BYTES, 0), BYTES, "cg" if BYTES == 16 else "ca")
        else:
            to = place + _input_bytes(K, S, CPT, ITEM) + (r - INPUTS) * 512
            _copy(to, addresses[r], tl.where(within, 16, 0), 16, "ca")
        moved = moved + (addresses[r] + steps[r],)
    for i in tl.static_range(STATES):
        size = tl.where((t0 >= start) & (lane >= 0), 16, 0)
        to = place + _input_bytes(K, S, CPT, ITEM) + _row_bytes(S, M) + i * 512
        _copy(to, states + lane * 16 + i * (16 * LANES), size, 16, "cg")
    _close_copies(lane)
    return moved


@triton.jit
def _receive(slot, K: tl.constexpr, S: tl.constexpr, CPT: tl.constexpr, DTYPE: tl.constexpr):
    """K CPT x (LANES,) float32: one position of each of a lane's channels, of K tensors."""
    ITEM: tl.constexpr = DTYPE.primitive_bitwidth // 8
    G: tl.constexpr = S if S < 4 else 4
    ROW: tl.constexpr = 32 // S * CPT * ITEM
    lane = tl.arange(0, LANES) % 32
    address = slot + lane % G * ROW + lane // S * (CPT * ITEM)
    values = ()
    for k in tl.static_range(K):
        values = values + _read_numbers(address + k * (G * ROW), CPT, DTYPE)
    return values


@triton.jit
def _load_inputs(
    pointers, strides, t, end, channel, D_SIZE, K: tl.constexpr, CPT: tl.constexpr, MASKED: tl.constexpr
):
    """K CPT x (LANES,) float32: one position of each of a lane's channels, of K tensors; without the ring."""
    values = ()
    for k in tl.static_range(K):
        pointer = pointers[k] + t.to(tl.int64) * strides[k] + channel
        numbers = _load_lanes(pointer, t, end, channel, D_SIZE, CPT, MASKED)
        for c in tl.static_range(CPT):
            values = values + (numbers[c].to(tl.float32),)
    return values


@triton.jit
def _load_channels(pointer, channel, D_SIZE, CPT: tl.constexpr, PRESENT: tl.constexpr):
    """CPT x (LANES,) a parameter of each channel in float32, zeros where there is none."""
    values = ()
    for c in tl.static_range(CPT):
        if PRESENT:
            here = channel + c
            values = values + (tl.load(pointer + here, mask=here < D_SIZE, other=0.0).to(tl.float32),)
        else:
            values = values + (tl.zeros([LANES], tl.float32),)
    return values


@triton.jit
def _tile_offsets(i: tl.constexpr, channel, D_SIZE, N_SIZE, M: tl.constexpr, S: tl.constexpr):
    """Offsets (LANES, 4) of tile i = c M + m in (D, N), and where it lies within."""
    here = channel + i // M
    n = (((i % M) * S + tl.arange(0, LANES) % S) * 4)[:, None] + tl.arange(0, 4)[None, :]
    return here[:, None].to(tl.int64) * N_SIZE + n, (here < D_SIZE)[:, None] & (n < N_SIZE)


@triton.jit
def _load_tiles(
    pointer, channel, D_SIZE, N_SIZE, CPT: tl.constexpr, M: tl.constexpr, S: tl.constexpr, PRESENT: tl.constexpr
):
    """CPT M x (LANES, 4) a program's part of a (D, N) matrix in float32, zeros where there is none."""
    tiles = ()
    for i in tl.static_range(CPT * M):
        if PRESENT:
            offsets, inside = _tile_offsets(i, channel, D_SIZE, N_SIZE, M, S)
            tiles = tiles + (tl.load(pointer + offsets, mask=inside, other=0.0),)
        else:
            tiles = tiles + (tl.zeros([LANES, 4], tl.float32),)
    return tiles


@triton.jit
def _store_tiles(pointer, tiles, channel, D_SIZE, N_SIZE, CPT: tl.constexpr, M: tl.constexpr, S: tl.constexpr):
    for i in tl.static_range(CPT * M):
        offsets, inside = _tile_offsets(i, channel, D_SIZE, N_SIZE, M, S)
        tl.store(pointer + offsets, tiles[i], mask=inside)


@triton.jit
def _store_channels(pointer, values, channel, D_SIZE, CPT: tl.constexpr, G: tl.constexpr, S: tl.constexpr):
    """Write for each channel the sum of its value over the lanes of all G positions."""
    for c in tl.static_range(CPT):
        total = values[c]
        if G > 1:
            total += _exchange(total, 1)
        if G > 2:
            total += _exchange(total, 2)
        here = channel + c
        tl.store(pointer + here, total, mask=(here < D_SIZE) & (tl.arange(0, LANES) % S == 0))


@triton.jit
def _scaled(tiles, factor, K: tl.constexpr):
    scaled = ()
    for i in tl.static_range(K):
        scaled = scaled + (tiles[i] * factor,)
    return scaled


@triton.jit
def _decay(dt, A2, reset, RESETS: tl.constexpr):
    """a (LANES, 4) for one position; ``reset`` is 0, or minus infinity where another sequence begins."""
    if RESETS:
        return tl.exp2(dt[:, None] * A2 + reset[:, None])
    else:
        return tl.exp2(dt[:, None] * A2)


@triton.jit
def _steps(raw, bias, t, end, CPT: tl.constexpr, SOFTPLUS: tl.constexpr, MASKED: tl.constexpr):
    """For each of a lane's channels: u, delta + bias, dt and x, (LANES,) each; past the end dt and x are zero.

    ``raw`` starts with the CPT u and the CPT delta as they stand in memory.
    """
    u, delta, dt, x = (), (), (), ()
    for c in tl.static_range(CPT):
        u_c = raw[c].to(tl.float32)
        delta_c = raw[CPT + c].to(tl.float32) + bias[c]
        dt_c = delta_c
        if SOFTPLUS:
            dt_c = _softplus(delta_c)
        if MASKED:
            dt_c = tl.where(t < end, dt_c, 0.0)
        u, delta, dt, x = u + (u_c,), delta + (delta_c,), dt + (dt_c,), x + (dt_c * u_c,)
    return u, delta, dt, x


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
def _load_row(place, j: tl.constexpr, FIRST: tl.constexpr, COUNT: tl.constexpr, M: tl.constexpr, S: tl.constexpr,
              ASYNC: tl.constexpr):  # fmt: skip
    """Of row j of a group the M tiles of B (0 .. M - 1) and of C (M .. 2 M - 1), COUNT from tile FIRST on.

    ``place`` is where a lane's part of the first row stands: in shared memory (LANES,) or in memory (LANES, 4).
    """
    tiles = ()
    for i in tl.static_range(FIRST, FIRST + COUNT):
        offset = j * (8 * S * M) + (i % M) * 8 * S + (i // M) * 4
        if ASYNC:
            tiles = tiles + (_read_tile(place + 4 * offset),)
        else:
            tiles = tiles + (tl.load(place + offset),)
    return tiles


@triton.jit
def _dot(total, a, b, FIRST: tl.constexpr):
    """(LANES,) the sum over a tile's columns of a b, added to ``total`` unless it is the first: a chain of fused steps."""
    a0, a1, a2, a3 = _columns(a)
    b0, b1, b2, b3 = _columns(b)
    if FIRST:
        total = a0 * b0
    else:
        total = total + a0 * b0
    total = total + a1 * b1
    total = total + a2 * b2
    return total + a3 * b3


@triton.jit
def _advance(h, A2, dt, x, reset, place, CPT: tl.constexpr, M: tl.constexpr, S: tl.constexpr, RESETS: tl.constexpr,
             ASYNC: tl.constexpr):  # fmt: skip
    """h after the positions of a group."""
    G: tl.constexpr = S if S < 4 else 4
    for j in tl.static_range(G):
        reset_j = _from_lane(reset, j, G)
        B = _load_row(place, j, 0, M, M, S, ASYNC)
        after = ()
        for c in tl.static_range(CPT):
            dt_j, x_j = _from_lane(dt[c], j, G), _from_lane(x[c], j, G)
            for m in tl.static_range(M):
                a = _decay(dt_j, A2[c * M + m], reset_j, RESETS)
                after = after + (a * h[c * M + m] + x_j[:, None] * B[m],)
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
    ASYNC: tl.constexpr = STAGES > 0
    DTYPE: tl.constexpr = u_ptr.dtype.element_ty
    ITEM: tl.constexpr = DTYPE.primitive_bitwidth // 8
    lane = tl.arange(0, LANES)
    b = tl.program_id(2).to(tl.int64)
    k = tl.program_id(1)
    channel = tl.program_id(0) * (LANES // S * CPT) + lane // S * CPT
    start = k * CHUNK
    end = tl.minimum(start + CHUNK, L)
    A2 = _scaled(_load_tiles(A_ptr, channel, D_SIZE, N_SIZE, CPT, M, S, True), LOG2E, CPT * M)
    bias = _load_channels(bias_ptr, channel, D_SIZE, CPT, HAS_BIAS)
    h = _load_tiles(A_ptr, channel, D_SIZE, N_SIZE, CPT, M, S, False)
    time = _load_channels(bias_ptr, channel, D_SIZE, CPT, False)
    reset = tl.zeros([LANES], tl.float32)
    cut = tl.zeros([LANES], tl.float32)

    pointers, strides = (u_ptr + b * u_sb, delta_ptr + b * delta_sb), (u_st, delta_st)
    rows = BC_ptr + b * L_PADDED * (8 * S * M)
    tile = (lane % S * 8)[:, None] + tl.arange(0, 4)[None, :]
    if ASYNC:
        slots = _ring(STAGES * _slot_bytes(2, 0, S, M, CPT, ITEM))
        warp_channel = channel - lane % 32 // S * CPT
        addresses, steps, bounds = _sources(pointers, strides, rows, start, start, end, warp_channel, D_SIZE, 2, S, M, CPT,
                                             False)  # fmt: skip
        for n in tl.static_range(STAGES - 1):
            addresses = _send(slots, n, addresses, steps, bounds, 0, start + n * G, start, 2, 0, S, M, CPT, ITEM,
                              STAGES, False)  # fmt: skip
    for group in range((end - start + G - 1) // G):
        t0 = start + group * G
        t = t0 + lane % G
        if ASYNC:
            _await_copies(lane, STAGES - 2)
            addresses = _send(slots, group + STAGES - 1, addresses, steps, bounds, 0, t0 + (STAGES - 1) * G, start, 2,
                              0, S, M, CPT, ITEM, STAGES, False)  # fmt: skip
            slot = slots + (group & (STAGES - 1)) * _slot_bytes(2, 0, S, M, CPT, ITEM)
            raw = _receive(slot, 2, S, CPT, DTYPE)
            place = slot + _input_bytes(2, S, CPT, ITEM) + lane % S * 32
        else:
            raw = _load_inputs(pointers, strides, t, end, channel, D_SIZE, 2, CPT, MASKED)
            place = rows + t0.to(tl.int64) * (8 * S * M) + tile
        _, _, dt, x = _steps(raw, bias, t, end, CPT, SOFTPLUS, MASKED)
        if RESETS:
            reset = tl.load(reset_ptr + b * L_PADDED + t)
            cut += reset
        later = ()
        for c in tl.static_range(CPT):
            later = later + (time[c] + dt[c],)
        time = later
        h = _advance(h, A2, dt, x, reset, place, CPT, M, S, RESETS, ASYNC)

    place = b * N_CHUNKS + k
    _store_tiles(state_ptr + place * D_SIZE * N_SIZE, h, channel, D_SIZE, N_SIZE, CPT, M, S)
    _store_channels(time_ptr + place * D_SIZE, time, channel, D_SIZE, CPT, G, S)
    if RESETS:
        tl.store(cut_ptr + place, tl.min(cut, axis=0))


@triton.jit
def _collect(tiles, A2, state_ptr, time_ptr, cut_ptr, first, count, step, D_SIZE, N_SIZE, channel,
             CPT: tl.constexpr, M: tl.constexpr, S: tl.constexpr, RESETS: tl.constexpr):  # fmt: skip
    """Carry tiles through ``count`` whole chunks, from chunk ``first`` on, ``step`` apart."""
    for i in range(count):
        place = first + i * step
        time = _load_channels(time_ptr + place * D_SIZE, channel, D_SIZE, CPT, True)
        added = _load_tiles(state_ptr + place * D_SIZE * N_SIZE, channel, D_SIZE, N_SIZE, CPT, M, S, True)
        cut = tl.zeros([LANES], tl.float32)
        if RESETS:
            cut += tl.load(cut_ptr + place)
        after = ()
        for i in tl.static_range(CPT * M):
            after = after + (_decay(time[i // M], A2[i], cut, RESETS) * tiles[i] + added[i],)
        tiles = after
    return tiles


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    u_ptr, delta_ptr, z_ptr, A_ptr, BC_ptr, D_ptr, bias_ptr, initial_ptr, reset_ptr,
    chunk_state_ptr, chunk_time_ptr, chunk_cut_ptr, y_ptr, final_ptr, saved_ptr,
    L, L_PADDED, D_SIZE, N_SIZE, CHUNK, N_CHUNKS, N_SEGMENTS, u_sb, u_st, delta_sb, delta_st, z_sb, z_st,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_INITIAL: tl.constexpr,
    SOFTPLUS: tl.constexpr, RESETS: tl.constexpr, KEEP: tl.constexpr, SEGMENT: tl.constexpr, MASKED: tl.constexpr,
    S: tl.constexpr, M: tl.constexpr, CPT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """y (Bt, L, D), the final state (Bt, D, N) and, if KEEP, the states saved (Bt, N_SEGMENTS, D, N)."""
    G: tl.constexpr = S if S < 4 else 4
    K: tl.constexpr = 3 if HAS_Z else 2
    ASYNC: tl.constexpr = STAGES > 0
    DTYPE: tl.constexpr = u_ptr.dtype.element_ty
    ITEM: tl.constexpr = DTYPE.primitive_bitwidth // 8
    lane = tl.arange(0, LANES)
    b = tl.program_id(2).to(tl.int64)
    k = tl.program_id(1)
    channel = tl.program_id(0) * (LANES // S * CPT) + lane // S * CPT
    start = k * CHUNK
    end = tl.minimum(start + CHUNK, L)
    A2 = _scaled(_load_tiles(A_ptr, channel, D_SIZE, N_SIZE, CPT, M, S, True), LOG2E, CPT * M)
    bias = _load_channels(bias_ptr, channel, D_SIZE, CPT, HAS_BIAS)
    skip = _load_channels(D_ptr, channel, D_SIZE, CPT, HAS_D)
    h = _load_tiles(initial_ptr + b * D_SIZE * N_SIZE, channel, D_SIZE, N_SIZE, CPT, M, S, HAS_INITIAL)
    h = _collect(h, A2, chunk_state_ptr, chunk_time_ptr, chunk_cut_ptr, b * N_CHUNKS, k, 1, D_SIZE, N_SIZE, channel,
                 CPT, M, S, RESETS)  # fmt: skip
    reset = tl.zeros([LANES], tl.float32)

    pointers, strides = (u_ptr + b * u_sb, delta_ptr + b * delta_sb), (u_st, delta_st)
    if HAS_Z:
        pointers, strides = pointers + (z_ptr + b * z_sb,), strides + (z_st,)
    rows = BC_ptr + b * L_PADDED * (8 * S * M)
    tile = (lane % S * 8)[:, None] + tl.arange(0, 4)[None, :]
    if ASYNC:
        slots = _ring(STAGES * _slot_bytes(K, 0, S, M, CPT, ITEM))
        warp_channel = channel - lane % 32 // S * CPT
        addresses, steps, bounds = _sources(pointers, strides, rows, start, start, end, warp_channel, D_SIZE, K, S, M, CPT,
                                             False)  # fmt: skip
        for n in tl.static_range(STAGES - 1):
            addresses = _send(slots, n, addresses, steps, bounds, 0, start + n * G, start, K, 0, S, M, CPT, ITEM,
                              STAGES, False)  # fmt: skip
    y_p = y_ptr + (b * L + start + lane % G) * D_SIZE + channel
    for group in range((end - start + G - 1) // G):
        t0 = start + group * G
        if KEEP:
            if t0 % SEGMENT == 0:
                place = b * N_SEGMENTS + t0 // SEGMENT
                _store_tiles(saved_ptr + place * D_SIZE * N_SIZE, h, channel, D_SIZE, N_SIZE, CPT, M, S)
        t = t0 + lane % G
        if ASYNC:
            _await_copies(lane, STAGES - 2)
            addresses = _send(slots, group + STAGES - 1, addresses, steps, bounds, 0, t0 + (STAGES - 1) * G, start, K,
                              0, S, M, CPT, ITEM, STAGES, False)  # fmt: skip
            slot = slots + (group & (STAGES - 1)) * _slot_bytes(K, 0, S, M, CPT, ITEM)
            raw = _receive(slot, K, S, CPT, DTYPE)
            place = slot + _input_bytes(K, S, CPT, ITEM) + lane % S * 32
        else:
            raw = _load_inputs(pointers, strides, t, end, channel, D_SIZE, K, CPT, MASKED)
            place = rows + t0.to(tl.int64) * (8 * S * M) + tile
        u, _, dt, x = _steps(raw, bias, t, end, CPT, SOFTPLUS, MASKED)
        if RESETS:
            reset = tl.load(reset_ptr + b * L_PADDED + t)

        parts = ()
        for j in tl.static_range(G):
            reset_j = _from_lane(reset, j, G)
            BC = _load_row(place, j, 0, 2 * M, M, S, ASYNC)
            after = ()
            for c in tl.static_range(CPT):
                dt_j, x_j = _from_lane(dt[c], j, G), _from_lane(x[c], j, G)
                part = dt_j
                for m in tl.static_range(M):
                    a = _decay(dt_j, A2[c * M + m], reset_j, RESETS)
                    h_j = a * h[c * M + m] + x_j[:, None] * BC[m]
                    part = _dot(part, h_j, BC[M + m], m == 0)
                    after = after + (h_j,)
                parts = parts + (part,)
            h = after
        ys = ()
        for c in tl.static_range(CPT):
            y = _sum_over_states(parts, c, CPT, G, S) + skip[c] * u[c]
            if HAS_Z:
                z = raw[2 * CPT + c]
                y = y * z * _sigmoid(z)
            ys = ys + (y,)
        _store_lanes(y_p, ys, (t < end) & (lane % S < G), channel, D_SIZE, CPT, MASKED or S > G)
        y_p += G * D_SIZE

    if k == N_CHUNKS - 1:
        _store_tiles(final_ptr + b * D_SIZE * N_SIZE, h, channel, D_SIZE, N_SIZE, CPT, M, S)


@triton.jit
def _gated(raw, DOUT: tl.constexpr, Z: tl.constexpr, CPT: tl.constexpr, HAS_Z: tl.constexpr):
    """dy before the gate for each of a lane's channels, and the gate's z and sigmoid(z), (LANES,) each.

    DOUT and Z say which of the tensors in ``raw`` they are.
    """
    dy, z, sigmoid = (), (), ()
    for c in tl.static_range(CPT):
        dy_c = raw[DOUT * CPT + c].to(tl.float32)
        z_c, sigmoid_c = dy_c, dy_c
        if HAS_Z:
            z_c = raw[Z * CPT + c].to(tl.float32)
            sigmoid_c = _sigmoid(z_c)
            dy_c = dy_c * z_c * sigmoid_c
        dy, z, sigmoid = dy + (dy_c,), z + (z_c,), sigmoid + (sigmoid_c,)
    return dy, z, sigmoid


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
    ASYNC: tl.constexpr = STAGES > 0
    DTYPE: tl.constexpr = dout_ptr.dtype.element_ty
    ITEM: tl.constexpr = DTYPE.primitive_bitwidth // 8
    lane = tl.arange(0, LANES)
    b = tl.program_id(2).to(tl.int64)
    k = tl.program_id(1)
    channel = tl.program_id(0) * (LANES // S * CPT) + lane // S * CPT
    start = k * CHUNK
    end = tl.minimum(start + CHUNK, L)
    A2 = _scaled(_load_tiles(A_ptr, channel, D_SIZE, N_SIZE, CPT, M, S, True), LOG2E, CPT * M)
    bias = _load_channels(bias_ptr, channel, D_SIZE, CPT, HAS_BIAS)
    ag = _load_tiles(A_ptr, channel, D_SIZE, N_SIZE, CPT, M, S, False)
    time = _load_channels(bias_ptr, channel, D_SIZE, CPT, False)
    reset = tl.zeros([LANES], tl.float32)
    cut = tl.zeros([LANES], tl.float32)

    last = start + (end - start - 1) // G * G
    pointers, strides = (dout_ptr + b * dout_sb, delta_ptr + b * delta_sb), (dout_st, delta_st)
    if HAS_Z:
        pointers, strides = pointers + (z_ptr + b * z_sb,), strides + (z_st,)
    rows = BC_ptr + b * L_PADDED * (8 * S * M)
    tile = (lane % S * 8)[:, None] + tl.arange(0, 4)[None, :]
    if ASYNC:
        slots = _ring(STAGES * _slot_bytes(K, 0, S, M, CPT, ITEM))
        warp_channel = channel - lane % 32 // S * CPT
        addresses, steps, bounds = _sources(pointers, strides, rows, last, start, end, warp_channel, D_SIZE, K, S, M, CPT,
                                             True)  # fmt: skip
        for n in tl.static_range(STAGES - 1):
            addresses = _send(slots, n, addresses, steps, bounds, 0, last - n * G, start, K, 0, S, M, CPT, ITEM,
                              STAGES, True)  # fmt: skip
    for group in range((end - start + G - 1) // G):
        t0 = last - group * G
        t = t0 + lane % G
        if ASYNC:
            _await_copies(lane, STAGES - 2)
            addresses = _send(slots, group + STAGES - 1, addresses, steps, bounds, 0, t0 - (STAGES - 1) * G, start, K,
                              0, S, M, CPT, ITEM, STAGES, True)  # fmt: skip
            slot = slots + (group & (STAGES - 1)) * _slot_bytes(K, 0, S, M, CPT, ITEM)
            raw = _receive(slot, K, S, CPT, DTYPE)
            place = slot + _input_bytes(K, S, CPT, ITEM) + lane % S * 32
        else:
            raw = _load_inputs(pointers, strides, t, end, channel, D_SIZE, K, CPT, MASKED)
            place = rows + t0.to(tl.int64) * (8 * S * M) + tile
        _, _, dt, _ = _steps(raw, bias, t, end, CPT, SOFTPLUS, MASKED)
        dy, _, _ = _gated(raw, 0, 2, CPT, HAS_Z)
        if RESETS:
            reset = tl.load(reset_ptr + b * L_PADDED + t)
            cut += reset
        later = ()
        for c in tl.static_range(CPT):
            later = later + (time[c] + dt[c],)
        time = later
        for j in tl.static_range(G - 1, -1, -1):
            reset_j = _from_lane(reset, j, G)
            C = _load_row(place, j, M, M, M, S, ASYNC)
            after = ()
            for c in tl.static_range(CPT):
                dt_j, dy_j = _from_lane(dt[c], j, G), _from_lane(dy[c], j, G)
                for m in tl.static_range(M):
                    g = ag[c * M + m] + dy_j[:, None] * C[m]
                    after = after + (_decay(dt_j, A2[c * M + m], reset_j, RESETS) * g,)
            ag = after

    place = b * N_CHUNKS + k
    _store_tiles(state_ptr + place * D_SIZE * N_SIZE, ag, channel, D_SIZE, N_SIZE, CPT, M, S)
    _store_channels(time_ptr + place * D_SIZE, time, channel, D_SIZE, CPT, G, S)
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
        place = row + (which // 4 * S + tl.arange(0, LANES) % S) * 4 + which % 4
        if DETERMINISTIC:
            tl.store(place, values[i], mask=keep)
        else:
            tl.atomic_add(place, values[i], mask=keep, sem="relaxed")


@triton.jit
def _zeros(K: tl.constexpr, WIDTH: tl.constexpr):
    """K tiles (LANES, 4) of zeros, or K x (LANES,) where WIDTH is 1."""
    zeros = ()
    for _ in tl.static_range(K):
        if WIDTH == 1:
            zeros = zeros + (tl.zeros([LANES], tl.float32),)
        else:
            zeros = zeros + (tl.zeros([LANES, WIDTH], tl.float32),)
    return zeros


@triton.jit
def _walk_forward(h, A2, dt, x, reset, place, CPT: tl.constexpr, M: tl.constexpr, S: tl.constexpr,
                  RESETS: tl.constexpr, READ: tl.constexpr, ASYNC: tl.constexpr):  # fmt: skip
    """A group from h on: the states before and after each position (G + 1), the decays (G), and if READ, parts of y."""
    G: tl.constexpr = S if S < 4 else 4
    states, decays, parts = h, (), ()
    for j in tl.static_range(G):
        reset_j = _from_lane(reset, j, G)
        BC = _load_row(place, j, 0, 2 * M if READ else M, M, S, ASYNC)
        for c in tl.static_range(CPT):
            dt_j, x_j = _from_lane(dt[c], j, G), _from_lane(x[c], j, G)
            part = dt_j
            for m in tl.static_range(M):
                a = _decay(dt_j, A2[c * M + m], reset_j, RESETS)
                h_j = a * states[(j * CPT + c) * M + m] + x_j[:, None] * BC[m]
                states, decays = states + (h_j,), decays + (a,)
                if READ:
                    part = _dot(part, h_j, BC[M + m], m == 0)
            if READ:
                parts = parts + (part,)
    return states, decays, parts


@triton.jit
def _walk_back(ag, dA, A2, dt, x, dy, states, decays, place, dBC_row, index, keep,
               CPT: tl.constexpr, M: tl.constexpr, S: tl.constexpr,
               DETERMINISTIC: tl.constexpr, ASYNC: tl.constexpr):  # fmt: skip
    """A group back: a g before it, dA so far, and parts of dx and of the gradient by dt over ln 2."""
    G: tl.constexpr = S if S < 4 else 4
    dx_parts, dt_parts = (), ()
    for j in tl.static_range(G - 1, -1, -1):
        new_ag, new_dA, dx_j, ddt_j = (), (), (), ()
        dB, dC = _zeros(M, 4), _zeros(M, 4)
        BC = _load_row(place, j, 0, 2 * M, M, S, ASYNC)
        for c in tl.static_range(CPT):
            dt_j, x_j, dy_j = _from_lane(dt[c], j, G), _from_lane(x[c], j, G), _from_lane(dy[c], j, G)
            dx_part, dt_part = dt_j, dt_j
            more_B, more_C = (), ()
            for m in tl.static_range(M):
                g = ag[c * M + m] + dy_j[:, None] * BC[M + m]
                more_B = more_B + (dB[m] + g * x_j[:, None] if c > 0 else g * x_j[:, None],)
                h_j = states[((j + 1) * CPT + c) * M + m]
                more_C = more_C + (dC[m] + h_j * dy_j[:, None] if c > 0 else h_j * dy_j[:, None],)
                ag_j = decays[(j * CPT + c) * M + m] * g
                d_exponent = ag_j * states[(j * CPT + c) * M + m]
                dx_part = _dot(dx_part, g, BC[m], m == 0)
                dt_part = _dot(dt_part, d_exponent, A2[c * M + m], m == 0)
                new_ag = new_ag + (ag_j,)
                new_dA = new_dA + (dA[c * M + m] + d_exponent * dt_j[:, None],)
            dB, dC = more_B, more_C
            dx_j, ddt_j = dx_j + (dx_part,), ddt_j + (dt_part,)
        ag, dA = new_ag, new_dA
        dx_parts, dt_parts = dx_j + dx_parts, ddt_j + dt_parts
        _add_over_channels(dB, dC, dBC_row + j * (8 * S * M), index, keep, M, S, DETERMINISTIC)
    return ag, dA, dx_parts, dt_parts


@triton.jit
def _refill(
    saved_ptr, scratch, slots, pointers, strides, rows, reset_p, base, stop, A2, bias, channel, D_SIZE, N_SIZE,
    CPT: tl.constexpr, M: tl.constexpr, S: tl.constexpr, SOFTPLUS: tl.constexpr, RESETS: tl.constexpr,
    MASKED: tl.constexpr, STAGES: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Walk a segment from its saved state and write the state before every group of positions to scratch."""
    G: tl.constexpr = S if S < 4 else 4
    ASYNC: tl.constexpr = STAGES > 0
    ITEM: tl.constexpr = DTYPE.primitive_bitwidth // 8
    lane = tl.arange(0, LANES)
    tile = (lane % S * 8)[:, None] + tl.arange(0, 4)[None, :]
    offsets = lane[:, None] * 4 + tl.arange(0, 4)[None, :]
    h = _load_tiles(saved_ptr, channel, D_SIZE, N_SIZE, CPT, M, S, True)
    reset = tl.zeros([LANES], tl.float32)
    if ASYNC:
        _await_copies(lane, 0)
        warp_channel = channel - lane % 32 // S * CPT
        addresses, steps, bounds = _sources(pointers, strides, rows, base, base, stop, warp_channel, D_SIZE, 2, S, M, CPT,
                                             False)  # fmt: skip
        for n in tl.static_range(STAGES - 1):
            addresses = _send(slots, n, addresses, steps, bounds, 0, base + n * G, base, 2, 0, S, M, CPT, ITEM,
                              STAGES, False)  # fmt: skip
    for group in range((stop - base + G - 1) // G):
        t0 = base + group * G
        for i in tl.static_range(CPT * M):
            tl.store(scratch + i * (4 * LANES) + offsets, h[i])
        scratch += CPT * M * 4 * LANES
        t = t0 + lane % G
        if ASYNC:
            _await_copies(lane, STAGES - 2)
            addresses = _send(slots, group + STAGES - 1, addresses, steps, bounds, 0, t0 + (STAGES - 1) * G, base, 2,
                              0, S, M, CPT, ITEM, STAGES, False)  # fmt: skip
            slot = slots + (group & (STAGES - 1)) * _slot_bytes(2, 0, S, M, CPT, ITEM)
            raw = _receive(slot, 2, S, CPT, DTYPE)
            place = slot + _input_bytes(2, S, CPT, ITEM) + lane % S * 32
        else:
            raw = _load_inputs(pointers, strides, t, stop, channel, D_SIZE, 2, CPT, MASKED)
            place = rows + t0.to(tl.int64) * (8 * S * M) + tile
        _, _, dt, x = _steps(raw, bias, t, stop, CPT, SOFTPLUS, MASKED)
        if RESETS:
            reset = tl.load(reset_p + t)
        h = _advance(h, A2, dt, x, reset, place, CPT, M, S, RESETS, ASYNC)


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
    STAGES: tl.constexpr,
):  # fmt: skip
    """Every gradient. A program takes one tile after another: some channels of one chunk of one sequence.

    Gradients by A, D and the bias are written for each sequence and chunk, to be added up; dBC (Bt, L padded, 2, N
    padded) is added to in memory, or with DETERMINISTIC written for each tile of channels, to be added up.
    """
    G: tl.constexpr = S if S < 4 else 4
    K: tl.constexpr = 4 if HAS_Z else 3
    ASYNC: tl.constexpr = STAGES > 0
    DTYPE: tl.constexpr = u_ptr.dtype.element_ty
    ITEM: tl.constexpr = DTYPE.primitive_bitwidth // 8
    SLOT: tl.constexpr = _slot_bytes(K, CPT * M, S, M, CPT, ITEM)
    STATE_BYTES: tl.constexpr = CPT * M * 16 * LANES
    lane = tl.arange(0, LANES)
    tile = (lane % S * 8)[:, None] + tl.arange(0, 4)[None, :]
    offsets = lane[:, None] * 4 + tl.arange(0, 4)[None, :]
    index, keep = _folded_place(M, S)
    scratch = scratch_ptr + tl.program_id(0).to(tl.int64) * ((SEGMENT // G) * CPT * M * 4 * LANES)
    slots = lane
    if ASYNC:
        slots = _ring(STAGES * SLOT)
    for work in range(tl.program_id(0), TILES, tl.num_programs(0)):
        k = (work // N_TILES) % N_CHUNKS
        b = (work // N_TILES // N_CHUNKS).to(tl.int64)
        channel = (work % N_TILES) * (LANES // S * CPT) + lane // S * CPT
        start = k * CHUNK
        end = tl.minimum(start + CHUNK, L)
        A2 = _scaled(_load_tiles(A_ptr, channel, D_SIZE, N_SIZE, CPT, M, S, True), LOG2E, CPT * M)
        bias = _load_channels(bias_ptr, channel, D_SIZE, CPT, HAS_BIAS)
        skip = _load_channels(D_ptr, channel, D_SIZE, CPT, HAS_D)
        ag = _load_tiles(final_ptr + b * D_SIZE * N_SIZE, channel, D_SIZE, N_SIZE, CPT, M, S, HAS_FINAL)
        ag = _collect(ag, A2, chunk_state_ptr, chunk_time_ptr, chunk_cut_ptr, (b + 1) * N_CHUNKS - 1,
                      N_CHUNKS - 1 - k, -1, D_SIZE, N_SIZE, channel, CPT, M, S, RESETS)  # fmt: skip
        dA, dD, dbias = _zeros(CPT * M, 4), _zeros(CPT, 1), _zeros(CPT, 1)
        reset = tl.zeros([LANES], tl.float32)
        dBC = dBC_ptr + b * L_PADDED * (8 * S * M)
        if DETERMINISTIC:
            dBC += (work % N_TILES * (LANES // 32) + lane // 32) * BATCH.to(tl.int64) * L_PADDED * (8 * S * M)
        pointers, strides = (u_ptr + b * u_sb, delta_ptr + b * delta_sb), (u_st, delta_st)
        rows = BC_ptr + b * L_PADDED * (8 * S * M)
        segments = (end - start + SEGMENT - 1) // SEGMENT
        for done in range(segments):
            base = start + (segments - 1 - done) * SEGMENT
            stop = tl.minimum(base + SEGMENT, end)
            segment = b * N_SEGMENTS + base // SEGMENT
            _refill(saved_ptr + segment * D_SIZE * N_SIZE, scratch, slots, pointers, strides, rows,
                    reset_ptr + b * L_PADDED, base, stop, A2, bias, channel, D_SIZE, N_SIZE, CPT, M, S, SOFTPLUS, RESETS,
                    MASKED, STAGES, DTYPE)  # fmt: skip
            tl.debug_barrier()

            last = base + (stop - base - 1) // G * G
            all_pointers, all_strides = pointers + (dout_ptr + b * dout_sb,), strides + (dout_st,)
            if HAS_Z:
                all_pointers, all_strides = all_pointers + (z_ptr + b * z_sb,), all_strides + (z_st,)
            out = (b * L + last + lane % G) * D_SIZE + channel
            kept = scratch + (last - base) // G * (CPT * M * 4 * LANES)
            if ASYNC:
                _await_copies(lane, 0)
                warp_channel = channel - lane % 32 // S * CPT
                addresses, steps, bounds = _sources(all_pointers, all_strides, rows, last, base, end, warp_channel,
                                                    D_SIZE, K, S, M, CPT, True)  # fmt: skip
                states_p = kept.to(tl.int64)
                for n in tl.static_range(STAGES - 1):
                    addresses = _send(slots, n, addresses, steps, bounds, states_p - n * STATE_BYTES, last - n * G, base,
                                      K, CPT * M, S, M, CPT, ITEM, STAGES, True)  # fmt: skip
            for group in range((stop - base + G - 1) // G):
                t0 = last - group * G
                t = t0 + lane % G
                if ASYNC:
                    _await_copies(lane, STAGES - 2)
                    states_p = kept.to(tl.int64) - (STAGES - 1) * STATE_BYTES
                    addresses = _send(slots, group + STAGES - 1, addresses, steps, bounds, states_p,
                                      t0 - (STAGES - 1) * G, base, K, CPT * M, S, M, CPT, ITEM, STAGES, True)  # fmt: skip
                    slot = slots + (group & (STAGES - 1)) * SLOT
                    raw = _receive(slot, K, S, CPT, DTYPE)
                    place = slot + _input_bytes(K, S, CPT, ITEM) + lane % S * 32
                else:
                    raw = _load_inputs(all_pointers, all_strides, t, end, channel, D_SIZE, K, CPT, MASKED)
                    place = rows + t0.to(tl.int64) * (8 * S * M) + tile
                h = ()
                for i in tl.static_range(CPT * M):
                    if ASYNC:
                        h = h + (_read_tile(slot + _input_bytes(K, S, CPT, ITEM) + _row_bytes(S, M) + i * 512 + lane % 32 * 16),)
                    else:
                        h = h + (tl.load(kept + i * (4 * LANES) + offsets),)
                kept -= CPT * M * 4 * LANES
                if RESETS:
                    reset = tl.load(reset_ptr + b * L_PADDED + t)
                _, _, dt, x = _steps(raw, bias, t, end, CPT, SOFTPLUS, MASKED)
                dy, _, _ = _gated(raw, 2, 3, CPT, HAS_Z)
                states, decays, y_parts = _walk_forward(h, A2, dt, x, reset, place, CPT, M, S, RESETS, HAS_Z, ASYNC)
                ys = ()
                if HAS_Z:
                    for c in tl.static_range(CPT):
                        ys = ys + (_sum_over_states(y_parts, c, CPT, G, S),)
                ag, dA, dx_parts, dt_parts = _walk_back(ag, dA, A2, dt, x, dy, states, decays, place,
                                                        dBC + (t0 * (8 * S * M)), index, keep, CPT, M, S,
                                                        DETERMINISTIC, ASYNC)  # fmt: skip
                inside = (t < end) & (lane % S < G)
                new_dD, new_dbias, dus, ddeltas, dzs = (), (), (), (), ()
                if ASYNC:  # read again: fewer registers in between
                    raw = _receive(slot, K, S, CPT, DTYPE)
                for c in tl.static_range(CPT):
                    u = raw[c]
                    dx = _sum_over_states(dx_parts, c, CPT, G, S)
                    d_delta = dx * u + _sum_over_states(dt_parts, c, CPT, G, S) * LN2
                    if SOFTPLUS:
                        d_delta = d_delta * _sigmoid(raw[CPT + c] + bias[c])
                    if MASKED:
                        d_delta = tl.where(t < end, d_delta, 0.0)
                    new_dD, new_dbias = new_dD + (dD[c] + dy[c] * u,), new_dbias + (dbias[c] + d_delta,)
                    dus, ddeltas = dus + (dx * dt[c] + dy[c] * skip[c],), ddeltas + (d_delta,)
                    if HAS_Z:
                        y = ys[c] + skip[c] * u
                        z = raw[3 * CPT + c]
                        sigmoid = _sigmoid(z)
                        dzs = dzs + (raw[2 * CPT + c] * y * sigmoid * (1.0 + z * (1.0 - sigmoid)),)
                dD, dbias = new_dD, new_dbias
                _store_lanes(du_ptr + out, dus, inside, channel, D_SIZE, CPT, MASKED or S > G)
                _store_lanes(ddelta_ptr + out, ddeltas, inside, channel, D_SIZE, CPT, MASKED or S > G)
                if HAS_Z:
                    _store_lanes(dz_ptr + out, dzs, inside, channel, D_SIZE, CPT, MASKED or S > G)
                out -= G * D_SIZE
            tl.debug_barrier()

        chunk = b * N_CHUNKS + k
        _store_tiles(dA_ptr + chunk * D_SIZE * N_SIZE, dA, channel, D_SIZE, N_SIZE, CPT, M, S)
        _store_channels(dD_ptr + chunk * D_SIZE, dD, channel, D_SIZE, CPT, G, S)
        _store_channels(dbias_ptr + chunk * D_SIZE, dbias, channel, D_SIZE, CPT, G, S)
        if k == 0:
            _store_tiles(initial_ptr + b * D_SIZE * N_SIZE, ag, channel, D_SIZE, N_SIZE, CPT, M, S)
