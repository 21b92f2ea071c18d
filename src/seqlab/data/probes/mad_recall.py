"""Recall in context as in mad-lab: keys recur at random, and training predicts every next token.

Symbols: N examples, L length, T pairs of a key and its value.
"""

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import Annotated

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt
from typing_extensions import override

from seqlab.data.probes.base import Examples, Probe, Setting
from seqlab.data.probes.draws import Draw
from seqlab.data.protocol import IGNORED
from seqlab.errors import UserError


class MADProbe(Probe):
    """A recall task of mad-lab: training scores every next token, evaluation the values of repeated keys."""

    @override
    def answers(self, setting: Setting) -> int:
        return setting["length"]

    @property
    @override
    def chance(self) -> float:
        return 1 / self.n_values

    @abstractmethod
    def draw_tokens(self, draw: Draw, length: int, *, training: bool) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (N, L + 1) int64, and which of them evaluation scores, (N, L + 1) bool."""

    @override
    def generate(self, draw: Draw, *, length: int) -> Examples:
        tokens, asked = self.draw_tokens(draw, length, training=False)
        return tokens[:, :-1], np.where(asked, tokens, IGNORED)[:, 1:]

    @override
    def generate_training(self, draw: Draw, *, length: int) -> Examples:
        tokens, _ = self.draw_tokens(draw, length, training=True)
        return tokens[:, :-1], tokens[:, 1:]


@dataclass(kw_only=True, eq=False)
class MADRecall(MADProbe):
    """Pairs of a key and its value, some of them noise; at a key that occurred before, its value is the answer.

    In-context and noisy in-context recall as mad-lab's generator draws them (Poli et al. 2024, with many queries).
    With ``length`` 11, ``vocab_size`` 6 and ``noise_vocab_size`` 2 (0 and 1 keys, 2 and 3 values, 4 and 5 noise), one
    example is as below; the last pair is a key that occurred before, and its value is not an input. Training scores the
    next token everywhere (next), evaluation the values of keys that occurred before (targets)::

        inputs     0  3  5  4  1  2  0  3  4  4  1
        targets    .  .  .  .  .  .  3  .  .  .  2
        next       3  5  4  1  2  0  3  4  4  1  2

    ``NoisyRecall`` asks for each key once, after all pairs, and scores the same positions in training.

    Args:
        vocab_size: keys, as many values or one more, and noise.
        noise_vocab_size: how many of the tokens are noise.
        noise: probability that a pair is two noise tokens; the last pair and one drawn from all pairs never are.
    """

    name = "mad_recall"

    noise_vocab_size: NonNegativeInt = 0
    noise: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def __post_init__(self) -> None:
        self.n_keys = (self.vocab_size - self.noise_vocab_size) // 2
        self.n_values = self.vocab_size - self.noise_vocab_size - self.n_keys
        if self.n_keys < 2:
            rule = f"leaves fewer than four tokens besides the noise, noise_vocab_size={self.noise_vocab_size}"
            raise UserError("vocab_size", self.vocab_size, rule, f"Set vocab_size={4 + self.noise_vocab_size} or more")
        if self.noise and not self.noise_vocab_size:
            rule = "must be 0, or below 1 with noise tokens in the vocabulary"
            raise UserError("noise", self.noise, rule, "mad-lab takes noise=0.2 noise_vocab_size=16")
        super().__post_init__()

    @override
    def check_setting(self, setting: Setting) -> None:
        if setting["length"] % 2 == 0 or setting["length"] < 3:
            rule = "must be odd and at least 3: pairs, but for the last value, which is no input"
            longer = max(3, setting["length"] + 1)
            raise UserError("length", setting["length"], rule, f"Set length={longer}")

    @override
    def draw_tokens(self, draw: Draw, length: int, *, training: bool) -> tuple[np.ndarray, np.ndarray]:
        pairs = length // 2  # T, before the last one
        keys = draw.below("keys", pairs, self.n_keys)  # (N, T)
        value_of = draw.below("values", self.n_keys, self.n_values)  # (N, keys)
        is_noise = draw.words("is noise", pairs) < self.noise * 2**32  # (N, T)
        is_noise &= np.arange(pairs) != draw.below("not noise", 1, pairs + 1)
        slot = np.where(is_noise, pairs, np.arange(pairs))[..., None]  # (N, T, 1)
        first = np.where(keys[..., None] == np.arange(self.n_keys), slot, pairs).min(axis=1)  # (N, keys)
        came = first < pairs
        came[~came.any(axis=1)] = True  # all noise, where mad-lab stops with an error; next to impossible
        rank = (draw.words("last", 1).astype(np.uint64) * came.sum(axis=1, keepdims=True).astype(np.uint64)) >> 32
        last = (came.cumsum(axis=1) > rank.astype(np.int64)).argmax(axis=1)[:, None]  # (N, 1)
        again = ~is_noise & (np.arange(pairs) > np.take_along_axis(first, keys, axis=1))  # (N, T)
        keys, again = np.append(keys, last, axis=1), np.pad(again, ((0, 0), (0, 1)), constant_values=True)
        values = np.take_along_axis(value_of, keys, axis=1) + self.n_keys  # (N, T + 1)
        tokens = np.stack([keys, values], axis=2)  # (N, T + 1, 2)
        asked = np.stack([np.zeros_like(again), again], axis=2)
        if self.noise:
            noise = draw.below("noise", 2 * pairs, self.noise_vocab_size).reshape(-1, pairs, 2)
            tokens[:, :-1][is_noise] = noise[is_noise] + self.n_keys + self.n_values
        return tokens.reshape(draw.count, -1), asked.reshape(draw.count, -1)


@dataclass(kw_only=True, eq=False)
class MADFuzzyRecall(MADProbe):
    """Pairs of a key and a value of one or more tokens each, as many as fit; the last pair repeats an earlier one.

    Fuzzy in-context recall as mad-lab's generator draws it (Poli et al. 2024, with many queries). With ``length`` 16,
    ``vocab_size`` 8 (0 to 2 keys, 3 to 6 values, 7 the padding ``#``), ``key_tokens`` and ``value_tokens`` 2, one
    example of evaluation is below; its last value token is not an input. Training scores the next token everywhere::

        inputs     #  #  #  #  0  2  4  1  0  5  3  0  2  4  0  2
        targets    .  .  .  .  .  .  .  .  .  .  .  .  4  .  .  4

    Tokens of a key differ from one another, and so do those of a value; their number is drawn first, uniformly. In
    evaluation all keys have ``key_tokens``. The probed pair starts at the first end of a pair at or after a random
    position, unless its key occurred before by chance or that position is too late, and once more at the end. A key
    may be a prefix of another, so that answers in training may be ambiguous; ``FuzzyRecall`` has keys of one length
    and asks for each of them once.

    Args:
        vocab_size: keys, as many values or one more, and the padding.
        key_tokens: the largest number of tokens of a key.
        value_tokens: the largest number of tokens of a value.
    """

    name = "mad_fuzzy_recall"

    key_tokens: PositiveInt
    value_tokens: PositiveInt

    def __post_init__(self) -> None:
        self.n_keys = (self.vocab_size - 1) // 2
        self.n_values = self.vocab_size - 1 - self.n_keys
        for name, tokens in (("key_tokens", self.n_keys), ("value_tokens", self.n_values)):
            if not 1 <= getattr(self, name) <= tokens:
                rule = f"must lie between 1 and the {tokens} different tokens that there are"
                raise UserError(name, getattr(self, name), rule, "Change it, or give a larger vocab_size")
        super().__post_init__()

    @override
    def check_setting(self, setting: Setting) -> None:
        least = 3 * (self.key_tokens + self.value_tokens)
        if setting["length"] < least:
            rule = f"must be at least {least}: the probe twice, and room for another pair"
            raise UserError("length", setting["length"], rule, f"Set length={least} or more")

    @cached_property
    def keys(self) -> "Motifs":
        """All keys: tokens 0 to ``n_keys`` - 1."""
        return Motifs(0, self.n_keys, self.key_tokens)

    @cached_property
    def values(self) -> "Motifs":
        """All values: the ``n_values`` tokens after the keys."""
        return Motifs(self.n_keys, self.n_values, self.value_tokens)

    @override
    def draw_tokens(self, draw: Draw, length: int, *, training: bool) -> tuple[np.ndarray, np.ndarray]:
        least = 1 if training else self.key_tokens
        steps = length // (least + 1) + 1
        keys, values = self.keys.draw(draw, "key", steps, least), self.values.draw(draw, "value", steps, 1)  # (N, T)
        places = draw.words("place", 1)[:, 0].tolist()
        tokens = np.full((draw.count, length + 1), self.vocab_size - 1, dtype=np.int64)
        asked = np.zeros(tokens.shape, dtype=bool)
        for row, drawn in enumerate(zip(keys.tolist(), values.tolist(), places, strict=True)):
            sequence, asks = self._sequence(*drawn, length)
            tokens[row, -len(sequence) :], asked[row, -len(sequence) :] = sequence, asks
        return tokens, asked

    def _sequence(self, keys: list[int], values: list[int], place: int, length: int) -> tuple[list[int], list[bool]]:
        """The tokens of an example without its padding, and which of them evaluation scores.

        The probed pair is the last of ``keys`` and ``values``, which are more than fit.
        """
        probe = keys[-1]
        size = len(self.keys.motifs[probe]) + len(self.values.motifs[values[-1]])
        probe_from, room = place * (length - 2 * size) >> 32, length - size - self.key_tokens - self.value_tokens
        tokens: list[int] = []
        asked: list[bool] = []
        value_of: dict[int, int] = {}
        for key, value in zip([*keys, probe], [*values, values[-1]], strict=True):
            at_end = len(tokens) >= room
            if at_end or (len(tokens) >= probe_from and probe not in value_of):
                key = probe
            known = at_end or key in value_of
            value = value_of.setdefault(key, values[-1] if key == probe else value)
            key_tokens, value_tokens = self.keys.motifs[key], self.values.motifs[value]
            tokens += [*key_tokens, *value_tokens]
            asked += [False] * len(key_tokens) + [known] * len(value_tokens)
            if at_end:
                break
        return tokens, asked


class Motifs:
    """All ordered choices of one to ``most`` different tokens, numbered, the shorter ones first.

    ``counts`` and ``begins``, (most,) int64, are the number of choices of each size and the number of the first one.
    """

    def __init__(self, first: int, vocabulary: int, most: int):
        each = [list(permutations(range(first, first + vocabulary), size)) for size in range(1, most + 1)]
        self.motifs = [motif for motifs in each for motif in motifs]
        self.counts = np.array([len(motifs) for motifs in each])
        self.begins = self.counts.cumsum() - self.counts

    def draw(self, draw: Draw, what: str, count: int, least: int) -> np.ndarray:
        """Motifs of ``least`` tokens or more by number: a uniform size, then a uniform one of that size, (N, count)."""
        size = draw.below(f"{what} size", count, len(self.counts) - least + 1) + least - 1
        return self.begins[size] + (draw.words(what, count).astype(np.int64) * self.counts[size] >> 32)
