"""Needles in a haystack: a few keys and values in filler text of any length, asked for at its end.

Symbols: B batch, N examples, L length, K keys, V values of a key, Q queries, M = K V needles.
"""

from dataclasses import dataclass

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor
from typing_extensions import override

from seqlab.data.probes.base import Examples, Probe, Setting, power_of_two
from seqlab.data.probes.draws import Draw
from seqlab.data.protocol import IGNORED, Batch
from seqlab.errors import UserError


@dataclass(kw_only=True, eq=False)
class Needle(Probe):
    """Keys, each before one of its values, among fillers; at the end some of the keys again, asking for their values.

    The retrieval tasks of RULER (Hsieh et al. 2024, arXiv:2404.06654, section 3.1) with tokens for sentences: single
    (the numbers below all 1), multi-key (``keys`` 4), multi-value (``values`` 4) and multi-query (``keys`` and
    ``queries`` 4). After the marker that ends the haystack come the queries, different keys, and after each all its
    values but the last, in the order in which they came, so that every answer is determined. With ``length`` 15,
    ``keys`` 2, ``values`` 2 and ``vocab_size`` 12 (0 and 1 fillers, 2 to 5 keys, 6 to 10 values, 11 the marker ``?``),
    one example is::

        inputs     0  3  8  1  2  6  0  3  7  1  2 10  ?  3  8
        targets    .  .  .  .  .  .  .  .  .  .  .  .  .  8  7

    All sets of places for the needles are equally likely. All values of an example differ.

    Args:
        vocab_size: fillers, keys, as many values or one more, and the marker.
        fillers: the number of filler tokens, all equally likely.
        keys: different keys in the haystack.
        values: needles of each key, each with a value of its own.
        queries: keys that are asked for, at most all.
    """

    name = "needle"
    difficulty = ("length", "keys", "values", "queries")

    fillers: PositiveInt
    keys: PositiveInt = 1
    values: PositiveInt = 1
    queries: PositiveInt = 1

    def __post_init__(self) -> None:
        self.n_keys = (self.vocab_size - self.fillers - 1) // 2
        self.n_values = self.vocab_size - self.fillers - 1 - self.n_keys
        super().__post_init__()

    @override
    def check_setting(self, setting: Setting) -> None:
        length, keys, values, queries = (setting[name] for name in self.difficulty)
        if queries > keys:
            raise UserError("queries", queries, f"there are {keys} keys to ask for", f"Set keys={queries} or more")
        least = keys * values * 2 + 1 + queries * values
        if least > length:
            rule = f"needles, marker and queries take {least} positions, and the length is {length}"
            raise UserError("keys", keys, rule, f"Set length={least} or more, or fewer keys")
        if keys > self.n_keys or keys * values > self.n_values:
            rule = f"the vocabulary of {self.vocab_size} has {self.n_keys} keys and {self.n_values} values"
            remedy = f"Set vocab_size={2 * keys * values + self.fillers + 1} or more, or fewer keys or values"
            raise UserError("keys", keys, f"{rule}, and {keys} and {keys * values} are needed", remedy)

    @override
    def answers(self, setting: Setting) -> int:
        return setting["queries"] * setting["values"]

    @property
    @override
    def chance(self) -> float:
        return 1 / self.n_values

    @override
    def generate(self, draw: Draw, *, length: int, keys: int, values: int, queries: int) -> Examples:
        count, needles, asked = draw.count, keys * values, queries * values
        haystack = length - 1 - asked
        inputs = draw.below("fillers", length, self.fillers)  # (N, L)
        places = draw.subset("places", needles, haystack - needles) + np.arange(needles)  # (N, M)
        key = draw.distinct("keys", keys, self.n_keys) + self.fillers  # (N, K)
        value = draw.distinct("values", needles, self.n_values) + self.fillers + self.n_keys  # (N, M), by place
        owner = draw.distinct("owners", needles, needles) // values  # (N, M), the key at each place
        np.put_along_axis(inputs, places, np.take_along_axis(key, owner, axis=1), axis=1)
        np.put_along_axis(inputs, places + 1, value, axis=1)

        by_key = np.take_along_axis(value, owner.argsort(axis=1, kind="stable"), axis=1).reshape(count, keys, values)
        which = draw.distinct("queries", queries, keys)  # (N, Q)
        answers = np.take_along_axis(by_key, which[..., None], axis=1)  # (N, Q, V)
        first = np.take_along_axis(key, which, axis=1)[..., None]  # (N, Q, 1)
        inputs[:, haystack] = self.vocab_size - 1
        inputs[:, haystack + 1 :] = np.concatenate([first, answers[..., :-1]], axis=2).reshape(count, asked)
        targets = np.full_like(inputs, IGNORED)
        targets[:, haystack + 1 :] = answers.reshape(count, asked)
        return inputs, targets

    def slices(self, batch: Batch) -> dict[str, Tensor]:
        """Where the needle is, (B, L) each: its depth, and the distance to it, rounded up to powers of two.

        The depth is in percent of the haystack, rounded down to tens: 0 at its beginning, 90 at its end.
        """
        inputs, targets = batch
        end = (inputs == self.vocab_size - 1).to(torch.uint8).argmax(dim=1, keepdim=True)  # (B, 1)
        positions = torch.arange(inputs.shape[1], device=inputs.device)
        where = torch.zeros(len(inputs), self.vocab_size, dtype=torch.long, device=inputs.device)
        # of a value, which is in the haystack once: whatever else is written lands on the marker's own place
        written = torch.where(positions < end, inputs, self.vocab_size - 1)
        where.scatter_(1, written, positions.expand_as(inputs))
        place = where.gather(1, targets.clamp(min=0)) - 1  # (B, L), of the key before it
        return {"depth": 10 * (10 * place).div(end, rounding_mode="floor"), "distance": power_of_two(positions - place)}
