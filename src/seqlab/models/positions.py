"""Absolute positions: vectors that are added to the embedding.

Symbols: L positions, D model width.
"""

import torch
from torch import Tensor, nn

from seqlab.errors import UserError


class LearnedPositions(nn.Embedding):
    """A learned vector for each of ``max_length`` positions."""

    def initialise(self, std: float) -> None:
        """Draw the vectors from a normal distribution of standard deviation ``std``."""
        nn.init.normal_(self.weight, std=std)
        self.weight.lookup = True

    def check_length(self, length: int) -> None:
        """Check that there is a vector for each of ``length`` positions.

        Raises:
            UserError: there are fewer.
        """
        if length > self.num_embeddings:
            raise UserError(
                "model.positions",
                "learned",
                f"a sequence of {length} is past the {self.num_embeddings} positions that this model has",
                "Shorten the sequence, raise data.length, or use sinusoidal or rotary positions or a recurrent mixer",
            )

    def at(self, start: int, end: int, like: Tensor) -> Tensor:
        """The vectors (L, D) of positions ``start`` to ``end``, without the last; ``like`` is not used."""
        self.check_length(end)
        return self.weight[start:end]


class SinusoidalPositions(nn.Module):
    """sin and cos of t / 10000^(2i/D) at position t (Vaswani et al. 2017, section 3.5), without an end.

    They are scaled to the embedding's initial standard deviation, which they would otherwise dwarf; the paper scales up
    the embedding instead.
    """

    def __init__(self, d_model: int):
        super().__init__()
        self.d_model, self.scale = d_model, 1.0

    def initialise(self, std: float) -> None:
        """Set the standard deviation of the vectors to ``std``."""
        self.scale = std * 2**0.5  # that of a sine is sqrt(1/2)

    def check_length(self, length: int) -> None:
        """Nothing to check: any length is possible."""

    def at(self, start: int, end: int, like: Tensor) -> Tensor:
        """The vectors (L, D) of positions ``start`` to ``end``, without the last, in ``like``'s dtype and device."""
        position = torch.arange(start, end, device=like.device, dtype=torch.float32)
        width = torch.arange(0, self.d_model, 2, device=like.device, dtype=torch.float32)
        angle = position[:, None] * 10_000.0 ** (-width / self.d_model)  # (L, ceil(D/2))
        both = torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)  # (L, D), or D + 1 for an odd D
        return (self.scale * both[:, : self.d_model]).to(like.dtype)
