"""The delta rule on a GPU, device code: the states from chunk to chunk, both ways, and the outputs.

Symbols in ``triton_parts.py``. q and k are the arguments, or by channel ``start q`` and ``end k``.
"""

import triton
import triton.language as tl

from seqlab.ops.delta_rule.triton_parts import SIZES, load_decay, scaled_rows
from seqlab.ops.ssd.triton_states import load_tile


@triton.jit(do_not_specialize=SIZES)
def walk_kernel(
    k_ptr, end_ptr, decay_ptr, W_ptr, U_ptr, initial_ptr, before_ptr, u_ptr, final_ptr, L, H, N, k_sb, k_st, k_sh,
    K: tl.constexpr, V: tl.constexpr, T: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, HAS_START: tl.constexpr,
    BY_CHANNEL: tl.constexpr, ERASE: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The state before each chunk, BV of its columns, and the corrections u; the state after the last.

    Grid (V / BV, H, Bt).
    """
    batch, head = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    t, c, n = tl.arange(0, T), tl.arange(0, BK), tl.program_id(0) * BV + tl.arange(0, BV)
    inside = (c[:, None] < K) & (n[None, :] < V)
    state_place = c[:, None] * V + n[None, :]
    k_ptr += batch * k_sb + head * k_sh
    S = tl.zeros([BK, BV], tl.float32)
    if HAS_START:
        S += tl.load(initial_ptr + (batch * H + head) * K * V + state_place, mask=inside, other=0.0)
    for chunk in range(N):
        here = tl.cast(chunk, tl.int64) * T
        rest, row, states = L - here, (batch * L + here) * H + head, (batch * N + chunk) * H + head
        tl.store(before_ptr + states * K * V + state_place, S, mask=inside)
        u = load_tile(U_ptr + row * V, H * V, t, n, rest, V, tl.float32)
        if ERASE > 0:
            W = load_tile(W_ptr + row * K, H * K, t, c, rest, K, DOT)  # (T, K)
            u -= tl.dot(W, S.to(DOT), input_precision=PRECISION)
        place = row * V + t[:, None] * (H * V) + n[None, :]
        tl.store(u_ptr + place, u, mask=(t[:, None] < rest) & (n[None, :] < V))
        u = scaled_rows(u, end_ptr + row, t, rest, H, BY_CHANNEL).to(DOT)
        k = load_tile(k_ptr + here * k_st, k_st, t, c, rest, K, DOT)
        S *= load_decay(decay_ptr + states * (K if BY_CHANNEL else 1), c, K, BY_CHANNEL)[:, None]
        S = tl.dot(tl.trans(k), u, acc=S, input_precision=PRECISION)
    tl.store(final_ptr + (batch * H + head) * K * V + state_place, S, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def walk_back_kernel(
    q_ptr, k_ptr, start_ptr, end_ptr, decay_ptr, qk_ptr, W_ptr, dy_ptr, d_final_ptr, after_ptr, du_ptr, d_initial_ptr,
    L, H, N, q_sb, q_st, q_sh, k_sb, k_st, k_sh, dy_sb, dy_st, dy_sh,
    K: tl.constexpr, V: tl.constexpr, T: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, HAS_START: tl.constexpr,
    BY_CHANNEL: tl.constexpr, ERASE: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of the state after each chunk, BV of its columns, and those of u; that of the initial state.

    Grid (V / BV, H, Bt).
    """
    batch, head = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    t, c, n = tl.arange(0, T), tl.arange(0, BK), tl.program_id(0) * BV + tl.arange(0, BV)
    inside = (c[:, None] < K) & (n[None, :] < V)
    state_place = c[:, None] * V + n[None, :]
    q_ptr += batch * q_sb + head * q_sh
    k_ptr += batch * k_sb + head * k_sh
    dy_ptr += batch * dy_sb + head * dy_sh
    dS = tl.zeros([BK, BV], tl.float32)
    if HAS_START:
        dS += tl.load(d_final_ptr + (batch * H + head) * K * V + state_place, mask=inside, other=0.0).to(tl.float32)
    for step in range(N):
        chunk = tl.cast(N - 1 - step, tl.int64)
        here = chunk * T
        rest, row, states = L - here, (batch * L + here) * H + head, (batch * N + chunk) * H + head
        tl.store(after_ptr + states * K * V + state_place, dS, mask=inside)
        k = load_tile(k_ptr + here * k_st, k_st, t, c, rest, K, DOT)  # (T, K)
        du = tl.dot(k, dS.to(DOT), input_precision=PRECISION)
        du = scaled_rows(du, end_ptr + row, t, rest, H, BY_CHANNEL)
        qk = load_tile(qk_ptr + row * T, H * T, t, t, rest, T, DOT)
        dy = load_tile(dy_ptr + here * dy_st, dy_st, t, n, rest, V, DOT)
        du = tl.dot(tl.trans(qk), dy, acc=du, input_precision=PRECISION)
        place = row * V + t[:, None] * (H * V) + n[None, :]
        tl.store(du_ptr + place, du, mask=(t[:, None] < rest) & (n[None, :] < V))
        q = load_tile(q_ptr + here * q_st, q_st, t, c, rest, K, DOT)
        dS *= load_decay(decay_ptr + states * (K if BY_CHANNEL else 1), c, K, BY_CHANNEL)[:, None]
        dy = scaled_rows(dy, start_ptr + row, t, rest, H, BY_CHANNEL).to(DOT)
        dS = tl.dot(tl.trans(q), dy, acc=dS, input_precision=PRECISION)
        if ERASE > 0:
            W = load_tile(W_ptr + row * K, H * K, t, c, rest, K, DOT)
            dS = tl.dot(tl.trans(W), (-du).to(DOT), acc=dS, input_precision=PRECISION)
    tl.store(d_initial_ptr + (batch * H + head) * K * V + state_place, dS, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def outputs_kernel(
    q_ptr, start_ptr, qk_ptr, before_ptr, u_ptr, y_ptr, L, H, N, q_sb, q_st, q_sh,
    K: tl.constexpr, V: tl.constexpr, T: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BY_CHANNEL: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y of one chunk, BV of its columns. Grid (N, V / BV H, Bt)."""
    chunk, batch = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    head, n = (tl.program_id(1) % H).to(tl.int64), tl.program_id(1) // H * BV + tl.arange(0, BV)
    t, here = tl.arange(0, T), chunk * T
    rest, row = L - here, (batch * L + here) * H + head
    q_ptr += batch * q_sb + here * q_st + head * q_sh
    state_ptr = before_ptr + ((batch * N + chunk) * H + head) * K * V
    y = tl.zeros([T, BV], tl.float32)
    for part in range(0, K, BK):
        c = part + tl.arange(0, BK)
        q = load_tile(q_ptr, q_st, t, c, rest, K, DOT)
        S = load_tile(state_ptr, V, c, n, K, V, DOT)
        y = tl.dot(q, S, acc=y, input_precision=PRECISION)
    y = scaled_rows(y, start_ptr + row, t, rest, H, BY_CHANNEL)
    qk = load_tile(qk_ptr + row * T, H * T, t, t, rest, T, DOT)
    u = load_tile(u_ptr + row * V, H * V, t, n, rest, V, DOT)
    y = tl.dot(qk, u, acc=y, input_precision=PRECISION)
    place = row * V + t[:, None] * (H * V) + n[None, :]
    tl.store(y_ptr + place, y, mask=(t[:, None] < rest) & (n[None, :] < V))
