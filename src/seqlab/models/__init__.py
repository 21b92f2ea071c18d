"""Sequence models: one class, ``SequenceModel``, built from mixers and feed-forwards."""

from seqlab.models.counting import state_bytes
from seqlab.models.mixture_of_experts import auxiliary_losses, expert_load
from seqlab.models.sequence_model import SequenceModel

__all__ = ["SequenceModel", "auxiliary_losses", "expert_load", "state_bytes"]
