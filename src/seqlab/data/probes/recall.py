"""Recall in context: keys and values of several tokens (fuzzy), or among distractors (noisy).

Symbols: B batch, N examples, L length, P pairs, k and v tokens of a key and a value,
g = k + v tokens of a slot, of which there are L // g.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from typing_extensions import override

from seqlab.data.probes.base import Examples, Probe, Setting, power_of_two
from seqlab.data.probes.draws import Draw
from seqlab.data.protocol import IGNORED, Batch
from seqlab.errors import UserError


@dataclass(kw_only=True, eq=False)
class Recall(Probe):
    """Slots of a key and its value; each key occurs twice, and the second time its value is the answer.

    Keys, values and noise are disjoint sets of tokens, in this order. All pairs come before the first query, in random
    slots; noise fills the rest. Keys of an example have the same number of tokens and differ from one another, so that
    none is a prefix of another and every answer is determined. Every value token is an answer: the first at the last
    token of the key, and each further one at the value token before it.

    Args:
        vocab_size: keys and values, half each and two at least.
        noise_vocab_size: further tokens, one at least, that only fill the slots without a pair.
        pairs: the number of pairs.
        key_tokens: tokens of a key.
        value_tokens: tokens of a value.
    """

    difficulty = ("length", "pairs", "key_tokens", "value_tokens")

    vocab_size: Annotated[int, Field(ge=4)]
    noise_vocab_size: PositiveInt
    pairs: PositiveInt
    key_tokens: PositiveInt = 1
    value_tokens: PositiveInt = 1

    def __post_init__(self) -> None:
        self.n_keys = self.vocab_size // 2
        self.n_values = self.vocab_size - self.n_keys
        super().__post_init__()

    @override
    def check_setting(self, setting: Setting) -> None:
        pairs, k, length = setting["pairs"], setting["key_tokens"], setting["length"]
        least = 2 * pairs * (k + setting["value_tokens"])
        if least > length:
            rule = f"each takes {least // pairs} positions, and the length is {length}"
            raise UserError("pairs", pairs, rule, f"Set length={least} or more, or fewer pairs")
        if not pairs <= self.n_keys**k < 2**31:
            rule = f"{k} tokens of {self.n_keys} give {self.n_keys**k:,} keys; there must be {pairs} to 2^31"
            raise UserError("key_tokens", k, rule, "Change vocab_size=..., key_tokens=... or pairs=...")

    @override
    def answers(self, setting: Setting) -> int:
        return setting["pairs"] * setting["value_tokens"]

    @property
    @override
    def d_input(self) -> int:
        return self.vocab_size + self.noise_vocab_size

    @property
    @override
    def chance(self) -> float:
        return 1 / self.n_values

    @override
    def generate(self, draw: Draw, *, length: int, pairs: int, key_tokens: int, value_tokens: int) -> Examples:
        count, group = draw.count, key_tokens + value_tokens
        slots = length // group
        codes = draw.distinct("keys", pairs, self.n_keys**key_tokens)  # (N, P)
        keys = codes[..., None] // self.n_keys ** np.arange(key_tokens) % self.n_keys  # (N, P, k)
        values = draw.below("values", pairs * value_tokens, self.n_values).reshape(count, pairs, value_tokens)
        shown = np.concatenate([keys, values + self.n_keys], axis=2)  # (N, P, g)
        order = draw.distinct("order", pairs, pairs)  # (N, P)
        asked = np.take_along_axis(shown, order[..., None], axis=1)  # (N, P, g)
        taken = draw.subset("slots", 2 * pairs, slots)  # (N, 2 P)
        inputs = draw.below("noise", length, self.noise_vocab_size) + self.vocab_size  # (N, L)
        targets = np.full_like(inputs, IGNORED)
        places = (taken * group)[..., None] + np.arange(group)  # (N, 2 P, g)
        both = np.concatenate([shown, asked], axis=1)  # (N, 2 P, g)
        width = 2 * pairs * group
        np.put_along_axis(inputs, places.reshape(count, width), both.reshape(count, width), axis=1)
        before, width = places[:, pairs:, key_tokens - 1 : -1], pairs * value_tokens  # (N, P, v)
        answers = asked[..., key_tokens:]  # (N, P, v)
        np.put_along_axis(targets, before.reshape(count, width), answers.reshape(count, width), axis=1)
        return inputs, targets

    def slices(self, batch: Batch) -> dict[str, Tensor]:
        """Positions back to the first of the two keys, rounded up to powers of two, and the number of pairs: (B, L)."""
        inputs, asked = batch.inputs, self.mask(batch.targets)
        is_key, is_value = inputs < self.n_keys, (inputs >= self.n_keys) & (inputs < self.vocab_size)
        k = is_value.to(torch.uint8).argmax(dim=1) - is_key.to(torch.uint8).argmax(dim=1)  # (B,)
        v = k * is_value.sum(dim=1) // is_key.sum(dim=1)  # (B,)
        distance = torch.ones_like(inputs)
        examples = zip(distance, inputs.tolist(), k.tolist(), v.tolist(), strict=True)
        for row, tokens, key_tokens, value_tokens in examples:
            first, group = {}, key_tokens + value_tokens
            for start in range(0, len(tokens) - group + 1, group):
                key = tuple(tokens[start : start + key_tokens])
                if key in first:
                    row[start : start + group] = start - first[key]
                elif key[0] < self.n_keys:
                    first[key] = start
        pairs = asked.sum(dim=1) // v
        return {"distance": power_of_two(distance), "pairs": pairs[:, None].expand_as(inputs)}


@dataclass(kw_only=True, eq=False)
class FuzzyRecall(Recall):
    """Keys and values of several tokens: only all tokens of a key together identify its value.

    Fuzzy in-context recall as in Poli et al. 2024 (MAD). With ``length`` 16, ``pairs`` 2, ``key_tokens``
    and ``value_tokens`` 2 and ``vocab_size`` 6 (0 to 2 keys, 3 to 5 values), one example is::

        inputs     0  2  4  4  0  1  5  3  0  1  5  3  0  2  4  4
        targets    .  .  .  .  .  .  .  .  .  5  3  .  .  4  4  .

    The published task mixes keys of one to three tokens in a sequence, where one key may be a prefix of another,
    so that the answer is ambiguous when it is scored. Here all keys of an example have the same length; ``mixture``
    gives examples with keys of different lengths. ``MADFuzzyRecall`` is the published task.
    """

    name = "fuzzy_recall"


@dataclass(kw_only=True, eq=False)
class NoisyRecall(Recall):
    """Pairs and queries among distractors, which are never keys or values.

    Noisy in-context recall as in Poli et al. 2024 (MAD). With ``length`` 14, ``pairs`` 2, ``vocab_size``
    6 (0 to 2 keys, 3 to 5 values) and ``noise_vocab_size`` 3 (6 to 8), one example is::

        inputs     0  5  7  6  2  3  8  8  2  3  6  8  0  5
        targets    .  .  .  .  .  .  .  .  3  .  .  .  5  .

    The published task asks for one key at the end, or for each key whenever it occurs again; here every key occurs
    twice and is asked for once. ``MADRecall`` is the published task.
    """

    name = "noisy_recall"
