"""Multi-query associative recall: many keys, each asked for once.

Symbols: B batch, N examples, L length, V vocabulary.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor
from typing_extensions import override

from seqlab.data.probes.base import Examples, Probe, Setting, blank, power_of_two
from seqlab.data.probes.draws import Draw, power_law
from seqlab.data.protocol import Batch
from seqlab.errors import UserError


@dataclass(kw_only=True, eq=False)
class MQAR(Probe):
    """Pairs of a key and its value, then every key again, in random order with random gaps: the answer is its value.

    Multi-query associative recall as in Arora et al. 2023 (Zoology, figure 2). With ``length`` 14,
    ``pairs`` 3 and ``vocab_size`` 13 (0 the filler ``_``, 1 to 6 keys, 7 to 12 values), one example is::

        inputs     5 11  2  7  3 12  3  _  _  _  5  _  2  _
        targets    .  .  .  .  .  . 12  .  .  . 11  .  7  .

    Keys differ from one another within an example, and so do values. After the pairs come places of two positions, a
    key and a filler or two fillers; the places of the keys are drawn one after the other, place x = 1, 2, ... in
    proportion to x^(``alpha`` - 1), which for a small ``alpha`` puts most of them soon after the pairs, like repeated
    bigrams in text. Fillers, keys and values are disjoint sets of tokens, so that no filler is a query or an answer.

    The code of Zoology's generator puts tokens drawn uniformly from the whole vocabulary where there is neither pair
    nor query (``fill`` "random"); keys among them are not queries.

    Args:
        vocab_size: fillers, then keys, then values, of which there are as many as keys or one more.
        pairs: the number of pairs.
        alpha: parameter of the power law; 1 makes all places equally likely.
        fillers: the number of filler tokens; with more than one they are random.
        fill: tokens between the queries: None for fillers, "random" for any token.
    """

    name = "mqar"
    difficulty = ("length", "pairs")

    pairs: PositiveInt
    alpha: NonNegativeFloat
    fillers: PositiveInt = 1
    fill: Literal["random"] | None = None

    def __post_init__(self) -> None:
        self.n_keys = (self.vocab_size - self.fillers) // 2
        self.n_values = self.vocab_size - self.fillers - self.n_keys
        super().__post_init__()

    @override
    def check_setting(self, setting: Setting) -> None:
        length, pairs = setting["length"], setting["pairs"]
        if 4 * pairs > length:
            rule = f"each takes four positions, and the length is {length}"
            raise UserError("pairs", pairs, rule, f"Set length={4 * pairs} or more, or fewer pairs")
        if pairs > self.n_keys:
            rule = f"there are {self.n_keys} keys in the vocabulary of {self.vocab_size}, and each comes once"
            remedy = f"Set vocab_size={2 * pairs + self.fillers} or more, or fewer pairs"
            raise UserError("pairs", pairs, rule, remedy)

    @override
    def answers(self, setting: Setting) -> int:
        return setting["pairs"]

    @property
    @override
    def chance(self) -> float:
        return 1 / self.n_values

    @override
    def generate(self, draw: Draw, *, length: int, pairs: int) -> Examples:
        keys = draw.distinct("keys", pairs, self.n_keys) + self.fillers  # (N, pairs)
        values = draw.distinct("values", pairs, self.n_values) + self.fillers + self.n_keys  # (N, pairs)
        weights = power_law((length - 2 * pairs) // 2, self.alpha)
        queries = 2 * pairs + 2 * draw.weighted("gaps", pairs, weights)  # (N, pairs)
        inputs, targets = blank(draw.count, length)
        if self.fill == "random":
            inputs[:] = draw.below("fill", length, self.vocab_size)
        elif self.fillers > 1:
            inputs[:] = draw.below("fillers", length, self.fillers)
        inputs[:, 0 : 2 * pairs : 2] = keys
        inputs[:, 1 : 2 * pairs : 2] = values
        np.put_along_axis(inputs, queries, keys, axis=1)
        np.put_along_axis(targets, queries, values, axis=1)
        return inputs, targets

    def slices(self, batch: Batch) -> dict[str, Tensor]:
        """Positions back to the key, rounded up to powers of two, and the number of pairs: (B, L) each."""
        inputs = batch.inputs
        positions = torch.arange(inputs.shape[1], device=inputs.device).expand_as(inputs)
        first = torch.full((len(inputs), self.vocab_size), inputs.shape[1], device=inputs.device)  # (B, V)
        first = first.scatter_reduce(1, inputs, positions, "amin")
        pairs = self.mask(batch.targets).sum(dim=1, keepdim=True).expand_as(inputs)
        return {"distance": power_of_two(positions - first.gather(1, inputs)), "pairs": pairs}
