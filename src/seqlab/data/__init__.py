"""Data sets. A data object states its task: inputs, targets, loss and metrics."""

from seqlab.data.protocol import Batch, DataSet, of_cross_entropy

__all__ = ["Batch", "DataSet", "of_cross_entropy"]
