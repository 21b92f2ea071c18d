"""State tracking: the state of a finite automaton after each token, at lengths far beyond those of training.

Symbols: B batch, N examples, L length, K numbers in an expression, m modulus, G elements of a group.
"""

from abc import abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from seqlab.data.probes.base import Examples, Probe, Setting, power_of_two
from seqlab.data.probes.draws import Draw
from seqlab.data.probes.finite_groups import alternating, cyclic, multiplication_table, prefix_products, symmetric
from seqlab.data.protocol import IGNORED, Batch
from seqlab.errors import UserError


@dataclass(kw_only=True, eq=False)
class StateTracking(Probe):
    """Tokens that each change a state; at every position, or every second one, the state so far is the answer.

    A model that is causal sees all shorter sequences as prefixes, so training at one length with every state scored
    trains at all lengths up to it. A further test that is longer than training scores only the states after the
    training length: its accuracy is of lengths that were never trained, and at chance for a model that has learned
    nothing but those that were.

    The size of the vocabulary follows from the task.
    """

    period: ClassVar[int] = 1
    """Positions from one answer to the next, the first answer being at the first position."""

    vocab_size: int = field(init=False)

    def n_unscored(self, length: int) -> int:
        """The number of positions at the start of a sequence that are left out: those of training in a longer test."""
        return self.length if length > self.length else 0

    @override
    def answers(self, setting: Setting) -> int:
        length = setting["length"]
        return -(-length // self.period) - -(-self.n_unscored(length) // self.period)

    @override
    def check_setting(self, setting: Setting) -> None:
        if self.answers(setting) == 0:
            length = setting["length"]
            rule = f"has no answer beyond the training length, {self.length}, and longer tests score nothing else"
            raise UserError("length", length, rule, f"Set length={length + 1} or more")

    @abstractmethod
    def sequences(self, draw: Draw, length: int) -> Examples:
        """Inputs (N, L) and states (N, L) int64, which are ``IGNORED`` between answers."""

    @override
    def generate(self, draw: Draw, *, length: int) -> Examples:
        inputs, targets = self.sequences(draw, length)
        targets[:, : self.n_unscored(length)] = IGNORED
        return inputs, targets

    def slices(self, batch: Batch) -> dict[str, Tensor]:
        """Positions up to and with the answer, rounded up to powers of two: (B, L)."""
        prefix = torch.arange(1, batch.inputs.shape[1] + 1, device=batch.inputs.device)
        return {"prefix": power_of_two(prefix).expand_as(batch.inputs)}


class WordProblem(StateTracking):
    """The word problem of a finite group: tokens are its elements, the answer is the product so far.

    Every element is equally likely, so each product is uniform over the group and independent of all earlier ones.
    """

    @override
    def __post_init__(self) -> None:
        self.vocab_size = len(self.table)
        super().__post_init__()

    @property
    @abstractmethod
    def table(self) -> np.ndarray:
        """The multiplication table of the group, (G, G) int64."""

    @property
    @override
    def chance(self) -> float:
        return 1 / self.vocab_size

    @override
    def sequences(self, draw: Draw, length: int) -> Examples:
        inputs = draw.below("elements", length, self.vocab_size)  # (N, L)
        return inputs, prefix_products(self.table, inputs)


class Parity(WordProblem):
    """Bits; the answer is whether there were an odd number of ones so far. The group of two elements.

    With ``length`` 8, one example is::

        inputs     1  0  1  1  0  0  1  0
        targets    1  1  0  1  1  1  0  0

    Deletang et al. 2022 (arXiv:2207.02098) train at lengths uniform from 1 to 40 and Grazzi et al. 2024
    (arXiv:2411.12537) at lengths from 3 to 40, which they test at lengths from 40 to 256. Where one answer is asked
    for, at the end of each sequence, that is for a causal model the accuracy at ``length=256`` here.
    """

    name = "parity"

    @cached_property
    @override
    def table(self) -> np.ndarray:
        return cyclic(2)


class S3(WordProblem):
    """The six permutations of three points, the smallest group in which the order of a product matters.

    Tokens are the permutations in lexicographic order: 0 is 012 (the identity), 1 is 021, 2 is 102, 3 is 120, 4 is 201,
    5 is 210, each the images of 0, 1 and 2. The product applies the earlier one first. With ``length`` 7, one example
    is::

        inputs     2  1  3  0  5  4  2
        targets    2  4  0  0  5  2  0

    S3 is solvable, so that a number of layers of attention that does not grow with the length can track it (Liu et al.
    2023, arXiv:2210.10749, theorem 2); S5 and A5 are not.
    """

    name = "s3"

    @cached_property
    @override
    def table(self) -> np.ndarray:
        return multiplication_table(symmetric(3))


class S5(WordProblem):
    """All 120 permutations of five points, which is as hard as tracking any regular language.

    Its word problem is complete for NC1 (Barrington 1989). Transformers and linear recurrences with diagonal
    transitions lie in TC0, so that no fixed number of layers tracks it at every length unless the two classes are equal
    (Merrill et al. 2024, arXiv:2404.08819). Tokens are the permutations in lexicographic order and the product applies
    the earlier one first: 1 swaps the last two points and 24 the first two. With ``length`` 5, one example is::

        inputs     1 24 24  1 24
        targets    1 25  1  0 24

    Here any element may come; Liu et al. 2023 draw from three of them (the identity, a shift by one place and a swap of
    the first two).
    """

    name = "s5"

    @cached_property
    @override
    def table(self) -> np.ndarray:
        return multiplication_table(symmetric(5))


class A5(WordProblem):
    """The 60 even permutations of five points, the smallest group that is not solvable.

    The group of Merrill et al. 2024 (arXiv:2404.08819), who like here draw any of its elements and score every product.
    Its word problem is as hard as that of S5 with half the vocabulary, and parity of permutations, which is easier,
    tells nothing. Tokens are the even permutations in lexicographic order: 0 is 01234 (the identity), 1 is 01342 and 2
    is 01423, the inverse of 1. With ``length`` 5, one example is::

        inputs     1  1  1  2  2
        targets    1  2  0  2  1
    """

    name = "a5"

    @cached_property
    @override
    def table(self) -> np.ndarray:
        return multiplication_table(alternating(5))


PLUS, MINUS, TIMES = range(3)


@dataclass(kw_only=True, eq=False)
class ModularArithmetic(StateTracking):
    """Numbers and operators in turn; at each number, the answer is the value of the expression so far, modulo m.

    Modular arithmetic (without brackets) of Deletang et al. 2022 (arXiv:2207.02098): numbers and the operators ``+``,
    ``-`` and ``*`` are uniform, and products come before sums. With ``length`` 9 and ``modulus`` 5 (0 to 4 numbers, 5
    for ``+``, 6 for ``-`` and 7 for ``*``), 2 + 3 * 4 - 1 * 3 is::

        inputs     2  5  3  7  4  6  1  7  3
        targets    2  .  0  .  4  .  3  .  1

    What must be remembered are two numbers: the sum of the terms that are closed, and the product of the open one. A
    sequence of even length ends with an operator, at which nothing is asked.

    There only the value of the whole expression is asked for. Values are uniform once a term is a single number; while
    all terms are products, 0 is more likely, which ``chance`` counts.

    Args:
        modulus: m, of all numbers; the vocabulary is m numbers and three operators.
    """

    name = "modular_arithmetic"
    period = 2

    modulus: Annotated[int, Field(ge=2)]

    @override
    def __post_init__(self) -> None:
        self.vocab_size = self.modulus + 3
        super().__post_init__()

    @property
    @override
    def d_output(self) -> int:
        return self.modulus

    @cached_property
    @override
    def chance(self) -> float:
        """The accuracy of always answering 0, the mode at every position, over the answers of a training sequence."""
        m, residues = self.modulus, np.arange(self.modulus)
        multiply = np.zeros((m, m))  # to the product of the open term, by a uniform number
        np.add.at(multiply, (residues[:, None], np.outer(residues, residues) % m), 1 / m)
        closed = (residues[None] - residues[:, None]) % m  # by the open term and the value: the sum of closed ones
        state = np.zeros((m, m))  # the probability of (sum of closed terms, product of the open one)
        state[0] = 1 / m
        zero = []
        for _ in range(self.answers({"length": self.length})):
            value = state[closed, residues[:, None]].sum(axis=0)  # (m,)
            zero.append(value[0])
            state = value[:, None] / m * 2 / 3 + state @ multiply / 3
        return float(np.mean(zero))

    @cached_property
    def _terms(self) -> np.ndarray:
        """The monoid of what a number does to the open term, (2 m, 2 m): v begins one with v, m + v multiplies by v."""
        kind, value = np.divmod(np.arange(2 * self.modulus), self.modulus)
        products = np.outer(value, value) % self.modulus
        return np.where(kind == 0, value, kind[:, None] * self.modulus + products)

    @override
    def sequences(self, draw: Draw, length: int) -> Examples:
        count = -(-length // 2)
        numbers = draw.below("numbers", count, self.modulus)  # (N, K)
        operators = draw.below("operators", count, 3)  # (N, K), each after its number
        inputs = np.stack([numbers, operators + self.modulus], axis=2).reshape(draw.count, -1)  # (N, 2 K)
        targets = np.full((draw.count, length), IGNORED, dtype=np.int64)
        targets[:, ::2] = self._values(numbers, operators[:, :-1])
        return np.ascontiguousarray(inputs[:, :length]), targets

    def _values(self, numbers: np.ndarray, before: np.ndarray) -> np.ndarray:
        """The value of each prefix, (N, K), of numbers (N, K) and the operators (N, K - 1) before all but the first."""
        elements = numbers.copy()
        later = elements[:, 1:]
        later[before == MINUS] = -later[before == MINUS] % self.modulus
        later[before == TIMES] += self.modulus
        values = prefix_products(self._terms, elements)  # (N, K): of the open term, for the first number begins one
        values[:, 1:] += np.cumsum(np.where(before == TIMES, 0, values[:, :-1]), axis=1)
        return values % self.modulus
