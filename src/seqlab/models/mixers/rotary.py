"""Rotary positions (Su et al. 2021): each pair of a head's numbers is turned by an angle that grows with the position.

Symbols: L positions, P width of a head, t position, i pair; the halves of a head are the pairs, (x_i, x_{i + P/2}).
"""

from functools import lru_cache

import torch
from torch import Tensor

LEAST = 256
"""Positions, at least, of a table."""


def rotate(x: Tensor, start: int, base: float) -> Tensor:
    """Turn each pair at position t by the angle t base^(-2i/P); Su et al. 2021, equation 34.

    Args:
        x: (..., L, P), its first position number ``start``; P even.
        base: the largest wavelength over 2 pi.

    Returns:
        (..., L, P) of x's dtype; the products are float32, or float64 if x is, of a cosine and a sine in float32.
    """
    length, width = x.shape[-2:]
    capacity = max(LEAST, 1 << (start + length - 1).bit_length())  # a table serves generation for many positions
    tables = turns if torch.compiler.is_compiling() else kept_turns  # which a compiler cannot follow
    cos, sin = (table[start : start + length] for table in tables(capacity, width, base, x.device))  # (L, P)
    return torch.addcmul(x * cos, x.roll(width // 2, dims=-1), sin).to(x.dtype)


def turns(capacity: int, width: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """The cosine of each angle, and its sine with the first half's sign turned, (capacity, P) each in float32.

    The angles are float64: in float32 that of position 2^20 would be wrong by 0.06.
    """
    position = torch.arange(capacity, device=device, dtype=torch.float64)
    frequency = base ** (-torch.arange(0, width, 2, device=device, dtype=torch.float64) / width)
    angle = position[:, None] * frequency  # (capacity, P/2)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((cos, cos), dim=-1).float(), torch.cat((-sin, sin), dim=-1).float()


@lru_cache(maxsize=16)
def kept_turns(capacity: int, width: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """``turns``, which all layers of a model share; ``free_memory`` lets go of them when a job has ended."""
    with torch.inference_mode(False), torch.no_grad():  # an evaluation may make what the next training step reads
        return turns(capacity, width, base, device)
