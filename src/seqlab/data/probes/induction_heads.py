"""Induction heads: which token followed the special token at its first occurrence.

Symbols: B batch, N examples, L length.
"""

from dataclasses import dataclass
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
class InductionHeads(Probe):
    """Random tokens with one special token among them, again at the end: the answer is the token that followed it.

    As in Gu and Dao 2023 (Mamba, section 4.1.2 and appendix E.1). With ``length`` 9 and ``vocab_size`` 6 (5 the
    special token ``!``), one example is::

        inputs     3  0  0  !  2  4  1  2  !
        targets    .  .  .  .  .  .  .  .  2

    The special token occurs exactly once before the end, at any of the first ``length - 2`` positions with equal
    probability, and the token after it is uniform over the ordinary tokens.

    Args:
        vocab_size: the special token and at least two ordinary ones.
    """

    name = "induction_heads"

    vocab_size: Annotated[int, Field(ge=3)]

    @override
    def check_setting(self, setting: Setting) -> None:
        if setting["length"] < 3:
            rule = "must be at least 3: the special token, its follower and the special token again"
            raise UserError("length", setting["length"], rule, "Set length=3 or more")

    @override
    def answers(self, setting: Setting) -> int:
        return 1

    @property
    @override
    def chance(self) -> float:
        return 1 / (self.vocab_size - 1)

    @override
    def generate(self, draw: Draw, *, length: int) -> Examples:
        special, rows = self.vocab_size - 1, np.arange(draw.count)
        inputs = draw.below("tokens", length, special)  # (N, L)
        place = draw.below("place", 1, length - 2)[:, 0]  # (N,)
        inputs[rows, place] = special
        inputs[:, -1] = special
        targets = np.full_like(inputs, IGNORED)
        targets[:, -1] = inputs[rows, place + 1]
        return inputs, targets

    def slices(self, batch: Batch) -> dict[str, Tensor]:
        """Positions back to the special token, rounded up to powers of two: (B, L)."""
        place = (batch.inputs == self.vocab_size - 1).to(torch.uint8).argmax(dim=1, keepdim=True)  # (B, 1)
        distance = batch.inputs.shape[1] - 1 - place
        return {"distance": power_of_two(distance).expand_as(batch.inputs)}
