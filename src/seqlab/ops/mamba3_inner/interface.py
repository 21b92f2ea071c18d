"""What the operation hands to its kernels, symbols as in ``__init__.py``."""

from typing import NamedTuple

from torch import Tensor

MOST_STATES, MOST_CHANNELS = 256, 128
"""Largest state size and channels of a head: a program holds all channels, and a row of B or C."""


class Settings(NamedTuple):
    """What is not a tensor."""

    n_groups: int
    n_pairs: int  # S
    eps: float  # added to the norms' mean square
    act: str  # as in the mixer
    recompute: bool  # in the backward pass, what would be kept for it


class Inputs(NamedTuple):
    """Parts of the projection, views of one tensor, and parameters."""

    z: Tensor  # (Bt, L, E)
    x: Tensor  # (Bt, L, E)
    maps: Tensor  # (Bt, L, 2 G N)
    heads: Tensor  # (Bt, L, 3 H)
    angle: Tensor  # (Bt, L, S)
    dt_bias: Tensor  # (H,)
    norm_weight: Tensor  # (2, N)
    map_bias: Tensor  # (2, H, N)
    D: Tensor  # (H,)


class Kept(NamedTuple):
    """What both directions need, in the layouts of ``triton.py``."""

    keys: Tensor  # k and q
    rotations: Tensor | None  # cosines and sines
    before: Tensor  # the states before every chunk


class Gradients(NamedTuple):
    """The gradients of the parameters, and the gated output again."""

    dt_bias: Tensor
    norm_weight: Tensor
    map_bias: Tensor
    D: Tensor
    out: Tensor  # (Bt, L, E)
