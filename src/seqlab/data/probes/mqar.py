"""Multi-query associative recall: many keys, each asked for once; and its variants, with keys of two tokens and with
keys whose value changes.

Symbols: B batch, N examples, L length, V vocabulary, P pairs, S pairs shown (P and the updates), k tokens of a key.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

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
    key_tokens: ClassVar[int] = 1

    pairs: PositiveInt
    alpha: NonNegativeFloat
    fillers: PositiveInt = 1
    fill: Literal["random"] | None = None

    def __post_init__(self) -> None:
        self.n_keys = (self.vocab_size - self.fillers) // (self.key_tokens + 1)
        self.n_values = self.vocab_size - self.fillers - self.key_tokens * self.n_keys
        super().__post_init__()

    def needs(self, setting: Setting) -> tuple[int, int, int]:
        """The pairs shown, and how many keys (tokens for each place of a key) and values they take."""
        return (setting["pairs"],) * 3

    @override
    def check_setting(self, setting: Setting) -> None:
        length, pairs, group = setting["length"], setting["pairs"], self.key_tokens + 1
        shown, keys, values = self.needs(setting)
        least = group * (shown + pairs)
        if least > length:
            rule = f"pairs and queries take {least} positions, and the length is {length}"
            raise UserError("pairs", pairs, rule, f"Set length={least} or more, or fewer pairs")
        if keys > self.n_keys or values > self.n_values:
            given = f"there are {self.n_keys} keys and {self.n_values} values in the vocabulary of {self.vocab_size}"
            remedy = f"Set vocab_size={group * max(keys, values) + self.fillers} or more, or fewer pairs"
            raise UserError("pairs", pairs, f"{given}, and {keys} and {values} are needed", remedy)

    @override
    def answers(self, setting: Setting) -> int:
        return setting["pairs"]

    @property
    @override
    def chance(self) -> float:
        return 1 / self.n_values

    @override
    def generate(self, draw: Draw, *, length: int, pairs: int) -> Examples:
        keys = draw.distinct("keys", pairs, self.n_keys)[..., None] + self.fillers  # (N, P, 1)
        values = self.draw_values(draw, pairs)  # (N, P)
        return self.laid_out(draw, length, joined(keys, values), keys, values)

    def draw_values(self, draw: Draw, count: int) -> np.ndarray:
        """Different value tokens, (N, count) int64."""
        first = self.fillers + self.key_tokens * self.n_keys
        return draw.distinct("values", count, self.n_values) + first

    def laid_out(self, draw: Draw, length: int, shown: np.ndarray, keys: np.ndarray, values: np.ndarray) -> Examples:
        """The pairs shown (N, S, k + 1), then each key (N, P, k) at a random place, asking for its value (N, P)."""
        _, pairs, k = keys.shape
        start = shown.shape[1] * (k + 1)
        weights = power_law((length - start) // (k + 1), self.alpha)
        queries = start + (k + 1) * draw.weighted("gaps", pairs, weights)  # (N, P)
        inputs, targets = blank(draw.count, length)
        if self.fill == "random":
            inputs[:] = draw.below("fill", length, self.vocab_size)
        elif self.fillers > 1:
            inputs[:] = draw.below("fillers", length, self.fillers)
        inputs[:, :start] = shown.reshape(-1, start)
        for i in range(k):
            np.put_along_axis(inputs, queries + i, keys[..., i], axis=1)
        np.put_along_axis(targets, queries + k - 1, values, axis=1)
        return inputs, targets

    def slices(self, batch: Batch) -> dict[str, Tensor]:
        """Positions back to the key, rounded up to powers of two, and the number of pairs: (B, L) each."""
        inputs = batch.inputs
        first, _ = occurrences(self.codes(inputs))
        pairs = self.mask(batch.targets).sum(dim=1, keepdim=True).expand_as(inputs)
        return {"distance": power_of_two(positions_of(inputs) - first), "pairs": pairs}

    def codes(self, inputs: Tensor) -> Tensor:
        """A number for the key that ends at each position, (B, L)."""
        return inputs


@dataclass(kw_only=True, eq=False)
class CompositionalMQAR(MQAR):
    """Recall by keys of two tokens, of which neither alone tells the value.

    Compositional multi-query recall of Zoology's code (January 2026). The P pairs of an example are all combinations of
    sqrt(P) first and sqrt(P) second tokens, in random order, and all values differ. With ``length`` 24, ``pairs`` 4 and
    ``vocab_size`` 16 (0 the filler, 1 to 5 first tokens, 6 to 10 second tokens, 11 to 15 values), one example is::

        inputs     2  9 11  4  7 15  2  7 12  4  9 13  4  7  _  2  9  _  4  9  _  2  7  _
        targets    .  .  .  .  .  .  .  .  .  .  .  .  . 15  .  . 11  .  . 13  .  . 12  .

    Args:
        vocab_size: fillers, then first tokens, as many second tokens, and as many values or up to two more.
        pairs: a square.
    """

    name = "compositional_mqar"
    key_tokens = 2

    @override
    def needs(self, setting: Setting) -> tuple[int, int, int]:
        pairs = setting["pairs"]
        return pairs, math.isqrt(pairs), pairs

    @override
    def check_setting(self, setting: Setting) -> None:
        pairs, side = setting["pairs"], math.isqrt(setting["pairs"])
        if side**2 != pairs:
            rule = "must be a square: all combinations of equally many first and second tokens"
            raise UserError("pairs", pairs, rule, f"Set pairs={side**2} or pairs={(side + 1) ** 2}")
        super().check_setting(setting)

    @override
    def generate(self, draw: Draw, *, length: int, pairs: int) -> Examples:
        side = math.isqrt(pairs)
        parts = np.stack([draw.distinct(place, side, self.n_keys) for place in ("firsts", "seconds")])  # (2, N, side)
        parts += np.array([self.fillers, self.fillers + self.n_keys])[:, None, None]
        which = np.stack(np.divmod(draw.distinct("order", pairs, pairs), side))  # (2, N, P)
        keys = np.moveaxis(np.take_along_axis(parts, which, axis=2), 0, 2)  # (N, P, 2)
        values = self.draw_values(draw, pairs)  # (N, P)
        return self.laid_out(draw, length, joined(keys, values), keys, values)

    @override
    def codes(self, inputs: Tensor) -> Tensor:
        return inputs + self.vocab_size * inputs.roll(1, dims=1)


@dataclass(kw_only=True, eq=False)
class ForgettingMQAR(MQAR):
    """Recall where some keys come again with a new value before any is asked for: the last value is the answer.

    Forgetting multi-query recall of Zoology's code (January 2026). All values of an example differ, so that none that
    was overwritten is the answer to another key. With ``length`` 18, ``pairs`` 3, ``updates`` 2 and ``vocab_size`` 13
    (0 the filler ``_``, 1 to 6 keys, 7 to 12 values), one example is::

        inputs     5 11  2  7  3 12  3  9  5  8  2  _  3  _  _  _  5  _
        targets    .  .  .  .  .  .  .  .  .  .  7  .  9  .  .  .  8  .

    With ``fill`` "random" a key and a value next to one another among the fillers look like one more update, and are
    none.

    Args:
        updates: how many of the keys get a new value, at most all of them.
    """

    name = "forgetting_mqar"
    difficulty = ("length", "pairs", "updates")

    updates: PositiveInt

    @override
    def needs(self, setting: Setting) -> tuple[int, int, int]:
        pairs, shown = setting["pairs"], setting["pairs"] + setting["updates"]
        return shown, pairs, shown

    @override
    def check_setting(self, setting: Setting) -> None:
        if setting["updates"] > setting["pairs"]:
            rule = f"each key changes once at most, and there are {setting['pairs']}"
            raise UserError("updates", setting["updates"], rule, f"Set updates={setting['pairs']} or fewer")
        super().check_setting(setting)

    @override
    def generate(self, draw: Draw, *, length: int, pairs: int, updates: int) -> Examples:
        keys = draw.distinct("keys", pairs, self.n_keys) + self.fillers  # (N, P)
        values = self.draw_values(draw, pairs + updates)  # (N, S)
        changed = draw.distinct("updates", updates, pairs)  # (N, S - P)
        shown = np.concatenate([keys, np.take_along_axis(keys, changed, axis=1)], axis=1)[..., None]  # (N, S, 1)
        last = values[:, :pairs].copy()
        np.put_along_axis(last, changed, values[:, pairs:], axis=1)
        return self.laid_out(draw, length, joined(shown, values), keys[..., None], last)

    @override
    def slices(self, batch: Batch) -> dict[str, Tensor]:
        """Also whether the key came with two values, 0 or 1; the distance is to the later of them."""
        first, before = occurrences(batch.inputs)
        distance = power_of_two(positions_of(batch.inputs) - before)
        return super().slices(batch) | {"distance": distance, "updated": (first < before).long()}


def joined(keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Keys (N, S, k) and their values (N, S), next to one another: (N, S, k + 1)."""
    return np.concatenate([keys, values[..., None]], axis=2)


def positions_of(inputs: Tensor) -> Tensor:
    """The position of each token, in the shape (B, L)."""
    return torch.arange(inputs.shape[1], device=inputs.device).expand_as(inputs)


def occurrences(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Where each of the numbers (B, L) came first, and where it came last before, or its own place: (B, L) each."""
    order = codes.argsort(dim=1, stable=True)  # (B, L)
    ordered, rank = codes.gather(1, order), positions_of(codes)
    again = torch.zeros_like(ordered, dtype=torch.bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    first = torch.where(again, 0, rank).cummax(dim=1).values
    first, before = (order.gather(1, place) for place in (first, rank - again.long()))
    back = order.argsort(dim=1)
    return first.gather(1, back), before.gather(1, back)
