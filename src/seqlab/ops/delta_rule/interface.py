"""The interface between the public function and its backends.

A backend is a file with

    why_unavailable(device, dtype) -> str | None
    forward(inputs, initial_state) -> (y, final state)
"""

from typing import NamedTuple

from torch import Tensor


class Inputs(NamedTuple):
    """The arguments of one call: Bt batch, L length, H heads, K and V width of a head's keys and values."""

    q: Tensor  # (Bt, L, H, K)
    k: Tensor  # (Bt, L, H, K)
    v: Tensor  # (Bt, L, H, V)
    beta: Tensor  # (Bt, L, H)
    g: Tensor | None  # (Bt, L, H), or (Bt, L, H, K) for a decay of each key channel
    seq_idx: Tensor | None  # (Bt, L), integers


def named_axes(shapes: dict[str, tuple[str, ...]], g: Tensor | None) -> dict[str, tuple[str, ...]]:
    """``shapes`` with g's key channels where g, of any shape, has one axis more than beta."""
    if g is None or g.dim() != len(shapes["beta"]) + 1:
        return shapes
    return shapes | {"g": (*shapes["beta"], "d_key")}
