"""The cell of mLSTM, a memory with exponential gates (Beck et al. 2024, arXiv:2405.04517, equations 19 to 27).

    C_t = f_t C_{t-1} + i_t k_t v_t^T       memory
    n_t = f_t n_{t-1} + i_t k_t             normaliser
    h_t = C_t^T s_t / max(|n_t^T s_t|, 1),  s_t = q_t / sqrt(K)

with i_t = exp(a_t), which has no bound. So what is kept is C e^-m and n e^-m, with m_t = max(log f_t + m_{t-1}, a_t),
m_0 = 0 (equations 15 to 17): the gates are then exp(a_t - m_t) and exp(log f_t + m_{t-1} - m_t), at most 1, and the 1
in the denominator is e^-m_t. h depends on no m, so that a gradient need not pass through it.

Symbols: B batch, L length, H heads, K and V width of a head's keys and values; q and k (B, L, H, K), v and h
(B, L, H, V), a and log f (B, L, H), C (B, H, K, V), transposed beside the paper's, n (B, H, K), m (B, H).

All positions at once are ``delta_rule`` without beta, to which n is one more channel of values, each of them 1.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqlab.ops import delta_rule, delta_rule_flops, delta_rule_update
from seqlab.ops.contract import accumulation_dtype

FAR = 1e5
"""Where a packed sequence begins, m of the one before is lowered by so much, more than any sum of two gates."""

HIGHEST = 80.0
"""exp of minus it is a normal float32, by which a quotient stays finite where m is above and all that is read is 0."""


class CellState(NamedTuple):
    """What the next position needs, all in float32, or in float64 if v is."""

    C: Tensor  # (B, H, K, V), times e^-m
    n: Tensor  # (B, H, K), times e^-m
    m: Tensor  # (B, H)


class Inputs(NamedTuple):
    """The tensors of a sequence, or without L those of one position; gates in float32, or float64 if v is."""

    q: Tensor  # (B, L, H, K)
    k: Tensor  # (B, L, H, K)
    v: Tensor  # (B, L, H, V)
    a: Tensor  # (B, L, H)
    log_f: Tensor  # (B, L, H)


def mlstm_scan(
    inputs: Inputs, state: CellState | None = None, *, seq_idx: Tensor | None = None, backend: str = "auto"
) -> tuple[Tensor, CellState]:
    """All positions at once, at least one.

    Args:
        inputs: q, k and v in float64, float32, bfloat16 or float16.
        state: before the first position; zeros if None.
        seq_idx: (B, L) integers for packed sequences, as ``delta_rule`` takes them; the states are of the first and
            the last.
        backend: one of ``seqlab.ops.delta_rule.BACKENDS``, or ``auto``.

    Returns:
        h (B, L, H, V) in v's dtype, and the state after the last position.

    Raises:
        ValueError: a shape, dtype or device that does not fit, or a backend that does not exist or cannot run.
    """
    before, m = _maxima(inputs.a, inputs.log_f, None if state is None else state.m, seq_idx)
    memory = None if state is None else _side_by_side(state)
    states = {"initial_state": memory, "return_final_state": True, "seq_idx": seq_idx, "backend": backend}
    y, memory = delta_rule(*_read_and_written(inputs, m), g=_decay(inputs, before, m), **states)
    return _normalised(y, m).to(inputs.v.dtype), _apart(memory, m[:, -1])


def mlstm_update(inputs: Inputs, state: CellState) -> tuple[Tensor, CellState]:
    """One position: tensors as in ``Inputs`` without L, to h (B, H, V) in v's dtype and the next state."""
    with torch.no_grad():
        m = torch.maximum(inputs.log_f + state.m, inputs.a)
    read_and_written, decay = _read_and_written(inputs, m), _decay(inputs, state.m, m)
    y, memory = delta_rule_update(_side_by_side(state), *read_and_written, g=decay)
    return _normalised(y, m).to(inputs.v.dtype), _apart(memory, m)


@torch.no_grad()
def _maxima(a: Tensor, log_f: Tensor, start: Tensor | None, seq_idx: Tensor | None) -> tuple[Tensor, Tensor]:
    """m before and at each position, (B, L, H) in a's dtype; ``start`` (B, H) is that before the first.

    With F_t the sum of log f up to t, m_t is F_t plus the largest of a_j - F_j for j <= t.
    """
    # With L last: along another axis a GPU's scans take one position after another.
    gates, steps = a.mT.double().contiguous(), log_f.mT.double().contiguous().clamp(min=-FAR)  # (B, H, L)
    begins = torch.zeros_like(gates, dtype=torch.bool)
    if seq_idx is not None:
        begins[..., 1:] = (seq_idx[:, 1:] != seq_idx[:, :-1]).unsqueeze(1)
    begins[..., 0] = True
    entering = torch.zeros_like(gates, dtype=a.dtype)
    if start is not None:
        entering[..., 0] = start
    gates = torch.where(begins, torch.maximum(gates, steps + entering), gates)
    total = steps.masked_fill(begins, -FAR).cumsum(dim=2)
    m = (total + (gates - total).cummax(dim=2).values).to(a.dtype)
    return torch.where(begins, entering, F.pad(m[..., :-1], (1, 0))).mT, m.mT


def _decay(inputs: Inputs, before: Tensor, m: Tensor) -> Tensor:
    """The logarithm of the forget gate of what is kept, (..., H): m first, or log f could be lost beside it."""
    return inputs.log_f + (before - m)


def _read_and_written(inputs: Inputs, m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys (..., H, K), and values times their input gate, with that of the normaliser (..., H, V + 1)."""
    share = torch.exp(inputs.a - m).unsqueeze(-1)
    wide = accumulation_dtype(inputs.v.dtype)
    return inputs.q.to(wide) * inputs.q.shape[-1] ** -0.5, inputs.k, torch.cat((share * inputs.v, share), dim=-1)


def _normalised(y: Tensor, m: Tensor) -> Tensor:
    """h (..., H, V) from what the memory and the normaliser give, (..., H, V + 1)."""
    least = torch.exp(-m.clamp(max=HIGHEST)).unsqueeze(-1)
    return y[..., :-1] / torch.maximum(y[..., -1:].abs(), least)


def _side_by_side(state: CellState) -> Tensor:
    """(B, H, K, V + 1)."""
    return torch.cat((state.C, state.n.unsqueeze(-1)), dim=-1)


def _apart(memory: Tensor, m: Tensor) -> CellState:
    """The state of memory (B, H, K, V + 1) and m (B, H), which keeps no other position."""
    return CellState(memory[..., :-1].contiguous(), memory[..., -1].contiguous(), m.clone())


def mlstm_flops(batch: int, length: int, n_heads: int, d_key: int, d_value: int) -> int:
    """Multiplications, additions, divisions and exponentials of the cell, forward, each counted as one.

    Memory and normaliser are linear attention with V + 1 channels and one decay (``delta_rule_flops``). To that come,
    for one position and head, the exponential of the input gate and of -m, its product with v, and V divisions.
    """
    memory = delta_rule_flops(batch, length, n_heads, d_key, d_value + 1, 1, erases="nothing")
    return memory + batch * length * n_heads * (2 + 2 * d_value)


def reference(
    inputs: Inputs, state: CellState | None = None, *, seq_idx: Tensor | None = None
) -> tuple[Tensor, CellState]:
    """``mlstm_scan`` in float64, one position after another, as the equations are written, without m.

    Arguments as there; h is (B, L, H, V), also in float64, and the state's m is 0. exp(a) must not overflow.
    """
    q, k, v, a, log_f = (t.double() for t in inputs)
    batch, length, heads, d_key = q.shape
    C, n = q.new_zeros(batch, heads, d_key, v.shape[3]), q.new_zeros(batch, heads, d_key)
    if state is not None:
        scale = state.m.double().exp()
        C, n = scale[..., None, None] * state.C, scale[..., None] * state.n
    outputs = []
    for t in range(length):
        if seq_idx is not None and t > 0:
            goes_on = (seq_idx[:, t] == seq_idx[:, t - 1])[:, None, None]  # (B, 1, 1)
            C, n = C.where(goes_on[..., None], 0), n.where(goes_on, 0)
        forget, enter = log_f[:, t].exp()[..., None], a[:, t].exp()[..., None]  # (B, H, 1)
        C = forget[..., None] * C + (enter * k[:, t])[..., None] * v[:, t, :, None, :]  # (B, H, K, V)
        n = forget * n + enter * k[:, t]
        read = q[:, t] / d_key**0.5
        weight = (n * read).sum(dim=2, keepdim=True)  # (B, H, 1)
        outputs.append((C * read[..., None]).sum(dim=2) / weight.abs().clamp(min=1))  # (B, H, V)
    return torch.stack(outputs, dim=1), CellState(C, n, torch.zeros_like(n[..., 0]))
