"""The loops of the fused causal convolution on a CPU, compiled by Numba.

Channels are the vector axis, and every innermost loop runs over W of them. A tile of positions is copied to scratch
rows as float32, whatever its dtype, and processed there, in the first-level cache; only results go back to memory. Taps
are handled in fours, so that one pass over a row makes all products of the usual widths; a shorter filter is padded
with zeros for its earliest taps.

Tensors are passed as addresses: code without arrays compiles in a fraction of the time, and rows of constant length,
aligned to cache lines, become straight vector code.

Symbols (the rest as in ``reference.py``):

    W, T    channels of a block, positions of a tile
    H       rows before a tile that its positions see: lags - 1
    lags    K rounded up to a multiple of 4
    n       channels of a block that exist
    reach   how many positions before t belong to its sequence, at most H
    a, g    the sum before the activation, and the gradient of the loss w.r.t. it
    ..._at  the address of a row
"""

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic, overload

W, T = 64, 16
ROW = 4 * W  # bytes

compiled = njit(cache=True, nogil=True, error_model="numpy")
"""No fast-math: if the compiler may choose what to fuse, cached code can differ from fresh code (hence ``fma``)."""

ZERO, ONE = np.float32(0), np.float32(1)
LOG2_E = np.float32(1.4426950408889634)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
LOWEST, HIGHEST = np.float32(-88.8), np.float32(87)
ROUND = np.float32(1.5 * 2**23)  # added and taken off again, it leaves the nearest integer
E2, E3, E4, E5, E6 = (np.float32(1 / factorial) for factorial in (2, 6, 24, 120, 720))


@intrinsic
def pointer(_context, address, element):
    """An address as a pointer to numbers of the type ``element``."""
    kind = types.CPointer(element.dtype)

    def generate(context, builder, _signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(kind))

    return kind(types.int64, element), generate


@intrinsic
def fma(_context, a, b, c):
    """a b + c, rounded once where the processor can: the one place where a product and a sum fuse."""

    def generate(_context, builder, _signature, arguments):
        number = ir.FloatType()
        fuse = builder.module.declare_intrinsic("llvm.fmuladd", [number], ir.FunctionType(number, [number] * 3))
        return builder.call(fuse, arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


@intrinsic
def prefer_wide_vectors(_context):
    """Let this function use 512-bit vectors where available; compilers stop at 256 to avoid lower clock rates."""

    def generate(context, builder, _signature, _arguments):
        attributes = builder.function.attributes
        if isinstance(attributes, set):  # llvmlite's own add() refuses attributes with a value
            set.add(attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.none(), generate


@intrinsic
def half_to_float(_context, bits):
    """The float32 of a float16's bits: one instruction, which Numba does not offer."""

    def generate(_context, builder, _signature, arguments):
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic
def float_to_half(_context, value):
    """The bits of a float32 rounded to float16."""

    def generate(_context, builder, _signature, arguments):
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), generate


def widened(value):
    """A float32 from an element in memory: float32 itself, bfloat16 as an int16, float16 as a uint16."""
    raise NotImplementedError("compiled code only")


@overload(widened, inline="always")
def _widened(value):
    if value == types.int16:
        return lambda value: np.int32(np.int32(value) << np.int32(16)).view(np.float32)
    if value == types.uint16:
        return lambda value: half_to_float(value)
    return lambda value: value


def put(row, w, value):
    """Store a float32 in a row of memory, rounded to nearest, ties to even."""
    raise NotImplementedError("compiled code only")


@overload(put, inline="always")
def _put(row, w, value):
    if row.dtype == types.int16:

        def put_bfloat(row, w, value):
            bits = np.float32(value).view(np.int32)
            odd = (bits >> np.int32(16)) & np.int32(1)
            rounded = np.int32(bits + np.int32(0x7FFF) + odd) >> np.int32(16)
            row[w] = np.int16(rounded if value == value else np.int32(0x7FC0))

        return put_bfloat
    if row.dtype == types.uint16:

        def put_half(row, w, value):
            row[w] = float_to_half(value)

        return put_half

    def put_float(row, w, value):
        row[w] = value

    return put_float


@compiled
def sigmoid(a):
    """1 / (1 + exp(-a)), to 2e-7; 0 below -88.4, where the power of two is infinite."""
    a = LOWEST if a < LOWEST else a
    a = HIGHEST if a > HIGHEST else a
    shifted = fma(-a, LOG2_E, ROUND)
    power = shifted - ROUND
    f = fma(-power, LN2_LOW, fma(-power, LN2_HIGH, -a))
    scale = np.int32(np.int32(np.float32(shifted).view(np.int32) + np.int32(127)) << np.int32(23)).view(np.float32)
    e = fma(f, fma(f, fma(f, fma(f, fma(f, fma(f, E6, E5), E4), E3), E2), ONE), ONE)
    return ONE / fma(scale, e, ONE)


@compiled
def row_at(address):
    """The scratch row (W,) at an address."""
    return carray(pointer(address, np.float32), (W,))


@compiled
def four_rows_at(address):
    """Four scratch rows (4, W) from an address on."""
    return carray(pointer(address, np.float32), (4, W))


@compiled
def zero_rows(at, count):
    """Fill scratch rows with zeros."""
    for t in range(count):
        row = row_at(at + t * ROW)
        for w in range(W):
            row[w] = ZERO


@compiled
def move_rows(to, at, count):
    """Copy scratch rows, in ascending order."""
    for t in range(count):
        source, target = row_at(at + t * ROW), row_at(to + t * ROW)
        for w in range(W):
            target[w] = source[w]


@compiled
def read_rows(element, memory, stride, count, n, to):
    """Copy rows of memory to scratch rows as float32, zeros for channels that do not exist."""
    prefer_wide_vectors()
    for t in range(count):
        source, target = carray(pointer(memory + t * stride, element), (n,)), row_at(to + t * ROW)
        for w in range(n):
            target[w] = widened(source[w])
        for w in range(n, W):
            target[w] = ZERO


@compiled
def write_rows(element, memory, stride, count, n, at):
    """Copy the channels that exist from scratch rows to memory."""
    prefer_wide_vectors()
    for t in range(count):
        source, target = row_at(at + t * ROW), carray(pointer(memory + t * stride, element), (n,))
        for w in range(n):
            put(target, w, source[w])


@compiled
def sum_of_taps(a_at, x_at, taps_at, bias_at, lags, reach):
    """a of one position; arguments are addresses of the position's rows, for the taps of the first row."""
    prefer_wide_vectors()
    a, bias = row_at(a_at), row_at(bias_at)
    if reach + 1 < lags:
        for w in range(W):
            a[w] = bias[w]
        for lag in range(reach + 1):
            x, tap = row_at(x_at - lag * ROW), row_at(taps_at + lag * ROW)
            for w in range(W):
                a[w] = fma(tap[w], x[w], a[w])
        return
    x, taps = four_rows_at(x_at - 3 * ROW), four_rows_at(taps_at)
    for w in range(W):
        recent = fma(taps[1, w], x[2, w], fma(taps[0, w], x[3, w], bias[w]))
        a[w] = fma(taps[3, w], x[0, w], fma(taps[2, w], x[1, w], recent))
    for lag in range(4, lags, 4):
        x, taps = four_rows_at(x_at - (lag + 3) * ROW), four_rows_at(taps_at + lag * ROW)
        for w in range(W):
            recent = fma(taps[1, w], x[2, w], fma(taps[0, w], x[3, w], a[w]))
            a[w] = fma(taps[3, w], x[0, w], fma(taps[2, w], x[1, w], recent))


@compiled
def activate(a_at):
    """y in place of a."""
    prefer_wide_vectors()
    a = row_at(a_at)
    for w in range(W):
        a[w] *= sigmoid(a[w])


@compiled
def differentiate_activation(g_at, a_at):
    """g in place of dy."""
    prefer_wide_vectors()
    a, g = row_at(a_at), row_at(g_at)
    for w in range(W):
        s = sigmoid(a[w])
        g[w] *= s * fma(a[w], ONE - s, ONE)


@compiled
def differentiate_sum(dx_at, d_taps_at, g_at, x_at, taps_at, lags, reach):
    """Add one position's share, from g, to the gradients of its inputs, the taps and, stored after them, the bias."""
    prefer_wide_vectors()
    g, d_bias = row_at(g_at), row_at(d_taps_at + lags * ROW)
    for w in range(W):
        d_bias[w] += g[w]
    if reach + 1 < lags:
        for lag in range(reach + 1):
            dx, x = row_at(dx_at - lag * ROW), row_at(x_at - lag * ROW)
            d_tap, tap = row_at(d_taps_at + lag * ROW), row_at(taps_at + lag * ROW)
            for w in range(W):
                dx[w] = fma(tap[w], g[w], dx[w])
            for w in range(W):
                d_tap[w] = fma(g[w], x[w], d_tap[w])
        return
    for lag in range(0, lags, 4):
        dx, x = four_rows_at(dx_at - (lag + 3) * ROW), four_rows_at(x_at - (lag + 3) * ROW)
        d_taps, taps = four_rows_at(d_taps_at + lag * ROW), four_rows_at(taps_at + lag * ROW)
        for w in range(W):
            dx[0, w] = fma(taps[3, w], g[w], dx[0, w])
            dx[1, w] = fma(taps[2, w], g[w], dx[1, w])
            dx[2, w] = fma(taps[1, w], g[w], dx[2, w])
            dx[3, w] = fma(taps[0, w], g[w], dx[3, w])
        for w in range(W):
            d_taps[0, w] = fma(g[w], x[3, w], d_taps[0, w])
            d_taps[1, w] = fma(g[w], x[2, w], d_taps[1, w])
            d_taps[2, w] = fma(g[w], x[1, w], d_taps[2, w])
            d_taps[3, w] = fma(g[w], x[0, w], d_taps[3, w])


@compiled
def next_reach(seq_idx, b, t, length, reach, history):
    """reach of position t from that of the one before; the state belongs to position 0's sequence."""
    if t == 0:
        return history
    if seq_idx != 0:
        numbers = carray(pointer(seq_idx, np.int64), ((b + 1) * length,))
        if numbers[b * length + t] != numbers[b * length + t - 1]:
            return 0
    return min(reach + 1, history)


@compiled
def read_inputs_before(element, size, state, b, context, channels, first, n, to, history):
    """Fill ``history`` rows with the inputs before position 0: the state, or zeros without one."""
    zero_rows(to, history)
    if state != 0:
        memory = state + (b * context * channels + first) * size
        read_rows(element, memory, channels * size, context, n, to + (history - context) * ROW)


@compiled
def forward(element, y, x, taps, bias, state, context, seq_idx, shape, silu, work, tasks):
    """y of the tasks in a range; a task is a group of sequences and a few blocks of channels side by side.

    Args:
        element, shape: the type of the numbers in memory; (bytes of one, batch, length, channels, lags).
        y, state, seq_idx: addresses, 0 for None.
        x: address, and strides in bytes.
        taps, bias: addresses of a row of taps for each block and lag, and of a row of biases for each block.
        work: address of the scratch rows.
        tasks: (groups, blocks of a task, first task, end).
    """
    (x_0, x_b, x_t), (size, batch, length, channels, lags), (groups, blocks, begin, end) = x, shape, tasks
    history = lags - 1
    a_at, xs_at = work, work + T * ROW
    for task in range(begin, end):
        group, left = task % groups, (task // groups) * blocks
        for b in range(group * batch // groups, (group + 1) * batch // groups):
            last = 0
            for t0 in range(0, length, T):
                count = min(T, length - t0)
                reach = last
                for block in range(left, min(left + blocks, (channels + W - 1) // W)):
                    first, n, reach = block * W, min(W, channels - block * W), last
                    front = xs_at + (block - left) * (history + T) * ROW
                    x_at = front + history * ROW
                    if t0 == 0:
                        read_inputs_before(element, size, state, b, context, channels, first, n, front, history)
                    read_rows(element, x_0 + b * x_b + t0 * x_t + first * size, x_t, count, n, x_at)
                    for t in range(count):
                        row = t * ROW
                        reach = next_reach(seq_idx, b, t0 + t, length, reach, history)
                        sum_of_taps(a_at + row, x_at + row, taps + block * lags * ROW, bias + block * ROW, lags, reach)
                        if silu:
                            activate(a_at + row)
                    memory = y + ((b * length + t0) * channels + first) * size
                    write_rows(element, memory, channels * size, count, n, a_at)
                    move_rows(front, front + count * ROW, history)
                last = reach


@compiled
def backward(
    element, dx, d_state, shares, dy, x, taps, bias, state, context, seq_idx, shape, silu, work, tasks
):  # fmt: skip
    """dx, d_state and shares of the other gradients; arguments as in ``forward``.

    ``shares`` is zeros at first; each group and block adds to a row for each lag's taps and one for the bias.
    """
    (dy_0, dy_b, dy_t), (x_0, x_b, x_t) = dy, x
    (size, batch, length, channels, lags), (groups, blocks, begin, end) = shape, tasks
    history, all_blocks = lags - 1, (channels + W - 1) // W
    a_at, g_at, tiles_at = work, work + ROW, work + (1 + T) * ROW
    for task in range(begin, end):
        group, left = task % groups, (task // groups) * blocks
        for b in range(group * batch // groups, (group + 1) * batch // groups):
            last = 0
            for t0 in range(0, length, T):
                count = min(T, length - t0)
                reach = last
                for block in range(left, min(left + blocks, all_blocks)):
                    first, n, reach = block * W, min(W, channels - block * W), last
                    front = tiles_at + (block - left) * 2 * (history + T) * ROW
                    d_front = front + (history + T) * ROW
                    x_at, dx_at = front + history * ROW, d_front + history * ROW
                    taps_at, bias_at = taps + block * lags * ROW, bias + block * ROW
                    shares_at = shares + (group * all_blocks + block) * (lags + 1) * ROW
                    if t0 == 0:
                        read_inputs_before(element, size, state, b, context, channels, first, n, front, history)
                        zero_rows(d_front, history)
                    read_rows(element, x_0 + b * x_b + t0 * x_t + first * size, x_t, count, n, x_at)
                    read_rows(element, dy_0 + b * dy_b + t0 * dy_t + first * size, dy_t, count, n, g_at)
                    zero_rows(dx_at, count)
                    for t in range(count):
                        row = t * ROW
                        reach = next_reach(seq_idx, b, t0 + t, length, reach, history)
                        if silu:
                            sum_of_taps(a_at, x_at + row, taps_at, bias_at, lags, reach)
                            differentiate_activation(g_at + row, a_at)
                        differentiate_sum(dx_at + row, shares_at, g_at + row, x_at + row, taps_at, lags, reach)
                    done = count + history if t0 + count == length else count
                    place = (b, t0 - history, done, length, channels, first, n)
                    write_gradients(element, size, dx, d_state, context, place, d_front)
                    move_rows(front, front + count * ROW, history)
                    move_rows(d_front, d_front + count * ROW, history)
                last = reach


@compiled
def write_gradients(element, size, dx, d_state, context, place, at):
    """Store the gradients of the inputs at ``count`` positions from t on, those before 0 as gradients of the state."""
    b, t, count, length, channels, first, n = place
    before = min(max(-t, 0), count)
    skipped = min(max(-t - context, 0), before)  # inputs of taps that are zeros
    if d_state != 0:
        memory = d_state + ((b * context + t + skipped + context) * channels + first) * size
        write_rows(element, memory, channels * size, before - skipped, n, at + skipped * ROW)
    memory = dx + ((b * length + t + before) * channels + first) * size
    write_rows(element, memory, channels * size, count - before, n, at + before * ROW)
