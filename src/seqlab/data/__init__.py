"""Data sets. A data object states its task: inputs, targets, loss and metrics."""

from seqlab.data.protocol import Batch, DataSet

__all__ = ["Batch", "DataSet"]
