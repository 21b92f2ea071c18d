"""What a family of checkpoints is, and how it writes the configuration of a model."""

from collections.abc import Callable
from typing import Any, NamedTuple

from seqlab.pretrained.fields import Fields
from seqlab.pretrained.sources import Table

Settings = dict[str, Any]


class Family(NamedTuple):
    """Checkpoints that are read alike."""

    settings: Callable[[Fields], Settings]  # of a model, as a YAML of ``conf/model`` has them
    sources: Table
    body: str  # the name of the model without its head, which the names of its tensors begin with
    constant: str = r"(?!)"  # pattern of tensors that older versions saved though they never change


def part(target: str, **settings: Any) -> Settings:
    """A part of a model that is built when its width is known."""
    return {"_target_": target, "_partial_": True, **settings}


def rms_norm(eps: float) -> Settings:
    """An ``RMSNorm``."""
    return part("seqlab.models.norms.RMSNorm", eps=eps)


def sequence_model(
    *, d_model: int, n_layers: int, mixer: tuple[str, Settings], norm: Settings, tied: bool, **others: Any
) -> Settings:
    """The settings of a ``SequenceModel`` whose layers are alike.

    Args:
        d_model: width D.
        n_layers: number of layers.
        mixer: name and settings.
        norm: settings.
        tied: the head uses the embedding's matrix; otherwise it has one of its own, without a bias.
        others: settings that are not the usual ones.
    """
    name, settings = mixer
    usual = {"feedforward": None, "norm": norm, "residual": True, "positions": "none", "tie_embeddings": tied}
    return (
        {"_target_": "seqlab.models.SequenceModel", "d_model": d_model, "n_layers": n_layers}
        | {"pattern": [name], "mixers": {name: settings}}
        | usual
        | {"head_bias": False, "embedding_std": 0.02, "dropout": 0.0}
        | others
    )
