"""From logits to the next token."""

from dataclasses import dataclass

import torch
from torch import Tensor

from seqlab.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Args:
        temperature: logits are divided by it; 0 takes the likeliest token always.
        top_k: draw from so many of the likeliest tokens; None for all.
        top_p: draw from the fewest likeliest tokens that hold this much of the probability (Holtzman et al. 2020,
            section 3.1), after ``top_k``; None for all.
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
        """What is drawn from, (B, V) to (B, V), at a temperature above 0."""
        logits = logits / self.temperature
        if self.top_k is not None:
            least = logits.topk(min(self.top_k, logits.shape[-1])).values[:, -1:]  # (B, 1)
            logits = logits.masked_fill(logits < least, -torch.inf)
        probabilities = logits.softmax(dim=-1)
        if self.top_p is None:
            return probabilities
        ordered, places = probabilities.sort(descending=True, stable=True)
        beyond = ordered.cumsum(dim=-1) - ordered >= self.top_p  # the likelier ones already hold as much
        return probabilities.masked_fill(torch.zeros_like(beyond).scatter(-1, places, beyond), 0.0)
