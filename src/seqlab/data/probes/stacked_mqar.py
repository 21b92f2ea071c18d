"""Stacked multi-query recall: a key and its value at one position, so that a single mixer can solve it.

Symbols: B batch, N examples, L length, P pairs, R passes over them, E width of a vector.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor
from torch.nn.functional import embedding
from typing_extensions import override

from seqlab.data.probes.base import Examples, Probe, Setting, power_of_two
from seqlab.data.probes.draws import Draw
from seqlab.data.probes.mqar import occurrences, positions_of
from seqlab.data.protocol import IGNORED, Batch
from seqlab.errors import UserError

CODE = 32
"""The first components of a vector that tell it from the others, at most."""


@dataclass(kw_only=True, eq=False)
class StackedMQAR(Probe):
    """The vector of a key beside that of its value, then every key beside zeros: the answer is its value's number.

    Stacked ("continuous") multi-query recall of Zoology's code (January 2026), which asks nothing of a model but to
    store and to recall: elsewhere a key must first be brought to the position of its value, which takes a convolution
    or another layer. With ``length`` 7 and ``pairs`` 3, one example is below, with kN and vN the vectors of key and
    value N::

        keys       k5 k2 k0  0 k0 k5 k2
        values     v1 v3 v0  0  0  0  0
        targets     .  .  .  .  0  1  3

    Keys differ from one another within an example, and so do values. Each pass shows all pairs in an order of its own;
    the queries, in another, come last. Between them are zeros, of both. Vectors are drawn once from the data's seed.
    Their components are 1 and -1 with equal probability, and all vectors of keys differ, as do those of values.

    Args:
        vocab_size: keys, and as many values or one more.
        pairs: the number of pairs.
        passes: how often each pair is shown.
        d_vector: E; a position has 2 E features.
    """

    name = "stacked_mqar"
    difficulty = ("length", "pairs", "passes")
    tokens = False

    pairs: PositiveInt
    passes: PositiveInt = 1
    d_vector: PositiveInt

    def __post_init__(self) -> None:
        self.n_keys = self.vocab_size // 2
        self.n_values = self.vocab_size - self.n_keys
        if 2**self.d_vector < self.n_values:
            rule = f"has fewer than {self.n_values} different vectors"
            raise UserError("d_vector", self.d_vector, rule, f"Set d_vector={(self.n_values - 1).bit_length()} or more")
        super().__post_init__()

    @override
    def check_setting(self, setting: Setting) -> None:
        length, pairs, passes = (setting[name] for name in self.difficulty)
        least = pairs * (passes + 1)
        if least > length:
            rule = f"pairs and queries take {least} positions, and the length is {length}"
            raise UserError("pairs", pairs, rule, f"Set length={least} or more, or fewer pairs")
        if pairs > self.n_keys:
            rule = f"there are {self.n_keys} keys in the vocabulary of {self.vocab_size}, and each has one value"
            raise UserError("pairs", pairs, rule, f"Set vocab_size={2 * pairs} or more, or fewer pairs")

    @override
    def answers(self, setting: Setting) -> int:
        return setting["pairs"]

    @property
    @override
    def d_input(self) -> int:
        return 2 * self.d_vector

    @property
    @override
    def d_output(self) -> int:
        return self.n_values

    @property
    @override
    def chance(self) -> float:
        return 1 / self.n_values

    @cached_property
    def vectors(self) -> Tensor:
        """Those of no key, zeros, of the keys, of no value, and of the values: (1 + keys + 1 + values, E) int8."""
        return torch.cat([self._vectors("key vectors", self.n_keys), self._vectors("value vectors", self.n_values)])

    def _vectors(self, what: str, count: int) -> Tensor:
        draw, n_code = Draw(self.seed, self.name, 0, 1), min(self.d_vector, CODE)
        codes = draw.distinct(what, count, 2**n_code).T >> np.arange(n_code) & 1  # (count, n_code)
        more = draw.below(f"more of {what}", count * (self.d_vector - n_code), 2).reshape(count, -1)
        signs = 2 * np.concatenate([codes, more], axis=1) - 1  # (count, E)
        return torch.from_numpy(np.concatenate([np.zeros_like(signs[:1]), signs]).astype(np.int8))

    @override
    def generate(self, draw: Draw, *, length: int, pairs: int, passes: int) -> Examples:
        """The numbers of keys and values, from 1 (0 is neither), (N, L, 2), and the targets (N, L)."""
        bounds = {"keys": self.n_keys, "values": self.n_values}
        facts = np.stack([draw.distinct(what, pairs, bound) for what, bound in bounds.items()], axis=2)  # (N, P, 2)
        orders = [draw.distinct(f"order {i}", pairs, pairs) for i in range(passes + 1)]  # (N, P) each
        shown = [np.take_along_axis(facts, order[..., None], axis=1) for order in orders]  # (N, P, 2) each
        inputs = np.zeros((draw.count, length, 2), dtype=np.int64)
        targets = np.full(inputs.shape[:2], IGNORED)
        inputs[:, : passes * pairs] = np.concatenate(shown[:-1], axis=1) + 1
        inputs[:, -pairs:, 0] = shown[-1][..., 0] + 1
        targets[:, -pairs:] = shown[-1][..., 1]
        return inputs, targets

    @override
    def to_batch(self, examples: Examples) -> Batch:
        inputs, targets = map(torch.from_numpy, examples)
        rows = inputs + torch.tensor([0, 1 + self.n_keys])  # (N, L, 2)
        # in a third of the time of indexing; and bytes, since float32 would take longer to a GPU than a step there
        return Batch(embedding(rows, self.vectors).flatten(2), targets)

    def slices(self, batch: Batch) -> dict[str, Tensor]:
        """Positions back to the last pair with the key, rounded up to powers of two, and the pairs: (B, L) each."""
        key = batch.inputs[..., : min(self.d_vector, CODE)]  # (B, L, n_code)
        codes = ((key > 0).long() << torch.arange(key.shape[2], device=key.device)).sum(dim=2)  # (B, L)
        _, before = occurrences(codes.where(key[..., 0] != 0, -1))
        pairs = self.mask(batch.targets).sum(dim=1, keepdim=True).expand_as(before)
        return {"distance": power_of_two(positions_of(before) - before), "pairs": pairs}
