"""The delta rule in plain PyTorch, as matrix products over chunks of positions.

In a chunk each correction depends on those before it: they solve a triangular system, whose right-hand side needs the
state before the chunk in one place, linearly, so that all chunks are solved at once (the WY representation;
arXiv:2406.06484, section 3.2; with decays arXiv:2412.06464, section 3.3, and arXiv:2510.26692, section 3; with one key
that erases and another that writes arXiv:2605.22791). Between chunks it is a recurrence, one step per chunk.

    (I + A) u = w v - (e^G b)^T S,         A_ij = sum_c b_ic k_jc e^(G_ic - G_jc) for i > j, otherwise 0
    y_i       = (e^G_i q_i)^T S + sum_(j <= i) (sum_c q_ic k_jc e^(G_ic - G_jc)) u_j
    S'        = e^G_T S + sum_j (e^(G_T - G_j) k_j) u_j^T

Exponents are differences of sums of g, computed in float64, since decays of all magnitudes may occur in one chunk; all
are at most 0 where g is. Nothing is divided by a decay. Terms between packed sequences are replaced by 0. What a chunk
leaves of the state is a difference: in float32 it is off by about 1e-6 of what the decays alone would leave, which
shows where corrections take nearly all of it (keys of width 3 over 32 positions: an error of 2e-4; width 8: 5e-6).

Symbols (i and j positions in a chunk, c a channel of keys):

    Bt, H, K, V   batch, heads, width of a head's keys and values
    N, T          chunks, positions in a chunk, a power of two
    E             decays of a head: 1, or K
    b             (Bt, H, N, T, K) the key that erases, beta k
    G             (Bt, H, N, T, E) float64, sum of g from the chunk's start up to and with a position
    S             (Bt, H, K, V) state before a chunk, S' after it
    u             (Bt, H, N, T, V) corrections
"""

import math
from itertools import repeat
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqlab.ops.contract import accumulation_dtype
from seqlab.ops.delta_rule.interface import Inputs, erased_and_written

CHUNK = 32
"""Most positions in a chunk, a power of two."""

NEGLIGIBLE = -70.0
"""exp of less is set to 0: numbers near float32's smallest, 1e-38, multiply up to ten times slower on a CPU."""

FARTHEST = 2000.0
"""exp of minus it is 0 in float64 too. In a chunk's sums, larger steps would cost later ones their digits."""


def why_unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """None: plain PyTorch runs everywhere."""
    return None


class _Packing(NamedTuple):
    """Which positions of a chunk belong to one sequence, for packed sequences."""

    pairs: Tensor  # (Bt, 1, N, T, T) whether two positions do
    from_state: Tensor  # (Bt, 1, N, T, 1) whether the state before the chunk is of the position's sequence
    to_state: Tensor  # (Bt, 1, N, T, 1) whether the state after the chunk is
    goes_on: Tensor  # (Bt, 1, N, 1, 1) whether no sequence begins in the chunk


class _Chunks(NamedTuple):
    """The arguments in chunks, in the accumulation dtype."""

    q: Tensor  # (Bt, H, N, T, K)
    k: Tensor  # (Bt, H, N, T, K)
    erase: Tensor | None  # (Bt, H, N, T, K) b
    write: Tensor  # (Bt, H, N, T, V) w v
    G: Tensor  # (Bt, H, N, T, E) float64
    packing: _Packing | None


def forward(inputs: Inputs, initial_state: Tensor | None) -> tuple[Tensor, Tensor]:
    """y (Bt, L, H, V) in q's dtype and the final state (Bt, H, K, V); arguments as in ``delta_rule``."""
    c = _read(inputs)
    dtype, total = c.k.dtype, c.G[..., -1:, :]  # (Bt, H, N, 1, E)
    rows = c.q[None] if c.erase is None else torch.stack((c.q, c.erase))
    pairs = _pairs(rows, c.k, c.G)  # (1 or 2, Bt, H, N, T, T)
    from_start, to_end = _exp(c.G, dtype), _exp(total - c.G, dtype)  # (Bt, H, N, T, E)
    decay = _exp(total, dtype).mT  # (Bt, H, N, E, 1)
    if c.packing is not None:
        pairs = pairs.where(c.packing.pairs, 0)
        from_start, to_end = from_start.where(c.packing.from_state, 0), to_end.where(c.packing.to_state, 0)
        decay = decay.where(c.packing.goes_on, 0)
    by_value, by_state = c.write, None
    if c.erase is not None:
        known = torch.cat((c.write, c.erase * from_start), dim=-1)  # (Bt, H, N, T, V + K)
        known = torch.linalg.solve_triangular(pairs[1], known, upper=False, unitriangular=True)
        by_value, by_state = known.split((c.write.shape[-1], c.k.shape[-1]), dim=-1)
    S, u, final = _walk(by_value, by_state, (c.k * to_end).mT, decay, initial_state)
    y = (c.q * from_start) @ S + pairs[0] @ u  # (Bt, H, N, T, V)
    y = y.flatten(2, 3).transpose(1, 2)  # (Bt, N T, H, V)
    return y[:, : inputs.q.shape[1]].to(inputs.q.dtype).contiguous(), final


def _walk(
    by_value: Tensor, by_state: Tensor | None, added: Tensor, decay: Tensor, S: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The state before each chunk (Bt, H, N, K, V), all corrections, and the state after the last.

    Args:
        by_value: (Bt, H, N, T, V) the corrections before a state of zeros, ...
        by_state: (Bt, H, N, T, K) ... and what of them goes with each key channel of the state; nothing if None.
        added: (Bt, H, N, K, T) keys, as much of them as is left at the chunk's end.
        decay: (Bt, H, N, E, 1) of each chunk.
        S: (Bt, H, K, V) before the first; zeros if None.
    """
    if S is None:
        S = by_value.new_zeros(*by_value.shape[:2], added.shape[-2], by_value.shape[-1])  # (Bt, H, K, V)
    before, corrections = [], []
    of_states = repeat(None) if by_state is None else by_state.unbind(dim=2)
    chunks = zip(*(tensor.unbind(dim=2) for tensor in (by_value, added, decay)), strict=True)
    for (u, keys, left), of_state in zip(chunks, of_states, strict=False):
        before.append(S)
        corrections.append(u if of_state is None else u - of_state @ S)
        S = left * S + keys @ corrections[-1]
    return torch.stack(before, dim=2), torch.stack(corrections, dim=2), S


def _pairs(rows: Tensor, k: Tensor, G: Tensor) -> Tensor:
    """sum_c rows_ic k_jc e^(G_ic - G_jc) for i >= j, (..., T, T); the strict upper part is 0.

    Args:
        rows: (..., T, K).
        k: (Bt, H, N, T, K).
        G: (Bt, H, N, T, E).
    """
    if G.shape[-1] > 1:
        return _pairs_by_channel(rows, k, G)
    exponents = G - G.mT  # (Bt, H, N, T, T)
    later = torch.ones_like(exponents, dtype=torch.bool).triu(1)
    return (rows @ k.mT) * _exp(exponents.masked_fill(later, -math.inf), k.dtype)


def _pairs_by_channel(rows: Tensor, k: Tensor, G: Tensor) -> Tensor:
    """``_pairs`` where the decay is inside the sum.

    Between a position in the second half of a block and one in the first, the decay is the product of that since the
    middle and that up to it, both at most 1, so the halves give one matrix product. Blocks of one position, two, four
    and so on hold every pair once.
    """
    products = (rows * k).sum(dim=-1)[..., None, None]  # (..., T, 1, 1), each position with itself
    size = 1
    while size < k.shape[-2]:
        k_first, rows_second = _halves(k, size)[..., 0, :, :], _halves(rows, size)[..., 1, :, :]
        G_first, G_second = _halves(G, size).unbind(dim=-3)  # (..., T / 2 size, size, K)
        middle = G_first[..., -1:, :]
        crossing = (rows_second * _exp(G_second - middle, k.dtype)) @ (k_first * _exp(middle - G_first, k.dtype)).mT
        early, late = products[..., 0::2, :, :], products[..., 1::2, :, :]  # (..., T / 2 size, size, size)
        above = torch.cat((early, torch.zeros_like(crossing)), dim=-1)
        products = torch.cat((above, torch.cat((crossing, late), dim=-1)), dim=-2)
        size *= 2
    return products.squeeze(-3)


def _halves(tensor: Tensor, size: int) -> Tensor:
    """(..., T, K) as (..., T / 2 size, 2, size, K)."""
    return tensor.unflatten(-2, (-1, 2, size))


def _exp(exponents: Tensor, dtype: torch.dtype) -> Tensor:
    """exp in ``dtype``, 0 below ``NEGLIGIBLE`` in float32."""
    exponents = exponents.to(dtype)
    if dtype == torch.float32:
        exponents = exponents.masked_fill(exponents < NEGLIGIBLE, -math.inf)
    return exponents.exp()


def _read(inputs: Inputs) -> _Chunks:
    """The arguments in chunks of one length, with zeros past the end, which leave the state as it is."""
    dtype, length = accumulation_dtype(inputs.q.dtype), inputs.q.shape[1]
    size = 1
    while size < min(CHUNK, length):
        size *= 2
    n_chunks = -(-length // size)
    wide = (None if tensor is None else tensor.to(dtype) for tensor in inputs[:-1])
    q, k, v, beta, _, w = wide
    erase, write = erased_and_written(k, v, beta, w)
    q, k, erase, write = (None if part is None else _cut(part, n_chunks, size) for part in (q, k, erase, write))
    g = inputs.q.new_zeros(inputs.q.shape[:3]) if inputs.g is None else inputs.g
    g = g.unsqueeze(3) if g.dim() == 3 else g  # (Bt, L, H, E)
    G = _cut(g.double().clamp(-FARTHEST, FARTHEST), n_chunks, size).cumsum(dim=3)
    return _Chunks(q, k, erase, write, G, _packing(inputs.seq_idx, n_chunks, size))


def _packing(seq_idx: Tensor | None, n_chunks: int, size: int) -> _Packing | None:
    if seq_idx is None:
        return None
    begins = F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0))  # (Bt, L)
    # Of each position's sequence, 0 for that of the state before the chunk
    number = _cut(begins[:, :, None, None].long(), n_chunks, size).cumsum(dim=3)  # (Bt, 1, N, T, 1)
    last = number[..., -1:, :]
    return _Packing(number == number.mT, number == 0, number == last, last == 0)


def _cut(tensor: Tensor, n_chunks: int, size: int) -> Tensor:
    """(Bt, L, H, X) as (Bt, H, N, T, X)."""
    tensor = F.pad(tensor, (0, 0, 0, 0, 0, n_chunks * size - tensor.shape[1]))
    return tensor.unflatten(1, (n_chunks, size)).permute(0, 3, 1, 2, 4)
