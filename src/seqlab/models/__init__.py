"""Sequence models, all of one ``SequenceModel`` built from mixers and feed-forwards."""

from seqlab.models.sequence_model import SequenceModel
from seqlab.models.state import state_bytes

__all__ = ["SequenceModel", "state_bytes"]
