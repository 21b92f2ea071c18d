"""What a family of checkpoints is, and how it writes the configuration of a model."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from seqlab.models import SequenceModel
from seqlab.pretrained.fields import Fields
from seqlab.pretrained.sources import Table, Values

Settings = dict[str, Any]


class Family(NamedTuple):
    """Checkpoints that are read alike, and written so that what is read again computes the same.

    ``fields`` is the inverse of ``settings`` for models of this kind, and may be careless about others: an export
    builds the model that ``settings`` reads from them, and refuses where it is another (``pretrained/counterpart.py``).
    """

    settings: Callable[[Fields], Settings]  # of a model, as a YAML of ``conf/model`` has them
    sources: Table
    body: str  # the name of the model without its head, which the names of its tensors begin with
    fields: Callable[
        [SequenceModel], Values | None
    ]  # what ``config.json`` has of a model; None if it is of another kind
    constant: str = r"(?!)"  # pattern of tensors that older versions saved though they never change
    own_tokenizer: bool = False  # ``AutoTokenizer`` takes the class's own, whatever the checkpoint says


def halves(model: SequenceModel) -> tuple[nn.Module | None, nn.Module | None]:
    """The mixer and the feed-forward of a model's first layer; None for what it does not have."""
    layer = next(iter(model.layers), None)
    branches = (layer.mixer, layer.feedforward) if layer is not None else (None, None)
    return tuple(branch and branch.inner for branch in branches)


def eps_of(model: SequenceModel) -> float | None:
    """What the norms of a model add to the mean square or variance; None without norms."""
    return getattr(model.norm, "eps", None)


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
