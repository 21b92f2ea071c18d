"""Sequence models, all of one ``SequenceModel`` built from mixers and feed-forwards."""

from seqlab.models.sequence_model import SequenceModel

__all__ = ["SequenceModel"]
