"""What a data object is to everything that trains, evaluates and describes: the contract of ``seqlab.data``.

Symbols: B batch, L length, V vocabulary.
"""

from abc import abstractmethod
from collections.abc import Iterator
from types import MethodType
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from seqlab.errors import UserError

IGNORED = -100
"""The target where a position has no answer; ``cross_entropy`` leaves it out by default."""


class Batch(NamedTuple):
    """Inputs and what a model should give for them, position by position.

    ``inputs`` are token ids (B, L) int64 or features (B, L, d_input) float32; ``targets`` are token ids (B, L)
    or values (B, L, d_output).
    """

    inputs: Tensor
    targets: Tensor


class Widths(Protocol):
    """What a model has to know of its data.

    Attributes:
        tokens: whether inputs are token ids, (B, L) int64, or features, (B, L, d_input) float32.
        d_input: the size of the vocabulary, or features at a position.
        d_output: logits or values that a model gives for a position.
        length: positions of a training window.
    """

    tokens: bool
    d_input: int
    d_output: int
    length: int


class DataSet(Widths, Protocol):
    """Numbered batches for training, whole splits for evaluation, and the loss.

    A class that inherits from this one has the optional part, which stands below ``loss``, for nothing.

    Attributes:
        train_size: items (windows or examples) in an epoch.
        metrics: what to measure besides the loss, by name.
        fingerprint: 12 hexadecimal characters that change with the data.
        description: the data set in one line.
        items: what the training split consists of, in messages.
        chance: the accuracy of the best guess that knows nothing of the sequence, where that is known.
        further_tests: the names of test sets beyond training, each a split.
    """

    train_size: int
    metrics: dict[str, Any]
    fingerprint: str
    description: str
    items: str = "examples"
    chance: float | None = None
    further_tests: tuple[str, ...] = ()

    @abstractmethod
    def train_batch(self, index: int, batch_size: int, seed: int) -> Batch:
        """Batch number ``index`` of the endless training stream: a function of its arguments alone."""

    @abstractmethod
    def evaluation_batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        """A split once, in order; the last batch may be smaller."""

    @abstractmethod
    def evaluation_size(self, split: str, batch_size: int) -> int:
        """How many batches ``evaluation_batches`` yields."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each position, (B, L) float32; 0 where ``mask`` is false."""

    def mask(self, targets: Tensor) -> Tensor:
        """The positions that count, (B, L) bool: those of targets (B, L) that are not ``IGNORED``."""
        return targets != IGNORED

    def check_batch_size(self, batch_size: int) -> None:
        """Refuse a batch that is empty or that one epoch cannot fill, with a ``UserError``."""
        if not 1 <= batch_size <= self.train_size:
            rule = f"must lie between 1 and the {self.train_size:,} {self.items} that the training split holds"
            raise UserError("batch_size", batch_size, rule, "Take a smaller batch, or more training data")

    def largest_batch(self, split: str, batch_size: int) -> int:
        """The batch size to take for a split instead of the usual one, so that long sequences fit into memory."""
        return batch_size

    def slices(self, batch: Batch) -> dict[str, Tensor]:
        """What makes each position hard, by name, (B, L) int64; empty where there is no such thing."""
        return {}


OPTIONAL = ("items", "chance", "further_tests", "mask", "check_batch_size", "largest_batch", "slices")


def completed(data: Any) -> DataSet:
    """A data object whose class may not inherit from ``DataSet``, with all that is optional.

    Raises:
        UserError: its class lacks something else.
    """
    contract = {name for kind in (Widths, DataSet) for name in (*kind.__annotations__, *vars(kind)) if name[0] != "_"}
    missing = contract.difference(dir(data))  # which evaluates nothing
    if required := sorted(missing.difference(OPTIONAL)):
        remedy = "Write the rest of seqlab.data.DataSet, which has all that is optional for those that inherit from it"
        raise UserError("_target_", type(data).__name__, f"it has no {', '.join(required)}", remedy)
    for name in missing:
        part = getattr(DataSet, name)
        setattr(data, name, MethodType(part, data) if callable(part) else part)
    return data
