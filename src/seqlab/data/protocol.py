"""The contract of a data set: what training, evaluation and reports use of it.

Symbols: B batch, L length; ``d_input`` and ``d_output`` are the widths below.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from seqlab.errors import UserError

IGNORED = -100
"""The target of a position without a label, as torch's ``cross_entropy`` has it by default."""


LossFunction = TypeVar("LossFunction", bound=Callable[..., Any])


def of_cross_entropy(loss: LossFunction) -> LossFunction:
    """Mark a ``loss`` that is the cross-entropy of each position's logits, and 0 where the target is ``IGNORED``.

    Training may then compute it in parts, so that not all logits exist at once. The mark belongs to the function: a
    subclass that has a ``loss`` of its own says so again if it holds there.
    """
    loss.is_cross_entropy = True
    return loss


class Batch(NamedTuple):
    """Inputs and their targets, position by position.

    ``inputs`` are token ids (B, L) int64 or features (B, L, d_input), float32 or int8, which reaches a device sooner;
    ``targets`` are token ids (B, L) int64, or (B, L, n) if a position has n of them, or values (B, L, d_output)
    float32.
    """

    inputs: Tensor
    targets: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """As a model is given it, on its device, without waiting for that: there features are in float32."""
        inputs, targets = (part.to(device, non_blocking=True) for part in self)
        return Batch(inputs.float() if inputs.dtype == torch.int8 else inputs, targets)


class TextBytes(NamedTuple):
    """The bytes (UTF-8) of the text that the tokens of a split stand for, on average over the whole of it."""

    per_token: float = math.nan  # of those that are predicted; NaN if the data are no text
    unknown: float = 0.0  # the share of the bytes that is in words which the vocabulary does not have


class Widths(Protocol):
    """The widths of a data set, from which a model is built.

    Attributes:
        tokens: whether inputs are token ids, (B, L) int64, or features, (B, L, d_input).
        d_input: the size of the vocabulary, or the number of features at a position.
        d_output: the number of logits or values that a model outputs for a position.
        length: positions of a training window.
    """

    tokens: bool
    d_input: int
    d_output: int
    length: int


class DataSet(Widths, Protocol):
    """Numbered batches for training, whole splits for evaluation, and the loss.

    The methods below ``loss`` and the attributes with a value are optional: a class that inherits from this one has
    their defaults.

    Attributes:
        train_size: items (windows or examples) in an epoch.
        metrics: what to measure besides the loss, by name.
        fingerprint: 12 hexadecimal characters that change with the data.
        description: the data set in one line.
        items: what messages call the items of the training split.
        chance: the accuracy of the best guess that does not see the sequence; None if unknown.
        further_tests: the names of test sets beyond training, each a split.
        carries: whether a model's state is carried on: each row of a training batch goes on where the same row of the
            one before ended (but ``begins``), and the rows of a split's batches are one text, each going on where the
            row before ended. Inputs are then tokens.
        most_labels: the most positions of a training window that have a label; None if all may. Where that is not half
            of the window, a loss that ``is_cross_entropy`` is computed from the logits of so many alone.
    """

    train_size: int
    metrics: dict[str, Any]
    fingerprint: str
    description: str
    items: str = "examples"
    chance: float | None = None
    further_tests: tuple[str, ...] = ()
    carries: bool = False
    most_labels: int | None = None

    @abstractmethod
    def train_batch(self, index: int, batch_size: int, seed: int) -> Batch:
        """Batch number ``index`` of the endless training stream: a function of its arguments alone."""

    @abstractmethod
    def evaluation_batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        """A split once, in order; the last batch may be smaller."""

    @abstractmethod
    def evaluation_size(self, split: str, batch_size: int) -> int:
        """The number of batches that ``evaluation_batches`` yields."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each position, (B, L) float32, 0 where ``mask`` is false, from outputs (B, L, d_output)."""

    def mask(self, targets: Tensor) -> Tensor:
        """The positions that count, (B, L) bool: those of targets (B, L) that are not ``IGNORED``."""
        return targets != IGNORED

    def check_batch_size(self, batch_size: int) -> None:
        """Check that a batch is not empty and that one epoch can fill it.

        Raises:
            UserError: it is smaller than 1 or larger than ``train_size``.
        """
        if not 1 <= batch_size <= self.train_size:
            rule = f"must lie between 1 and the {self.train_size:,} {self.items} that the training split holds"
            raise UserError("batch_size", batch_size, rule, "Take a smaller batch, or more training data")

    def begins(self, index: int, batch_size: int) -> bool:
        """Whether the rows of training batch number ``index`` are the beginnings of texts, and no state is before."""
        return True

    def largest_batch(self, split: str, batch_size: int) -> int:
        """The batch size for a split: ``batch_size``, or less so that long sequences fit into memory."""
        return batch_size

    def slices(self, batch: Batch) -> dict[str, Tensor]:
        """The difficulty of each position by each measure of it, (B, L) int64; empty if the data has none."""
        return {}

    def text_bytes(self, split: str) -> TextBytes:
        """The bytes of text that a split predicts."""
        return TextBytes()


OPTIONAL = (
    "items",
    "chance",
    "further_tests",
    "carries",
    "most_labels",
    "begins",
    "mask",
    "check_batch_size",
    "largest_batch",
    "slices",
    "text_bytes",
)


def completed(data: Any) -> DataSet:
    """The data object, with defaults added if its class does not inherit from ``DataSet``.

    Raises:
        UserError: it lacks something that is not optional.
    """
    contract = {name for kind in (Widths, DataSet) for name in (*kind.__annotations__, *vars(kind)) if name[0] != "_"}
    missing = contract.difference(dir(data))  # unlike hasattr, evaluates no property
    if required := sorted(missing.difference(OPTIONAL)):
        remedy = "Write the rest of seqlab.data.DataSet, which has all that is optional for those that inherit from it"
        raise UserError("_target_", type(data).__name__, f"it has no {', '.join(required)}", remedy)
    for name in missing:
        part = getattr(DataSet, name)
        setattr(data, name, MethodType(part, data) if callable(part) else part)
    return data
