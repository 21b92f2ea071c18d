"""Memorisation: facts that are in the weights, not in the context.

Symbols: B batch, N examples, L length.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from seqlab.data.probes.base import Examples, Probe, Setting, power_of_two
from seqlab.data.probes.draws import Draw
from seqlab.data.protocol import IGNORED, Batch
from seqlab.errors import UserError


@dataclass(kw_only=True, eq=False)
class Memorization(Probe):
    """Keys, each followed by a token that asks for its value, which is never an input.

    Memorisation as in Poli et al. 2024 (MAD). With ``length`` 6 and ``vocab_size`` 7 (0 to 2 keys, 3 to
    5 values, 6 the asking token ``?``) and the facts 0 -> 5, 1 -> 3 and 2 -> 4, one example is::

        inputs     1  ?  0  ?  1  ?
        targets    .  3  .  5  .  3

    The facts, one value for each key and one key for each value, are drawn from the data's seed and are the same in
    training, validation and test: accuracy measures how many of them the weights have learned.

    Args:
        vocab_size: keys, as many values, and the asking token; an even number leaves one value without a key.
    """

    name = "memorization"

    vocab_size: Annotated[int, Field(ge=5)]

    @property
    def n_facts(self) -> int:
        """The number of keys, and of values that they have."""
        return (self.vocab_size - 1) // 2

    @override
    def check_setting(self, setting: Setting) -> None:
        if setting["length"] % 2:
            rule = "must be even: a key and the asking token take two positions"
            raise UserError("length", setting["length"], rule, f"Set length={setting['length'] + 1}")

    @override
    def answers(self, setting: Setting) -> int:
        return setting["length"] // 2

    @property
    @override
    def chance(self) -> float:
        return 1 / self.n_facts

    @cached_property
    def facts(self) -> np.ndarray:
        """The value token of each key, (n_facts,) int64."""
        return Draw(self.seed, self.name, 0, 1).distinct("facts", self.n_facts, self.n_facts)[0] + self.n_facts

    @override
    def generate(self, draw: Draw, *, length: int) -> Examples:
        keys = draw.below("keys", length // 2, self.n_facts)  # (N, L / 2)
        inputs = np.full((draw.count, length), self.vocab_size - 1, dtype=np.int64)
        inputs[:, ::2] = keys
        targets = np.full_like(inputs, IGNORED)
        targets[:, 1::2] = self.facts[keys]
        return inputs, targets

    def slices(self, batch: Batch) -> dict[str, Tensor]:
        """The answer's number in the sequence, rounded up to powers of two: (B, L)."""
        number = torch.arange(batch.inputs.shape[1], device=batch.inputs.device) // 2 + 1
        return {"number": power_of_two(number).expand_as(batch.inputs)}
