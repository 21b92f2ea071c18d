"""What a data object is to everything that trains, evaluates and describes: the contract of ``seqlab.data``.

Symbols: B batch, L length, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from seqlab.data.batch import Batch


@runtime_checkable
class DataSet(Protocol):
    """Numbered batches for training, whole splits for evaluation, and the loss.

    A class that inherits from this one has the optional part, which stands below ``mask``, for nothing.

    Attributes:
        tokens: whether inputs are token ids, (B, L) int64, or features, (B, L, d_input) float32.
        d_input: the size of the vocabulary, or features at a position.
        d_output: logits or values that a model gives for a position.
        length: positions of a training window.
        train_size: windows or examples in an epoch.
        metrics: what to measure besides the loss, by name.
        fingerprint: 12 hexadecimal characters that change with the data.
        description: the data set in one line.
    """

    tokens: bool
    d_input: int
    d_output: int
    length: int
    train_size: int
    metrics: dict[str, Any]
    fingerprint: str
    description: str

    def check_batch_size(self, batch_size: int) -> None:
        """Refuse a batch that one epoch cannot fill, with a ``UserError``."""

    def train_batch(self, index: int, batch_size: int, seed: int) -> Batch:
        """Batch number ``index`` of the endless training stream: a function of its arguments alone."""

    def evaluation_batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        """A split once, in order; the last batch may be smaller."""

    def evaluation_size(self, split: str, batch_size: int) -> int:
        """How many batches ``evaluation_batches`` yields."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each position, (B, L) float32; 0 where ``mask`` is."""

    def mask(self, targets: Tensor) -> Tensor:
        """The positions that count, (B, L) bool."""

    @property
    def chance(self) -> float | None:
        """The accuracy of the best guess that knows nothing of the sequence, where there is such a figure."""
        return None

    @property
    def further_tests(self) -> tuple[str, ...]:
        """The names of test sets beyond training, each a split."""
        return ()

    def largest_batch(self, split: str, batch_size: int) -> int:
        """The batch size to take for a split instead of the usual one, so that long sequences fit into memory."""
        return batch_size

    def slices(self, batch: Batch) -> dict[str, Tensor]:
        """What makes each position hard, by name, (B, L) int64; empty where there is no such thing."""
        return {}
