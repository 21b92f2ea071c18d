"""The interface between the public function and its backends.

A backend is a file with

    why_unavailable(device, dtype) -> str | None
    forward(inputs, initial_state, keep) -> (y, final state, starts)
    backward(inputs, starts, dy, d_final_state, gradient_clip) -> Gradients      where it is in ``operator.FUSED``

``starts`` (S, N, B, K, V) are the states before each of the S spans of SPAN positions, empty unless ``keep``. From them
the backward pass computes the others again.
"""

from typing import NamedTuple

from torch import Tensor

SPAN = 16
"""Positions whose states are held at once: with those kept L / SPAN + SPAN states, fewest where it is sqrt L."""

MOST_VALUES = 128
"""Widest heads of "triton", in which a program holds whole rows of the state, and W."""


class Inputs(NamedTuple):
    """The arguments of one call: B batch, L length, N heads, K width of queries and keys, V of a head's values."""

    q: Tensor  # (B, L, K)
    k: Tensor  # (B, L, K)
    v: Tensor  # (B, L, N, V)
    f: Tensor  # (B, L, N)
    W: Tensor  # (N, V, V)
    seq_idx: Tensor | None  # (B, L), integers


class Gradients(NamedTuple):
    """The gradient of each tensor, in its shape and dtype."""

    q: Tensor
    k: Tensor
    v: Tensor
    f: Tensor
    W: Tensor
    initial_state: Tensor  # also if none was given, which means zeros
