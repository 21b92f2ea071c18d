"""The interface between the public function and its fused backends.

A fused backend is a file with four functions:

    why_unavailable(device, dtype) -> str | None
    saved_shape(inputs) -> tuple[int, ...]
    forward(inputs, initial_state, keep) -> (y, final state, saved)
    backward(inputs, saved, dy, d_final_state, deterministic) -> Gradients

``saved`` is what its backward pass needs besides the inputs: states at a few positions, of ``saved_shape`` and in the
accumulation dtype, or an empty tensor if ``keep`` is false.
"""

from typing import NamedTuple

from torch import Tensor


class Inputs(NamedTuple):
    """The arguments of one scan: Bt batch, L length, D channels, N state size."""

    u: Tensor  # (Bt, L, D)
    delta: Tensor  # (Bt, L, D)
    A: Tensor  # (D, N)
    B: Tensor  # (Bt, L, N)
    C: Tensor  # (Bt, L, N)
    D: Tensor | None  # (D,)
    z: Tensor | None  # (Bt, L, D)
    delta_bias: Tensor | None  # (D,)
    seq_idx: Tensor | None  # (Bt, L), integers
    delta_softplus: bool


class Gradients(NamedTuple):
    """The gradient of each tensor, in its shape and dtype; None for an argument that was not given."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    initial_state: Tensor  # also if none was given, which means zeros


class Out(NamedTuple):
    """Where to write what has a row for each position: y, if it is wanted again, and gradients, else in new tensors.

    In the shapes and dtypes of the arguments, of which z must be given for y. Rows may lie apart, but equally far
    throughout: of y, u, delta and z by one distance, of B and C by another. These of y, u, delta and z may share memory
    with u, delta, z and dy, position by position and channel by channel.
    """

    y: Tensor | None = None
    u: Tensor | None = None
    delta: Tensor | None = None
    z: Tensor | None = None
    B: Tensor | None = None
    C: Tensor | None = None
