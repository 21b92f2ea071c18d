"""The loops of the fused CPU scan, compiled by Numba: one call is one task, sequences and a group of their channels.

Channels are the vector axis. A tile of T positions and W channels is copied to a scratch buffer as float32 rows,
whatever its dtype and strides in memory; then the recurrence runs over t, over the states n, and in the innermost loop,
of the constant length W, over channels w. Every scratch array has constant inner dimensions, and what one loop reads
and writes is in one array: the compiler can prove that nothing overlaps, and turns the loop into straight vector code.
Sums over channels (the gradients of B and C) stay W wide until all channels of the group are added, and are folded
once; their order depends on the shape alone.

It is one long file because Numba recompiles its cache on disk when the entry function's file changes, but not when
another does.

Symbols (arXiv:2312.00752, Algorithm 2; the others as in ``parallel``):

    T, W     positions and channels of a tile
    S        states of a tile: the recurrence of W channels is computed S states at a time
    dt, a    step size; decay exp(dt A)
    rate     A log2(e), so that a = 2^(dt rate)
    drive    dt u
    h, g     state, and gradient of the loss w.r.t. it
    carry    a_{t+1} g_{t+1}, what position t + 1 adds to g_t
    y        output before the gate
    d...     gradient of the loss w.r.t. what follows the d
"""

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

# All constants are NumPy integers: for Python's, Numba would compile the functions that they are passed to again.
T, W, S = np.array([32, 32, 16])

U, RAW, DT, STEP, DRIVE, Y, Z, SIGMA_Z, D_OUT, DY, D_DRIVE, D_STEP, ROWS = np.arange(13)
"""Rows of a position: u, delta + bias, dt, dt in the decay (0 where a sequence starts), dt u, y, z, sigmoid(z), and
gradients: by the output, by y, by dt u and (but for a factor) by dt in the decay."""
RATE, STATE, CARRY, D_RATE, CHANNEL = np.arange(5)
"""Of a channel's state: A log2(e), h, the carry, and the gradient of A."""
H_BEFORE, A_BAR, CELL = np.arange(3)
"""Of a state at a position."""
SUM_B, SUM_C, SUMS = np.arange(3)
"""Of a state at a position: the gradients of B and C, not yet folded over the W channels."""
SKIP, BIAS, VECTORS = np.arange(3)
"""Of a channel: D, delta_bias."""
TO_B, TO_C, MAPS = np.arange(3)
"""Of a state at a position: B and C; at last, their gradients."""

FLOAT32, BFLOAT16, FLOAT16 = np.arange(3)
IN_U, IN_DELTA, IN_B, IN_C, IN_Z, IN_DY, OUT_Y, OUT_U, OUT_DELTA, OUT_Z, OUT_B, OUT_C, OPERANDS = np.arange(13)
"""Rows of the table of operands: address, dtype code, strides by batch, position and channel (in elements)."""

OPTIONS = {"nogil": True, "error_model": "numpy"}
"""No fast-math: where ``a b + c d`` may fuse, the compiler chooses which product is not rounded, and has chosen
differently in the process that compiles, where a part is compiled alone, and in the cache on disk."""
part = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **OPTIONS)
"""Called by compiled code only and cached on disk inside its caller, which saves a third of the compile time."""


def entry(function):
    """Called from Python, and cached on disk: next to this file, else in the user's cache, else not at all."""
    try:
        return njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # neither folder can be written to
        return njit(**OPTIONS)(function)


FIRST = np.int64(0)
ZERO, HALF, ONE, TWO = (np.float32(value) for value in (0, 0.5, 1, 2))
LOG2_E, LN_2 = np.float32(1.4426950408889634), np.float32(0.6931471805599453)


def pointer_to(element):
    """A function that compiled code calls to turn an address into a pointer to ``element``."""
    kind = types.CPointer(element)

    @intrinsic
    def pointer(_context, address):
        def generate(context, builder, _signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(kind))

        return kind(address), generate

    return pointer


floats, halves = pointer_to(types.float32), pointer_to(types.int16)


@intrinsic
def fma(_context, a, b, c):
    """a b + c, rounded once where the processor can: the one place where a product and a sum fuse."""

    def generate(_context, builder, _signature, arguments):
        number = ir.FloatType()
        fuse = builder.module.declare_intrinsic("llvm.fmuladd", [number], ir.FunctionType(number, [number] * 3))
        return builder.call(fuse, arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


@intrinsic
def lane_sum(_context, array_at, row):
    """The sum of the W floats of one row, added pairwise (a loop would add them one after another)."""

    def generate(_context, builder, _signature, arguments):
        vector = ir.VectorType(ir.FloatType(), int(W))
        lanes = builder.load(builder.gep(builder.bitcast(arguments[0], vector.as_pointer()), arguments[1:]), align=4)
        while lanes.type.count > 1:
            half = lanes.type.count // 2
            low, high = (
                builder.shuffle_vector(
                    lanes, lanes, ir.Constant(ir.VectorType(ir.IntType(32), half), list(range(start, start + half)))
                )
                for start in (0, half)
            )
            lanes = builder.fadd(low, high)
        return builder.extract_element(lanes, ir.Constant(ir.IntType(32), 0))

    return types.float32(array_at, row), generate


@intrinsic
def stand_alone(_context):
    """Compile this function once instead of inlining it into each caller, with 512-bit vectors where available.

    Compilers stop at 256 to avoid lower clock rates. The attribute is a hint: narrower machines ignore it.
    """

    def generate(context, builder, _signature, _arguments):
        for argument in builder.function.args:
            if isinstance(argument.type, ir.PointerType):
                argument.add_attribute("noalias")
        attributes = builder.function.attributes
        attributes.add("noinline")
        set.add(attributes, '"prefer-vector-width"="512"')  # its own add() refuses attributes with a value
        return context.get_dummy_value()

    return types.none(), generate


ROUND = np.float32(1.5 * 2**23 + 127)
ROUND_HIGHEST = np.float32(1.5 * 2**23 + 255)
LOWEST = np.float32(-127)
E1, E2, E3, E4, E5, E6 = (
    np.float32(value) for value in (0.69314718, 0.24022651, 0.05550357, 0.009618031, 0.0013390867, 0.00015469742)
)  # minimax of (2^f - 1) / f on [-1/2, 1/2], to 7e-9: exact at 0, so that decays near 1 lose nothing
L0, L1, L2, L3, L4 = (np.float32(value) for value in (2.0, 0.66666317, 0.40024909, 0.27960601, 0.28178334))
# minimax of 2 artanh(s) / s in s^2 on [0, 1/9], to 4e-9


@part
def exp2(x):
    """2^x: 0 below -126.5, infinity from 127.5 on, NaN for NaN.

    Adding 1.5 * 2^23 rounds to an integer, which the sum's last bits then hold: shifted, they are the exponent.
    """
    x = LOWEST if x < LOWEST else x
    shifted = np.float32(x + ROUND)
    shifted = ROUND_HIGHEST if shifted > ROUND_HIGHEST else shifted
    f = x - (shifted - ROUND)
    power = np.float32(np.int32(np.int32(np.float32(shifted).view(np.int32)) << np.int32(23)).view(np.float32))
    return fma(f, fma(f, fma(f, fma(f, fma(f, fma(f, E6, E5), E4), E3), E2), E1), ONE) * power


@part
def sigmoid(x):
    """1 / (1 + e^-x), with no loss of digits on either side."""
    e = exp2(-LOG2_E * abs(x))
    return (ONE if x >= ZERO else e) / (ONE + e)


@part
def softplus(x):
    """log(1 + e^x) as max(x, 0) + log1p(e^-|x|), where log1p(e) = 2 artanh(e / (2 + e))."""
    e = exp2(-LOG2_E * abs(x))
    s = e / (TWO + e)
    v = s * s
    return fma(s, fma(v, fma(v, fma(v, fma(v, L4, L3), L2), L1), L0), x if x > ZERO else ZERO)


@part
def widened_half(bits):
    """float16 bits in an int16, as float32. Subnormals are converted as integers, unaffected by flushing to zero."""
    bits = np.int32(bits)
    magnitude = np.int32(bits & np.int32(0x7FFF))
    extra = np.int32(0x38000000) if magnitude < np.int32(0x7C00) else np.int32(0x70000000)  # the bias, or infinity
    normal = np.float32(np.int32((magnitude << np.int32(13)) + extra).view(np.float32))
    value = np.float32(magnitude) * np.float32(2**-24) if magnitude < np.int32(0x400) else normal
    return -value if bits < np.int32(0) else value


@part
def narrowed_half(value):
    """A float32 rounded to float16, to nearest and ties to even, as the bits of an int16."""
    bits = np.int32(np.float32(value).view(np.int32))
    magnitude = np.int32(bits & np.int32(0x7FFFFFFF))
    odd = np.int32((magnitude >> np.int32(13)) & np.int32(1))
    half = np.int32((magnitude - np.int32(0x38000000) + np.int32(0xFFF) + odd) >> np.int32(13))
    tiny = np.float32(np.float32(magnitude.view(np.float32)) + HALF)  # its last bits count in units of 2^-24
    half = np.int32(tiny.view(np.int32)) - np.int32(0x3F000000) if magnitude < np.int32(0x38800000) else half
    half = np.int32(0x7C00) if magnitude >= np.int32(0x477FF000) else half
    half = np.int32(0x7E00) if magnitude > np.int32(0x7F800000) else half
    return np.int16(np.int32(half) | ((bits >> np.int32(16)) & np.int32(0x8000)))


@part
def widened_bfloat(bits):
    """bfloat16 bits in an int16, as float32: its upper half."""
    return np.float32(np.int32(np.int32(bits) << np.int32(16)).view(np.float32))


@part
def narrowed_bfloat(value):
    """A float32 rounded to bfloat16, to nearest and ties to even, as the bits of an int16."""
    bits = np.int32(np.float32(value).view(np.int32))
    odd = np.int32((bits >> np.int32(16)) & np.int32(1))
    rounded = np.int32((bits + np.int32(0x7FFF) + odd) >> np.int32(16))
    return np.int16(rounded if value == value else np.int32(0x7FC0))


@part
def read(operands, which, tile, target_at, field, fields, width):
    """A tile of an operand as float32 into a field of a (T, fields, width), zero beyond the last channel."""
    stand_alone()
    b, start, length, first, count = tile
    address, code, along_b, along_t, along_d = operands[which]
    size = 4 if code == FLOAT32 else 2
    address += (b * along_b + start * along_t + first * along_d) * size
    for t in range(length):
        target = carray(floats(target_at + 4 * (t * fields + field) * width), (width,))
        place = address + t * along_t * size
        if code == FLOAT32:
            numbers = carray(floats(place), (count * along_d,))
            if along_d == 1:
                for w in range(count):
                    target[w] = numbers[w]
            else:
                for w in range(count):
                    target[w] = numbers[w * along_d]
        elif code == BFLOAT16:
            bits = carray(halves(place), (count * along_d,))
            for w in range(count):
                target[w] = widened_bfloat(bits[w * along_d])
        else:
            bits = carray(halves(place), (count * along_d,))
            for w in range(count):
                target[w] = widened_half(bits[w * along_d])
        for w in range(count, width):
            target[w] = ZERO


@part
def write(operands, which, tile, source_at, field, fields, width):
    """The inverse of ``read``, to an operand whose channels are contiguous."""
    stand_alone()
    b, start, length, first, count = tile
    address, code, along_b, along_t, _ = operands[which]
    size = 4 if code == FLOAT32 else 2
    address += (b * along_b + start * along_t + first) * size
    for t in range(length):
        source = carray(floats(source_at + 4 * (t * fields + field) * width), (count,))
        place = address + t * along_t * size
        if code == FLOAT32:
            numbers = carray(floats(place), (count,))
            for w in range(count):
                numbers[w] = source[w]
        else:
            bits = carray(halves(place), (count,))
            if code == BFLOAT16:
                for w in range(count):
                    bits[w] = narrowed_bfloat(source[w])
            else:
                for w in range(count):
                    bits[w] = narrowed_half(source[w])


@part
def prepare_rows(tile, fresh, softplus_on, vectors_at, rows_at):
    """The step sizes of a tile, dt u, and the skip D u as the initial y."""
    stand_alone()
    b, start, length, _, _ = tile
    vectors = carray(vectors_at, (VECTORS, W))
    rows = carray(rows_at, (T, ROWS, W))
    for t in range(length):
        for w in range(W):
            u = rows[t, U, w]
            raw = rows[t, RAW, w] + vectors[BIAS, w]
            dt = softplus(raw) if softplus_on else raw
            rows[t, RAW, w] = raw
            rows[t, DT, w] = dt
            rows[t, STEP, w] = dt
            rows[t, DRIVE, w] = dt * u
            rows[t, Y, w] = vectors[SKIP, w] * u
        if fresh[b, start + t]:
            for w in range(W):
                rows[t, STEP, w] = ZERO


@part
def scan_tile(tile, fresh, n_states, maps_at, rows_at, states_at):
    """Advance the states of a tile, and add C h to y."""
    stand_alone()
    b, start, length, _, _ = tile
    maps = carray(maps_at, (T, MAPS, n_states))
    rows = carray(rows_at, (T, ROWS, W))
    states = carray(states_at, (n_states, CHANNEL, W))
    for t in range(length):
        if fresh[b, start + t]:
            for n in range(n_states):
                for w in range(W):
                    states[n, STATE, w] = ZERO
        for n in range(n_states):
            b_n, c_n = maps[t, TO_B, n], maps[t, TO_C, n]
            for w in range(W):
                a = exp2(rows[t, STEP, w] * states[n, RATE, w])
                h = fma(a, states[n, STATE, w], rows[t, DRIVE, w] * b_n)
                states[n, STATE, w] = h
                rows[t, Y, w] = fma(c_n, h, rows[t, Y, w])


@part
def rescan_tile(tile, fresh, n_states, first_state, end_state, maps_at, rows_at, states_at, cells_at, sums_at):
    """``scan_tile`` for at most S states, saving what the backward pass needs; also adds to the gradient of C."""
    stand_alone()
    b, start, length, _, _ = tile
    maps = carray(maps_at, (T, MAPS, n_states))
    rows = carray(rows_at, (T, ROWS, W))
    states = carray(states_at, (n_states, CHANNEL, W))
    cells = carray(cells_at, (T, S, CELL, W))
    sums = carray(sums_at, (T, n_states, SUMS, W))
    for t in range(length):
        if fresh[b, start + t]:
            for n in range(first_state, end_state):
                for w in range(W):
                    states[n, STATE, w] = ZERO
        for n in range(first_state, end_state):
            b_n, c_n = maps[t, TO_B, n], maps[t, TO_C, n]
            for w in range(W):
                a = exp2(rows[t, STEP, w] * states[n, RATE, w])
                before = states[n, STATE, w]
                h = fma(a, before, rows[t, DRIVE, w] * b_n)
                cells[t, n - first_state, H_BEFORE, w] = before
                cells[t, n - first_state, A_BAR, w] = a
                states[n, STATE, w] = h
                rows[t, Y, w] = fma(c_n, h, rows[t, Y, w])
                sums[t, n, SUM_C, w] = fma(rows[t, DY, w], h, sums[t, n, SUM_C, w])


@part
def rewind_tile(tile, fresh, n_states, first_state, end_state, maps_at, rows_at, states_at, cells_at, sums_at):
    """The gradients of at most S states of a tile, from its last position to its first."""
    stand_alone()
    b, start, length, _, _ = tile
    maps = carray(maps_at, (T, MAPS, n_states))
    rows = carray(rows_at, (T, ROWS, W))
    states = carray(states_at, (n_states, CHANNEL, W))
    cells = carray(cells_at, (T, S, CELL, W))
    sums = carray(sums_at, (T, n_states, SUMS, W))
    for t in range(length - 1, -1, -1):
        for n in range(first_state, end_state):
            b_n, c_n = maps[t, TO_B, n], maps[t, TO_C, n]
            for w in range(W):
                g = fma(rows[t, DY, w], c_n, states[n, CARRY, w])
                sums[t, n, SUM_B, w] = fma(g, rows[t, DRIVE, w], sums[t, n, SUM_B, w])
                rows[t, D_DRIVE, w] = fma(g, b_n, rows[t, D_DRIVE, w])
                carry = g * cells[t, n - first_state, A_BAR, w]
                by_exponent = carry * cells[t, n - first_state, H_BEFORE, w]
                states[n, CARRY, w] = carry
                rows[t, D_STEP, w] = fma(by_exponent, states[n, RATE, w], rows[t, D_STEP, w])
                states[n, D_RATE, w] = fma(by_exponent, rows[t, STEP, w], states[n, D_RATE, w])
        if fresh[b, start + t]:
            for n in range(first_state, end_state):
                for w in range(W):
                    states[n, CARRY, w] = ZERO


@part
def gate(tile, rows_at):
    """y silu(z)."""
    stand_alone()
    rows = carray(rows_at, (T, ROWS, W))
    for t in range(tile[2]):
        for w in range(W):
            rows[t, Y, w] *= rows[t, Z, w] * sigmoid(rows[t, Z, w])


@part
def prepare_gradients(tile, gated, rows_at):
    """The gradient of y from that of the output; and zeros where gradients will be summed."""
    stand_alone()
    rows = carray(rows_at, (T, ROWS, W))
    for t in range(tile[2]):
        for w in range(W):
            rows[t, D_DRIVE, w] = ZERO
            rows[t, D_STEP, w] = ZERO
        if gated:
            for w in range(W):
                rows[t, SIGMA_Z, w] = sigmoid(rows[t, Z, w])
                rows[t, D_OUT, w] = rows[t, DY, w]
                rows[t, DY, w] *= rows[t, Z, w] * rows[t, SIGMA_Z, w]


@part
def finish_gradients(tile, gated, softplus_on, vectors_at, d_vectors_at, rows_at):
    """Turn the rows of a tile into the gradients of z, u and delta, in place; add to those of D and delta_bias.

    The latter are summed over the tile first, in fields no longer needed, each row into the one before it: summed
    position by position, a long sequence would lose last digits against the sum so far. (Summing straight into row 0
    would prevent vectorisation, since the compiler cannot know that t is not 0.)
    """
    stand_alone()
    length = tile[2]
    vectors = carray(vectors_at, (VECTORS, W))
    d_vectors = carray(d_vectors_at, (VECTORS, W))
    rows = carray(rows_at, (T, ROWS, W))
    for t in range(length):
        if gated:
            for w in range(W):
                z, s = rows[t, Z, w], rows[t, SIGMA_Z, w]
                rows[t, Z, w] = rows[t, D_OUT, w] * rows[t, Y, w] * (s * fma(z, ONE - s, ONE))
        for w in range(W):
            u, dy, d_drive = rows[t, U, w], rows[t, DY, w], rows[t, D_DRIVE, w]
            d_dt = fma(rows[t, D_STEP, w], LN_2, d_drive * u)
            d_raw = d_dt * sigmoid(rows[t, RAW, w]) if softplus_on else d_dt
            rows[t, U, w] = fma(d_drive, rows[t, DT, w], dy * vectors[SKIP, w])
            rows[t, RAW, w] = d_raw
            rows[t, D_STEP, w] = d_raw
            rows[t, D_DRIVE, w] = dy * u
    for t in range(length - 1, 0, -1):
        for w in range(W):
            rows[t - 1, D_DRIVE, w] += rows[t, D_DRIVE, w]
            rows[t - 1, D_STEP, w] += rows[t, D_STEP, w]
    for w in range(W):
        d_vectors[SKIP, w] += rows[0, D_DRIVE, w]
        d_vectors[BIAS, w] += rows[0, D_STEP, w]


@part
def fold(length, n_states, sums_at, maps_at):
    """The gradients of B and C, each summed over its W channels; then the sums are set to zero."""
    stand_alone()
    maps = carray(maps_at, (T, MAPS, n_states))
    sums = carray(sums_at, (T, n_states, SUMS, W))
    for t in range(length):
        for n in range(n_states):
            maps[t, TO_B, n] = lane_sum(sums_at, (t * n_states + n) * SUMS + SUM_B)
            maps[t, TO_C, n] = lane_sum(sums_at, (t * n_states + n) * SUMS + SUM_C)
        for n in range(n_states):
            for which in range(SUMS):
                for w in range(W):
                    sums[t, n, which, w] = ZERO


@part
def load_states(A, source, b, first, count, field, states_at):
    """Load channels first : first + count of ``source`` (Bt, D, N) into a field of a block's states, 0 beyond."""
    stand_alone()
    n_states = A.shape[1]
    states = carray(states_at, (n_states, CHANNEL, W))
    for n in range(n_states):
        for w in range(W):
            inside = w < count
            states[n, RATE, w] = A[first + w, n] * LOG2_E if inside else ZERO
            states[n, field, w] = source[b, first + w, n] if inside else ZERO
            states[n, D_RATE, w] = ZERO


@part
def store_states(target, b, first, count, field, states_at):
    """The inverse of ``load_states``, into ``target`` (Bt, D, N)."""
    stand_alone()
    n_states = target.shape[2]
    states = carray(states_at, (n_states, CHANNEL, W))
    for w in range(count):
        for n in range(n_states):
            target[b, first + w, n] = states[n, field, w]


@part
def copy_states(n_states, source_at, source_pitch, target_at, target_pitch):
    """Copy rows of W states between a block's states and the saved ones."""
    stand_alone()
    source = carray(source_at, (n_states, source_pitch))
    target = carray(target_at, (n_states, target_pitch))
    for n in range(n_states):
        for w in range(W):
            target[n, w] = source[n, w]


@part
def fill_zero(array_at, size):
    """Fill an array with zeros."""
    stand_alone()
    array = carray(array_at, (size,))
    for i in range(size):
        array[i] = ZERO


@part
def scratch_layout(n_states, n_blocks):
    """Offsets in the scratch buffer, in floats: of B and C, states, cells, sums, and of the end.

    The rows come first. The forward pass uses the buffer up to the end of the states.
    """
    maps = T * ROWS * W
    states = maps + (T * MAPS * n_states + 15) // 16 * 16
    cells = states + n_blocks * n_states * CHANNEL * W
    sums = cells + T * S * CELL * W
    return maps, states, cells, sums, sums + n_states * T * SUMS * W


@part
def block_of(group, block, channels):
    """First channel and number of channels of a block of a group (its first block, its number of blocks)."""
    first = (group[0] + block) * W
    return first, min(W, channels - first)


@part
def kept_states(saved_at, shape, group, b, start, block):
    """The saved states of a block before the tile at ``start``, in an array (Bt, tiles, blocks, N, W)."""
    length, channels, n_states = shape
    tiles, blocks = (length + T - 1) // T, (channels + W - 1) // W
    return floats(saved_at + 4 * (((b * tiles + start // T) * blocks + group[0] + block) * n_states * W))


@part
def forward_sequence(operands, vectors_at, A, fresh, state, saved_at, softplus_on, gated, scratch_at, b, group):
    """y of one sequence and of a group of blocks; ``state`` (Bt, D, N) is updated from the initial to the final.

    The states before each tile are saved unless ``saved_at`` is 0.
    """
    shape = length, channels, n_states = fresh.shape[1], state.shape[1], state.shape[2]
    maps_offset, states_offset, _, _, _ = scratch_layout(n_states, group[1])
    rows_at, maps_at = scratch_at, scratch_at + 4 * maps_offset
    rows, maps = floats(rows_at), floats(maps_at)
    states_at, pitch = scratch_at + 4 * states_offset, 4 * n_states * CHANNEL * W

    for block in range(group[1]):
        first, count = block_of(group, block, channels)
        load_states(A, state, b, first, count, STATE, floats(states_at + block * pitch))
    for start in range(0, length, T):
        span = min(T, length - start)
        read(operands, IN_B, (b, start, span, FIRST, n_states), maps_at, TO_B, MAPS, n_states)
        read(operands, IN_C, (b, start, span, FIRST, n_states), maps_at, TO_C, MAPS, n_states)
        for block in range(group[1]):
            first, count = block_of(group, block, channels)
            tile, states = (b, start, span, first, count), floats(states_at + block * pitch)
            if saved_at != 0:
                kept = kept_states(saved_at, shape, group, b, start, block)
                copy_states(n_states, floats(states_at + block * pitch + 4 * STATE * W), CHANNEL * W, kept, W)
            read(operands, IN_U, tile, rows_at, U, ROWS, W)
            read(operands, IN_DELTA, tile, rows_at, RAW, ROWS, W)
            prepare_rows(tile, fresh, softplus_on, floats(vectors_at + 4 * first * VECTORS), rows)
            scan_tile(tile, fresh, n_states, maps, rows, states)
            if gated:
                read(operands, IN_Z, tile, rows_at, Z, ROWS, W)
                gate(tile, rows)
            write(operands, OUT_Y, tile, rows_at, Y, ROWS, W)
    for block in range(group[1]):
        first, count = block_of(group, block, channels)
        store_states(state, b, first, count, STATE, floats(states_at + block * pitch))


@entry
def forward_task(operands, vectors_at, A, fresh, state, saved_at, softplus_on, gated, scratch_at, sequences, group):
    """``forward_sequence`` for a range of sequences, first and end."""
    for b in range(sequences[0], sequences[1]):
        forward_sequence(operands, vectors_at, A, fresh, state, saved_at, softplus_on, gated, scratch_at, b, group)


@part
def backward_sequence(
    operands, vectors_at, d_vectors_at, A, dA, fresh, carry, saved_at, softplus_on, gated, scratch_at, b, group, share
):
    """Every gradient of one sequence and of a group of blocks, from the last tile to the first.

    ``carry`` (Bt, D, N) is updated from the gradient of the final state to that of the initial state. dA (Bt, D, N) and
    the gradients of D and delta_bias (Bt, blocks, 2, W), which start at zero, are this sequence's; dB and dC, at
    ``share``, are this sequence's and these channels'.
    """
    shape = length, channels, n_states = fresh.shape[1], carry.shape[1], carry.shape[2]
    maps_offset, states_offset, cells_offset, sums_offset, _ = scratch_layout(n_states, group[1])
    rows_at, maps_at = scratch_at, scratch_at + 4 * maps_offset
    rows, maps, cells = floats(rows_at), floats(maps_at), floats(scratch_at + 4 * cells_offset)
    states_at, pitch = scratch_at + 4 * states_offset, 4 * n_states * CHANNEL * W
    width = (channels + W - 1) // W * W
    sums = floats(scratch_at + 4 * sums_offset)

    fill_zero(sums, n_states * T * SUMS * W)
    for block in range(group[1]):
        first, count = block_of(group, block, channels)
        load_states(A, carry, b, first, count, CARRY, floats(states_at + block * pitch))
    for start in range((length - 1) // T * T, -1, -T):
        span = min(T, length - start)
        read(operands, IN_B, (b, start, span, FIRST, n_states), maps_at, TO_B, MAPS, n_states)
        read(operands, IN_C, (b, start, span, FIRST, n_states), maps_at, TO_C, MAPS, n_states)
        for block in range(group[1]):
            first, count = block_of(group, block, channels)
            tile, states = (b, start, span, first, count), floats(states_at + block * pitch)
            kept = kept_states(saved_at, shape, group, b, start, block)
            copy_states(n_states, kept, W, floats(states_at + block * pitch + 4 * STATE * W), CHANNEL * W)
            read(operands, IN_U, tile, rows_at, U, ROWS, W)
            read(operands, IN_DELTA, tile, rows_at, RAW, ROWS, W)
            read(operands, IN_DY, tile, rows_at, DY, ROWS, W)
            if gated:
                read(operands, IN_Z, tile, rows_at, Z, ROWS, W)
            prepare_rows(tile, fresh, softplus_on, floats(vectors_at + 4 * first * VECTORS), rows)
            prepare_gradients(tile, gated, rows)
            for n in range(0, n_states, S):
                end = min(n + S, n_states)
                rescan_tile(tile, fresh, n_states, n, end, maps, rows, states, cells, sums)
                rewind_tile(tile, fresh, n_states, n, end, maps, rows, states, cells, sums)
            vectors, d_vectors = vectors_at + 4 * first * VECTORS, d_vectors_at + 4 * (b * width + first) * VECTORS
            finish_gradients(tile, gated, softplus_on, floats(vectors), floats(d_vectors), rows)
            write(operands, OUT_U, tile, rows_at, U, ROWS, W)
            write(operands, OUT_DELTA, tile, rows_at, RAW, ROWS, W)
            if gated:
                write(operands, OUT_Z, tile, rows_at, Z, ROWS, W)
        fold(span, n_states, sums, maps)
        write(operands, OUT_B, (share, start, span, FIRST, n_states), maps_at, TO_B, MAPS, n_states)
        write(operands, OUT_C, (share, start, span, FIRST, n_states), maps_at, TO_C, MAPS, n_states)
    for block in range(group[1]):
        first, count = block_of(group, block, channels)
        store_states(carry, b, first, count, CARRY, floats(states_at + block * pitch))
        store_states(dA, b, first, count, D_RATE, floats(states_at + block * pitch))


@entry
def backward_task(
    operands,
    vectors_at,
    d_vectors_at,
    A,
    dA,
    fresh,
    carry,
    saved_at,
    softplus_on,
    gated,
    scratch_at,
    sequences,
    group,
    shares,
):
    """``backward_sequence`` for a range of sequences, first and end; ``shares`` is the group's first share."""
    for b in range(sequences[0], sequences[1]):
        backward_sequence(
            operands,
            vectors_at,
            d_vectors_at,
            A,
            dA,
            fresh,
            carry,
            saved_at,
            softplus_on,
            gated,
            scratch_at,
            b,
            group,
            shares + b,
        )
