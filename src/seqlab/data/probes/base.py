"""The base class of all probes: streams of numbered examples, splits, tests beyond training, and the loss.

Symbols: B batch, N examples, L length, V vocabulary, K answers in an example.
"""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from typing_extensions import override

from seqlab.data.probes.draws import Draw
from seqlab.data.protocol import IGNORED, Batch, DataSet, of_cross_entropy
from seqlab.data.streams import epoch_items
from seqlab.errors import UserError, under
from seqlab.ops import cross_entropy

EVALUATED_TOKENS = 2**20
EVALUATED_LOGITS = 2**28

LATER = {"variant", "fill"}
"""Settings added later; where they are None, the data and their fingerprints are as before."""

Setting = dict[str, int]
Examples = tuple[np.ndarray, np.ndarray]


@dataclass(kw_only=True, eq=False)
class Probe(DataSet):
    """A task whose examples are generated from a seed; targets are ``IGNORED`` except at the answers.

    Example number i of a stream depends only on the data's seed, the stream's name and i. Training, validation, test
    and each further test are separate streams, so that examples recur only by chance. Fresh training data also depend
    on the run's seed.

    Args:
        length: positions in an example.
        vocab_size: the number of tokens; each task says which.
        n_train: training examples, in a new order each epoch; None generates fresh ones without end.
        epoch_size: examples in an epoch of fresh data; not used if ``n_train`` is given.
        n_validation: examples for model selection.
        n_test: examples for the final metrics.
        n_further: examples of each further test; None is ``n_test``.
        seed: of the data.
        tests: further tests, each given by the difficulties that it changes: ``[{length: 512}, {length: 1024}]``.
        mixture: difficulties that examples take in turn, in training, validation and test; None is a single one.
        metrics: what to measure besides the loss, by name.

    Raises:
        UserError: a difficulty cannot be generated, is unknown, or changes the length in ``mixture``.
    """

    name: ClassVar[str]
    difficulty: ClassVar[tuple[str, ...]] = ("length",)
    tokens: ClassVar[bool] = True

    length: PositiveInt
    vocab_size: PositiveInt
    n_train: PositiveInt | None
    epoch_size: PositiveInt
    n_validation: PositiveInt
    n_test: PositiveInt
    n_further: PositiveInt | None = None
    seed: int
    tests: Annotated[list[dict[str, PositiveInt]] | None, Field(examples=["[{length: 512}, {length: 1024}]"])] = None
    mixture: Annotated[list[dict[str, PositiveInt]] | None, Field(examples=["[{pairs: 4}, {pairs: 8}]"])] = None
    metrics: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.metrics = self.metrics or {}
        base = {name: getattr(self, name) for name in self.difficulty}
        self.check_setting(base)
        self._settings = self._overridden(base, "mixture") or [base]
        for i, setting in enumerate(self._settings):
            if setting["length"] != self.length:
                rule = f"all examples of a batch have length {self.length}"
                raise UserError(f"mixture.{i}.length", setting["length"], rule, "Change length=..., or leave it out")
        tests = self._overridden(base, "tests")
        self._further = {label(changed): s for changed, s in zip(self.tests or [], tests, strict=True)}
        self.most_labels = max(map(self.answers, self._settings))

    def _overridden(self, base: Setting, name: str) -> list[Setting]:
        """The settings that ``tests`` or ``mixture`` makes of the base setting.

        Raises:
            UserError: one changes nothing, or what is no difficulty of the task, or cannot be generated.
        """
        settings = []
        for i, changed in enumerate(getattr(self, name) or []):
            key, remedy = f"{name}.{i}", f"It may change {' and '.join(base)}"
            if name == "tests" and not changed:
                raise UserError(key, changed, "changes nothing", f"{remedy}, or leave it out")
            for unknown in set(changed) - set(base):
                raise UserError(f"{key}.{unknown}", changed[unknown], "is no difficulty of this task", remedy)
            settings.append(base | changed)
            with under(key, base):
                self.check_setting(settings[-1])
        return settings

    def check_setting(self, setting: Setting) -> None:
        """Check that examples of a difficulty can be generated.

        Raises:
            UserError: they cannot.
        """

    @abstractmethod
    def answers(self, setting: Setting) -> int:
        """The number of labels in an example, at most: the answers, K."""

    @abstractmethod
    def generate(self, draw: Draw, **setting: int) -> Examples:
        """The inputs and targets of numbered examples: (N, L) and (N, L) int64."""

    def generate_training(self, draw: Draw, **setting: int) -> Examples:
        """As ``generate``, for training, where some published tasks score more positions: (N, L) and (N, L) int64."""
        return self.generate(draw, **setting)

    @property
    @override
    def d_input(self) -> int:
        return self.vocab_size

    @property
    @override
    def d_output(self) -> int:
        return self.d_input

    @property
    @abstractmethod
    def chance(self) -> float:
        """The accuracy of the best guess that does not see the sequence."""

    @property
    @override
    def train_size(self) -> int:
        return self.n_train or self.epoch_size

    @property
    @override
    def further_tests(self) -> tuple[str, ...]:
        return tuple(self._further)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of what determines the training, validation and test examples."""
        left_out = {"metrics", "tests", "n_further", "epoch_size"}
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out}
        settings = {name: value for name, value in settings.items() if name not in LATER or value is not None}
        digest = hashlib.sha256(json.dumps([self.name, settings], sort_keys=True).encode())
        for part in self._examples("validation", 0, 16, self._settings):
            digest.update(part.astype("<i8"))
        return digest.hexdigest()[:12]

    @property
    @override
    def description(self) -> str:
        given = {name: getattr(self, name) for name in self.difficulty}
        given["vocabulary" if self.tokens else "features"] = self.d_input
        what = ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in given.items())
        mixed = f" (mixture of {len(self._settings)})" if len(self._settings) > 1 else ""
        train = f"{self.n_train:,}" if self.n_train else f"fresh ({self.epoch_size:,} an epoch)"
        sizes = f"{train} + {self.n_validation:,} + {self.n_test:,} examples"
        return f"{self.name}: {sizes}, {what}{mixed}, seed {self.seed}, chance {self.chance:.2g}"

    def _examples(self, stream: str, first: int, count: int, settings: list[Setting]) -> Examples:
        """Examples of a stream from number ``first`` on, which take the settings in turn: (N, L) and (N, L)."""
        parts = []
        for i, setting in enumerate(settings):
            begin, end = (-(-(at - i) // len(settings)) for at in (first, first + count))
            draw = Draw(self.seed, f"{self.name} {stream} {i} {label(setting)}", begin, end - begin)
            generate = self.generate_training if stream.startswith("train") else self.generate
            parts.append(generate(draw, **setting))
        if len(parts) == 1:
            return parts[0]
        whole = tuple(np.empty((count, *part.shape[1:]), dtype=np.int64) for part in parts[0])
        for i, part in enumerate(parts):
            for to, values in zip(whole, part, strict=True):
                to[(i - first) % len(settings) :: len(settings)] = values
        return whole

    @cached_property
    def _train_set(self) -> Examples:
        """The fixed training set in the smallest sufficient dtype: (n_train, L) and (n_train, L)."""
        dtype = np.int16 if max(self.d_input, self.vocab_size) < 2**15 else np.int32
        parts = []
        for first in range(0, self.n_train, 1024):
            examples = self._examples("train", first, min(1024, self.n_train - first), self._settings)
            parts.append([part.astype(dtype) for part in examples])
        inputs, targets = zip(*parts, strict=True)
        return np.concatenate(inputs), np.concatenate(targets)

    def train_batch(self, index: int, batch_size: int, seed: int) -> Batch:
        """Batch number ``index`` of the endless training stream: (B, L) and (B, L) int64."""
        self.check_batch_size(batch_size)
        if self.n_train is None:
            examples = self._examples(f"train {seed}", index * batch_size, batch_size, self._settings)
        else:
            _, items = epoch_items(index, batch_size, seed, self.n_train)
            examples = tuple(part[items].astype(np.int64) for part in self._train_set)
        return self.to_batch(examples)

    def to_batch(self, examples: Examples) -> Batch:
        """What ``generate`` returns as tensors: (B, L) and (B, L) int64, unless inputs are features."""
        return Batch(*map(torch.from_numpy, examples))

    def _split(self, split: str) -> tuple[int, list[Setting]]:
        """The number of examples in a split, and their settings."""
        if split in self._further:
            return self.n_further or self.n_test, [self._further[split]]
        return {"validation": self.n_validation, "test": self.n_test}[split], self._settings

    def evaluation_batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        """A split once, in order, generated as it is read; the last batch may be smaller."""
        size, settings = self._split(split)
        for first in range(0, size, batch_size):
            examples = self._examples(split, first, min(batch_size, size - first), settings)
            yield self.to_batch(examples)

    @override
    def evaluation_size(self, split: str, batch_size: int) -> int:
        return -(-self._split(split)[0] // batch_size)

    @override
    def largest_batch(self, split: str, batch_size: int) -> int:
        length = max(setting["length"] for setting in self._split(split)[1])
        if length <= self.length:
            return batch_size
        tokens = min(EVALUATED_TOKENS, EVALUATED_LOGITS // self.d_output)
        return max(1, min(batch_size, max(tokens, batch_size * self.length) // length))

    @of_cross_entropy
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats: logits (B, L, V) and ids (B, L) to (B, L) float32; 0 where there is no answer."""
        return cross_entropy(outputs, targets).float()


def label(setting: Setting) -> str:
    """A setting as text: ``length=512,pairs=64``."""
    return ",".join(f"{name}={value}" for name, value in setting.items())


def blank(count: int, length: int) -> Examples:
    """Inputs of zeros and targets without an answer: (N, L) and (N, L) int64.

    Both are views of one array: the C allocator keeps one freed block for the next batch but returns two to the
    system, which takes more time than filling them.
    """
    both = np.empty((2, count, length), dtype=np.int64)
    both[0], both[1] = 0, IGNORED
    return both[0], both[1]


def power_of_two(distance: Tensor) -> Tensor:
    """Positive integers of any shape rounded up to powers of two, int64: the scale of difficulties in ``slices``."""
    return 2 ** torch.frexp((distance - 1).clamp(min=0).double()).exponent.long()
