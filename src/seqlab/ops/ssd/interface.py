"""What the public function and its backends say to each other.

A backend is a file with

    why_unavailable(device, dtype) -> str | None
    forward(inputs, initial_state) -> (y, final state)
    backward(inputs, initial_state, dy, d_final_state) -> Gradients      where it is in ``operator.FUSED``

The backward pass has the arguments alone: it computes the states that it needs again.
"""

from typing import NamedTuple

from torch import Tensor


class Inputs(NamedTuple):
    """The arguments of one scan as they were given: Bt batch, L length, H heads, P channels of a head, G groups,
    N state size."""

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
    """The gradient by each tensor, in its shape and dtype; None where there is no such argument."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    dt_bias: Tensor | None
    initial_state: Tensor  # also where none was given: zeros were


def check_groups(sizes: dict[str, int]) -> None:
    """Hold the number of heads to a multiple of the number of groups.

    Raises:
        ValueError: says both.
    """
    if sizes["n_heads"] % sizes["n_groups"] != 0:
        raise ValueError(f"B has {sizes['n_groups']} groups, expected a divisor of x's {sizes['n_heads']} heads")
