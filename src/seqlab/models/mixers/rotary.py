"""Rotary positions (Su et al. 2021): pairs of a head's channels are rotated by angles proportional to the position.

Symbols: L positions, P width of a head, t position, i pair, of the channels x_i and x_{i + P/2}, s_i divisor of its
frequency (``Attention``'s ``rotary_divisors``), 1 unless given.
"""

from functools import lru_cache

import torch
from torch import Tensor

LEAST = 256
"""Least number of positions in a table."""


def rotate(x: Tensor, start: int, base: float, divisors: tuple[float, ...] = (), factor: float = 1.0) -> Tensor:
    """Rotate each pair at position t by the angle t base^(-2i/P) / s_i; Su et al. 2021, equation 34.

    Args:
        x: of shape (..., L, P), P even.
        start: the position of x's first row.
        base: base of the frequencies.
        divisors: s_i, P/2 of them, or none.
        factor: what x is multiplied by besides.

    Returns:
        The same shape in x's dtype; products are in float32, or in float64 if x is, with cosine and sine in float32.
    """
    length, width = x.shape[-2:]
    capacity = max(LEAST, 1 << (start + length - 1).bit_length())  # so that generation reuses a table for many steps
    tables = turns if torch.compiler.is_compiling() else kept_turns  # whose cache a compiler cannot trace
    cos, sin = (
        table[start : start + length] for table in tables(capacity, width, base, divisors, factor, x.device)
    )  # (L, P)
    return torch.addcmul(x * cos, x.roll(width // 2, dims=-1), sin).to(x.dtype)


def turns(
    capacity: int, width: int, base: float, divisors: tuple[float, ...], factor: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each angle times ``factor``, the sine of the first half negated: (capacity, P) each, float32.

    The angles are in float64: in float32 that of position 2^20 would be off by 0.06.
    """
    position = torch.arange(capacity, device=device, dtype=torch.float64)
    frequency = base ** (-torch.arange(0, width, 2, device=device, dtype=torch.float64) / width)
    if divisors:
        frequency = frequency / torch.tensor(divisors, device=device, dtype=torch.float64)
    angle = position[:, None] * frequency  # (capacity, P/2)
    cos, sin = factor * angle.cos(), factor * angle.sin()
    return torch.cat((cos, cos), dim=-1).float(), torch.cat((-sin, sin), dim=-1).float()


@lru_cache(maxsize=16)
def kept_turns(
    capacity: int, width: int, base: float, divisors: tuple[float, ...], factor: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """``turns``, (capacity, P) each, cached for all layers of a model; ``free_memory`` clears the cache after a job."""
    with torch.inference_mode(False), torch.no_grad():  # what an evaluation puts here, a training step may read next
        return turns(capacity, width, base, divisors, factor, device)
