"""The fused causal convolution in Triton.

A program has R runs of T positions and C channels. A thread walks along the positions of its runs with the last
inputs in registers, so each input is read once (except the few around a run) and each silu is computed once. Runs are
numbered over all sequences of the batch.

Symbols (the rest as in ``reference.py``):

    R, T, C     runs of a program, positions of a run, channels of a program
    U           positions whose loads are issued together
    t0          (R, 1) the first position of each run
    window      tuple of the K inputs that position t needs, (R, C) each, the current last
    linked      tuple over the lags 1 .. K - 1, (R, 1) each: whether positions t and t - lag are of one sequence
    a           (R, C) the sum before the activation
    g           (R, C) gradient of the loss w.r.t. a
    pending     tuple of the gradients of the inputs of the window, (R, C) each, summed over positions up to t
"""

# Triton compiles neither starred tuples nor a choice between tuples of different types.

import triton
import triton.language as tl


@triton.jit
def _place(column_blocks, batch, length, channels, runs, T: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    """The program's number along time; sequence and t0 (R, 1); channel (1, C); which runs and channels exist."""
    block = tl.program_id(0) // column_blocks
    run = block * R + tl.arange(0, R)[:, None]
    channel = (tl.program_id(0) % column_blocks) * C + tl.arange(0, C)[None, :]
    b = (run // runs).to(tl.int64)  # offsets in a tensor may need 64 bits
    t0 = (run % runs) * T
    return block, b, t0, channel, run < batch * runs, channel < channels


@triton.jit
def _parameters(weight_ptr, w_d, w_k, bias_ptr, channel, exists, K: tl.constexpr):
    """The taps as a tuple and the bias, (1, C) each."""
    taps = ()
    for k in tl.static_range(K):
        taps = taps + (tl.load(weight_ptr + channel * w_d + k * w_k, mask=exists, other=0).to(tl.float32),)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + channel, mask=exists, other=0).to(tl.float32)
    else:
        bias = tl.zeros_like(taps[0])
    return taps, bias


@triton.jit
def _inputs_before(x_at, x_t, state_ptr, s_b, s_t, b, t0, channel, exists, K: tl.constexpr):
    """The K - 1 inputs before each run, from the state if the run is its sequence's first."""
    window = ()
    for j in tl.static_range(K - 1):
        t = t0 + (j - (K - 1))
        x = tl.load(x_at + (j - (K - 1)) * x_t, mask=exists & (t >= 0), other=0).to(tl.float32)
        if state_ptr is not None:
            state_at = state_ptr + b * s_b + (t + (K - 1)) * s_t + channel
            x += tl.load(state_at, mask=exists & (t < 0), other=0).to(tl.float32)
        window = window + (x,)
    return window


@triton.jit
def _advance(linked, seq_at, q_t, t, length, exists, K: tl.constexpr):
    """linked for position t from that for t - 1."""
    inside = exists & (t >= 1) & (t < length)
    here = tl.load(seq_at + t * q_t, mask=inside, other=0)
    before = tl.load(seq_at + (t - 1) * q_t, mask=inside, other=0)
    goes_on = here == before
    new = ()
    for j in tl.static_range(K - 1):
        if j == 0:
            new = new + (goes_on,)
        else:
            new = new + (goes_on & linked[j - 1],)
    return new


@triton.jit
def _linked_before(seq_at, q_t, t0, length, exists, K: tl.constexpr):
    """linked for position t0 - 1, as far back as the first input of the window."""
    linked = ()
    for _ in tl.static_range(K - 1):
        linked = linked + (t0 >= 0,)
    for j in tl.static_range(K - 2):
        linked = _advance(linked, seq_at, q_t, t0 + (j - (K - 2)), length, exists, K)
    return linked


@triton.jit
def _seen(window, linked, PACKED: tl.constexpr, K: tl.constexpr):
    """The window without inputs of earlier sequences."""
    seen = ()
    for k in tl.static_range(K):
        if PACKED and k < K - 1:
            seen = seen + (tl.where(linked[K - 2 - k], window[k], 0.0),)
        else:
            seen = seen + (window[k],)
    return seen


@triton.jit
def _sum_of_taps(seen, taps, bias, K: tl.constexpr):
    a = bias + taps[0] * seen[0]
    for k in tl.static_range(1, K):
        a += taps[k] * seen[k]
    return a


@triton.jit
def forward_kernel(
    y_ptr,
    x_ptr, x_b, x_t, weight_ptr, w_d, w_k, bias_ptr, state_ptr, s_b, s_t, seq_ptr, q_b, q_t,
    batch, length, channels, runs, column_blocks,
    K: tl.constexpr, SILU: tl.constexpr, T: tl.constexpr, U: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """y of one program's runs; strides are in elements; channels and y are contiguous."""
    PACKED: tl.constexpr = seq_ptr is not None
    _, b, t0, channel, run_exists, channel_exists = _place(column_blocks, batch, length, channels, runs, T, R, C)
    exists = run_exists & channel_exists
    taps, bias = _parameters(weight_ptr, w_d, w_k, bias_ptr, channel, channel_exists, K)
    x_t = tl.cast(x_t, tl.int64)
    x_at = x_ptr + b * x_b + t0 * x_t + channel
    y_at = y_ptr + (b * length + t0) * channels + channel
    window = _inputs_before(x_at, x_t, state_ptr, s_b, s_t, b, t0, channel, exists, K)
    linked = ()
    if PACKED:
        seq_at = seq_ptr + b * q_b
        linked = _linked_before(seq_at, q_t, t0, length, run_exists, K)
    for i in range(0, T, U):
        ahead = ()
        for u in tl.static_range(U):
            ahead = ahead + (tl.load(x_at + (i + u) * x_t, mask=exists & (t0 + i + u < length), other=0),)
        for u in tl.static_range(U):
            t = t0 + i + u
            window = window + (ahead[u].to(tl.float32),)
            if PACKED:
                linked = _advance(linked, seq_at, q_t, t, length, run_exists, K)
            a = _sum_of_taps(_seen(window, linked, PACKED, K), taps, bias, K)
            if SILU:
                a = a / (1.0 + tl.exp(-a))
            tl.store(y_at + (i + u) * channels, a.to(y_ptr.dtype.element_ty), mask=exists & (t < length))
            window = window[1:]


@triton.jit
def _zeros(count: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    zeros = ()
    for _ in tl.static_range(count):
        zeros = zeros + (tl.zeros([R, C], tl.float32),)
    return zeros


@triton.jit
def _differentiate(
    window, linked, pending, sums, taps, bias, dy, counted,
    PACKED: tl.constexpr, SILU: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Add position t's share: to the gradients of its window, and where ``counted`` to those of the taps."""
    seen = _seen(window, linked, PACKED, K)
    g = dy
    if SILU:
        a = _sum_of_taps(seen, taps, bias, K)
        sigma = 1.0 / (1.0 + tl.exp(-a))
        g = dy * sigma * (1.0 + a * (1.0 - sigma))
    if counted is not None:
        g_counted = tl.where(counted, g, 0.0)
    else:
        g_counted = g
    new_pending = ()
    new_sums = ()
    for k in tl.static_range(K):
        by_x = taps[k] * g
        if PACKED and k < K - 1:
            by_x = tl.where(linked[K - 2 - k], by_x, 0.0)
        if k < K - 1:
            by_x += pending[k]
        new_pending = new_pending + (by_x,)
        new_sums = new_sums + (sums[k] + g_counted * seen[k],)
    return new_pending, new_sums + (sums[K] + g_counted,)


@triton.jit
def backward_kernel(
    dx_ptr, dx_b, dx_t, d_state_ptr, partial_ptr, dy_ptr, dy_b, dy_t,
    x_ptr, x_b, x_t, weight_ptr, w_d, w_k, bias_ptr, state_ptr, s_b, s_t, seq_ptr, q_b, q_t,
    batch, length, channels, runs, column_blocks,
    K: tl.constexpr, SILU: tl.constexpr, T: tl.constexpr, U: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """dx of one program's runs, and its share of the gradients of taps and bias.

    The gradient of x_p is complete K - 1 positions later. So a run first walks its first K - 1 positions, whose share
    of the sums belongs to the run before it; only a sequence's first run counts them, and there they complete the
    gradients of the state. Written are partial (programs, K + 1, D) and, with a state, d_state (Bt, K - 1, D).
    """
    PACKED: tl.constexpr = seq_ptr is not None
    block, b, t0, channel, run_exists, channel_exists = _place(column_blocks, batch, length, channels, runs, T, R, C)
    exists = run_exists & channel_exists
    taps, bias = _parameters(weight_ptr, w_d, w_k, bias_ptr, channel, channel_exists, K)
    x_t, dy_t, dx_t = tl.cast(x_t, tl.int64), tl.cast(dy_t, tl.int64), tl.cast(dx_t, tl.int64)
    x_at = x_ptr + b * x_b + t0 * x_t + channel
    dy_at = dy_ptr + b * dy_b + t0 * dy_t + channel
    dx_at = dx_ptr + b * dx_b + t0 * dx_t + channel
    window = _inputs_before(x_at, x_t, state_ptr, s_b, s_t, b, t0, channel, exists, K)
    linked = ()
    if PACKED:
        seq_at = seq_ptr + b * q_b
        linked = _linked_before(seq_at, q_t, t0, length, run_exists, K)
    pending, sums = _zeros(K - 1, R, C), _zeros(K + 1, R, C)

    for j in tl.static_range(K - 1):
        inside = exists & (t0 + j < length)
        window = window + (tl.load(x_at + j * x_t, mask=inside, other=0).to(tl.float32),)
        dy = tl.load(dy_at + j * dy_t, mask=inside, other=0).to(tl.float32)
        if PACKED:
            linked = _advance(linked, seq_at, q_t, t0 + j, length, run_exists, K)
        pending, sums = _differentiate(window, linked, pending, sums, taps, bias, dy, t0 == 0, PACKED, SILU, K)
        if d_state_ptr is not None:
            d_state_at = d_state_ptr + (b * (K - 1) + j) * channels + channel
            tl.store(d_state_at, pending[0].to(d_state_ptr.dtype.element_ty), mask=exists & (t0 == 0))
        window, pending = window[1:], pending[1:]

    for i in range(0, T, U):
        ahead = ()
        dy_ahead = ()
        for u in tl.static_range(U):
            step = i + u + (K - 1)
            inside = exists & (t0 + step < length)
            ahead = ahead + (tl.load(x_at + step * x_t, mask=inside, other=0),)
            dy_ahead = dy_ahead + (tl.load(dy_at + step * dy_t, mask=inside, other=0),)
        for u in tl.static_range(U):
            window = window + (ahead[u].to(tl.float32),)
            dy = dy_ahead[u].to(tl.float32)
            if PACKED:
                linked = _advance(linked, seq_at, q_t, t0 + i + u + (K - 1), length, run_exists, K)
            pending, sums = _differentiate(window, linked, pending, sums, taps, bias, dy, None, PACKED, SILU, K)
            done = exists & (t0 + i + u < length)
            tl.store(dx_at + (i + u) * dx_t, pending[0].to(dx_ptr.dtype.element_ty), mask=done)
            window, pending = window[1:], pending[1:]

    for k in tl.static_range(K + 1):
        share_at = partial_ptr + (block * (K + 1) + k).to(tl.int64) * channels + channel
        tl.store(share_at, tl.sum(sums[k], axis=0, keep_dims=True), mask=channel_exists)


@triton.jit
def sum_partial_kernel(
    d_weight_ptr, d_bias_ptr, partial_ptr, programs, channels,
    K: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """d_weight (D, K) and d_bias (D,) from the programs' shares (programs, K + 1, D), summed in one fixed order."""
    k = tl.program_id(1)
    channel = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.arange(0, ROWS)[:, None]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, programs, ROWS):
        at = partial_ptr + ((first + row) * (K + 1) + k).to(tl.int64) * channels + channel[None, :]
        total += tl.load(at, mask=(first + row < programs) & (channel < channels)[None, :], other=0)
    share = tl.sum(total, axis=0)
    if k < K:
        tl.store(d_weight_ptr + channel * K + k, share.to(d_weight_ptr.dtype.element_ty), mask=channel < channels)
    elif d_bias_ptr is not None:
        tl.store(d_bias_ptr + channel, share.to(d_bias_ptr.dtype.element_ty), mask=channel < channels)
