"""From logits to the next token."""

from dataclasses import dataclass

import torch
from torch import Tensor

from seqlab.errors import UserError

ROUNDING = 4 * torch.finfo(torch.float32).eps
"""How far, relative to ``top_p``, a sum of probabilities may be off because the logits are in float32."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Of tokens that are equally likely, those with the lower ids count as likelier.

    Args:
        temperature: logits are divided by it; 0 takes the likeliest token always. A tiny one draws among those that are
            equally the likeliest.
        top_k: draw from exactly so many of the likeliest tokens; None for all.
        top_p: draw from the fewest likeliest tokens that hold this much of the probability (Holtzman et al. 2020,
            section 3.1), after ``top_k``; None for all. A set whose sum misses it by no more than rounding holds it.
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

    def draw(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """The next token of each sequence: logits (B, V) to ids (B,), on the CPU."""
        logits = logits.cpu().float()
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        return torch.multinomial(self.probabilities(logits), 1, generator=generator)[:, 0]

    def probabilities(self, logits: Tensor) -> Tensor:
        """What is drawn from, (B, V) to (B, V) in float32, at a temperature above 0."""
        logits = logits.double()  # in which the smallest temperature is no zero, and a sum is as good as exact
        logits = logits - logits.amax(dim=-1, keepdim=True)  # at most 0, so that no division overflows upwards
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
