"""Arrays that several probes begin with, and the coarse scale of their difficulties."""

import numpy as np
import torch
from torch import Tensor

from seqlab.data.text import IGNORED


def ignored(count: int, length: int) -> np.ndarray:
    """Targets without an answer, (N, L) int64."""
    return np.full((count, length), IGNORED, dtype=np.int64)


def blank(count: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of zeros and targets without an answer: (N, L) and (N, L) int64.

    They share a block of memory, because the C library keeps one such block for the next batch, but gives two back to
    the system, which takes more time than filling them.
    """
    both = np.empty((2, count, length), dtype=np.int64)
    both[0], both[1] = 0, IGNORED
    return both[0], both[1]


def power_of_two(distance: Tensor) -> Tensor:
    """Positive integers rounded up to powers of two."""
    return 2 ** torch.frexp((distance - 1).clamp(min=0).double()).exponent.long()
