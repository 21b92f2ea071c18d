"""What every data object hands out."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Inputs and what a model should give for them, position by position.

    ``inputs`` are token ids (B, L) int64 or features (B, L, d_input) float32; ``targets`` are token ids (B, L)
    or values (B, L, d_output).
    """

    inputs: Tensor
    targets: Tensor
