"""Data sets. A data object states its task: inputs, targets, loss and metrics."""

from seqlab.data.batch import Batch

__all__ = ["Batch"]
