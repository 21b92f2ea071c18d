"""Models that others trained: checkpoints of ``transformers``, read into a ``SequenceModel``.

A checkpoint is a folder with ``config.json`` and safetensors. A family of ``families/`` says which configuration of a
model its fields stand for, and which of its tensors are which of ours.
"""

from pathlib import Path

import torch
from omegaconf import OmegaConf

from seqlab.models import SequenceModel
from seqlab.pretrained.checkpoint import Checkpoint
from seqlab.runs.build import build_model
from seqlab.runs.load import TokenWidths

__all__ = ["load"]


def load(folder: str | Path) -> SequenceModel:
    """The model of a checkpoint, in float32 on the CPU, in evaluation mode.

    Args:
        folder: the checkpoint's, or the name of a repository on the Hugging Face hub.

    Raises:
        UserError: there is no such checkpoint, it is damaged, or something in it has no counterpart here.
    """
    checkpoint = Checkpoint.read(str(folder))
    widths = TokenWidths(
        checkpoint.vocabulary, checkpoint.vocabulary, length=1
    )  # more positions, if it has learned any
    model = build_model(OmegaConf.create({"model": checkpoint.model}), widths, torch.device("cpu"))
    checkpoint.put_weights(model)
    return model.eval()
