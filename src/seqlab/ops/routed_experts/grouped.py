"""The mixture's operations in plain PyTorch, on any device and in any dtype: one matrix product per group.

The host needs to know where each group ends, and on a GPU waits for that. Symbols as in ``operator.py``; places are the
indices of sorted rows.
"""

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from seqlab.ops.contract import accumulation_dtype
from seqlab.ops.routed_experts.groups import Groups


def why_unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """None: plain PyTorch runs everywhere."""
    return None


ROWS = 512
"""Rows processed at a time between the products, so that they stay in a cache and their memory is reused."""


def _slices(groups: Groups) -> Iterator[tuple[int, slice]]:
    """Each expert's number and its places."""
    begin = 0
    for number, end in enumerate(groups.ends.tolist()):
        yield number, slice(begin, end)
        begin = end


def _pieces(rows: int) -> Iterator[slice]:
    return (slice(begin, begin + ROWS) for begin in range(0, rows, ROWS))


def product(x: Tensor, weight: Tensor, groups: Groups, *, spread: bool = False) -> Tensor:
    """(M, N), each row of x times its expert's matrix.

    Args:
        x: (M, K) in sorted order, or with ``spread`` (T, K), one row for all places of a token.
        weight: (E, K, N), in any layout.
    """
    y = x.new_empty(len(groups.order), weight.shape[2])
    tokens = groups.tokens if spread else None
    for number, places in _slices(groups):
        rows = x[places] if tokens is None else x.index_select(0, tokens[places])
        torch.mm(rows, weight[number], out=y[places])
    return y


def outer(left: Tensor, right: Tensor, groups: Groups, *, spread: Literal["left", "right"]) -> Tensor:
    """(E, K, N), for each expert the sum over its rows of left_m right_m^T; zeros for an expert without rows.

    Args:
        left, right: (M, K) and (M, N) in sorted order; the one that ``spread`` names has T rows, one for each token.
    """
    total = left.new_empty(len(groups.ends), left.shape[1], right.shape[1])
    tokens = groups.tokens
    for number, places in _slices(groups):
        a = left.index_select(0, tokens[places]) if spread == "left" else left[places]
        b = right.index_select(0, tokens[places]) if spread == "right" else right[places]
        torch.mm(a.T, b, out=total[number])
    return total


def activate(hidden: Tensor, gates: Tensor, groups: Groups) -> Tensor:
    """(M, H), silu(a) b times the row's gate, for hidden = [a b] (M, 2 H) and gates (T, k)."""
    gate, (a, b) = _sorted(gates, groups).to(hidden.dtype), hidden.chunk(2, dim=-1)
    active = hidden.new_empty(a.shape)
    for rows in _pieces(len(hidden)):
        torch.mul(F.silu(a[rows]).mul_(b[rows]), gate[rows], out=active[rows])
    return active


def activate_backward(d_active: Tensor, hidden: Tensor, gates: Tensor, groups: Groups) -> tuple[Tensor, Tensor, Tensor]:
    """From d_active (M, H): the gradients of hidden (M, 2 H) and of the gates (T, k).

    Between them it returns the result of ``activate`` (M, H), which overwrites ``d_active``.
    """
    gate, (a, b) = _sorted(gates, groups).to(hidden.dtype), hidden.chunk(2, dim=-1)
    d_hidden, d_gates = torch.empty_like(hidden), gates.new_empty(len(hidden))  # (M,)
    da, db = d_hidden.chunk(2, dim=-1)
    for rows in _pieces(len(hidden)):
        silu = F.silu(a[rows])
        unweighted = silu * b[rows]
        d_gates[rows] = (d_active[rows] * unweighted).sum(-1, dtype=d_gates.dtype)
        weighted = d_active[rows] * gate[rows]
        torch.mul(unweighted, gate[rows], out=d_active[rows])
        torch.mul(weighted, silu, out=db[rows])
        torch.ops.aten.silu_backward(weighted.mul_(b[rows]), a[rows], grad_input=da[rows])
    return d_hidden, d_active, d_gates[groups.inverse]


def _sorted(gates: Tensor, groups: Groups) -> Tensor:
    return gates.flatten()[groups.order][:, None]  # (M, 1)


def collect(rows: Tensor, groups: Groups) -> Tensor:
    """(T, D), for each token the sum over its ``rows`` (M, D), which are in sorted order."""
    return rows[groups.inverse].sum(dim=1, dtype=accumulation_dtype(rows.dtype)).to(rows.dtype)
