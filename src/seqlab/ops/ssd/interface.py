"""The interface between the public function and its backends.

A backend is a file with

    why_unavailable(device, dtype) -> str | None
    forward(inputs, initial_state) -> (y, final state)
    backward(inputs, initial_state, dy, d_final_state) -> Gradients      where it is in ``operator.FUSED``

The backward pass gets the arguments alone, and recomputes the states that it needs. That of "triton" may also be told
where to write, and be given the states.
"""

from typing import NamedTuple

from torch import Tensor


class Inputs(NamedTuple):
    """The arguments of one scan: Bt batch, L length, H heads, P channels of a head, G groups, N state size."""

    x: Tensor  # (Bt, L, H, P)
    dt: Tensor  # (Bt, L, H)
    A: Tensor  # (H,)
    B: Tensor  # (Bt, L, G, N)
    C: Tensor  # (Bt, L, G, N)
    D: Tensor | None  # (H,)
    dt_bias: Tensor | None  # (H,)
    seq_idx: Tensor | None  # (Bt, L), integers
    dt_softplus: bool


class Gradients(NamedTuple):
    """The gradient of each tensor, in its shape and dtype; None for an argument that was not given."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    dt_bias: Tensor | None
    initial_state: Tensor  # also if none was given, which means zeros


class Out(NamedTuple):
    """Where to write the gradient of what has a row for each position, in its shape and dtype; None for a new tensor.

    Only channels and states, the last axes of x, B and C, have to be contiguous. No two share memory, and none with an
    argument.
    """

    x: Tensor | None = None
    dt: Tensor | None = None
    B: Tensor | None = None
    C: Tensor | None = None


def check_groups(sizes: dict[str, int]) -> None:
    """Check that the number of groups divides the number of heads.

    Raises:
        ValueError: it does not.
    """
    if sizes["n_heads"] % sizes["n_groups"] != 0:
        raise ValueError(f"B has {sizes['n_groups']} groups, expected a divisor of x's {sizes['n_heads']} heads")
