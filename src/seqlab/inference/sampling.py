"""From logits to the next token. Symbols: B batch, V vocabulary size."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from seqlab.errors import UserError
from seqlab.ops.decoding import likeliest

ROUNDING = 4 * torch.finfo(torch.float32).eps
"""Relative error of a sum of probabilities from float32 logits, which ``top_p`` allows for."""


def uniform(count: int, generator: torch.Generator) -> Tensor:
    """Numbers (count,) float64, uniform on [0, 1 - 2^-50]: times a sum of probabilities, each is below that sum."""
    return torch.rand(count, dtype=torch.float64, generator=generator) * (1 - 2**-50)


def uniforms(count: int, batch: int, generator: torch.Generator, device: torch.device) -> Iterator[Tensor]:
    """As many draws of ``uniform``, (B,) each, on the device; they go there some at a time."""
    for start in range(0, count, 256):
        yield from torch.stack([uniform(batch, generator) for _ in range(min(256, count - start))]).to(device)


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Among equally likely tokens the lower id ranks first.

    Args:
        temperature: logits are divided by it; 0 is greedy decoding. A tiny one draws among the tokens that tie for the
            largest logit.
        top_k: draw from exactly so many of the likeliest tokens; None for all.
        top_p: draw from the smallest set of likeliest tokens whose probability reaches it, within float32's rounding
            (Holtzman et al. 2020, section 3.1), after ``top_k``; None for all.

    Raises:
        UserError: a value is out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            rule, remedy = "must be 0 or more", "temperature=0 is greedy, temperature=1 draws as the model says"
            raise UserError("temperature", self.temperature, rule, remedy)
        if self.top_k is not None and self.top_k < 1:
            raise UserError("top_k", self.top_k, "must be at least 1", "Leave it out to draw from all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError("top_p", self.top_p, "must lie above 0 and at most at 1", "For example top_p=0.9")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, whatever number is drawn; it always is a token."""
        return self.temperature == 0

    def draw(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """The next token of each sequence: logits (B, V) to ids (B,), on the logits' device."""
        return self.choose(logits, uniform(len(logits), generator).to(logits.device))

    def choose(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """The token at which the cumulative probability passes a number drawn from [0, 1): (B, V) and (B,) to (B,).

        Nothing in it waits for the device, so that a CUDA graph can hold it, and every device makes the same of the
        same numbers, within the rounding of the logits. Where the logits are no distribution (NaN, or infinity), a
        temperature above 0 gives V, which is no token.
        """
        if self.greedy:
            return likeliest(logits)
        cumulative = self.probabilities(logits).double().cumsum(dim=-1)
        ahead = cumulative > uniforms[:, None] * cumulative[:, -1:]  # nowhere, if these are NaN
        return logits.shape[-1] - ahead.sum(dim=-1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution drawn from: logits (B, V) to probabilities (B, V) float32; temperature above 0."""
        logits = logits.double()  # the smallest temperature does not underflow, and sums are nearly exact
        logits = logits - logits.amax(dim=-1, keepdim=True)  # at most 0, so that the division cannot give +inf
        if self.top_k is None and self.top_p is None:
            return (logits / self.temperature).softmax(dim=-1).float()
        ordered, places = logits.sort(dim=-1, descending=True, stable=True)
        if self.top_k is not None:
            ordered[:, self.top_k :] = -torch.inf
        kept = (ordered / self.temperature).softmax(dim=-1)
        if self.top_p is not None and self.top_p < 1:
            likelier = kept.cumsum(dim=-1) - kept
            kept = kept.masked_fill(likelier >= self.top_p * (1 - ROUNDING), 0.0)
        return torch.zeros_like(kept).scatter(-1, places, kept).float()
