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
    sources: Table | Callable[[Fields], Table]
    body: str  # the name of the model without its head, which the names of its tensors begin with
    fields: Callable[
        [SequenceModel], Values | None
    ]  # what ``config.json`` has of a model; None if it is of another kind
    constant: str = r"(?!)"  # pattern of tensors that older versions saved though they never change
    own_tokenizer: bool = False  # ``AutoTokenizer`` takes the class's own, whatever the checkpoint says

    def table(self, fields: Fields) -> Table:
        """Which tensors are which parameters, for a checkpoint of these fields.

        Its multipliers, which a ``SequenceModel`` does not have, are in the parameters next to them.
        """
        return self.sources(fields) if callable(self.sources) else self.sources


def halves(model: SequenceModel) -> tuple[nn.Module | None, nn.Module | None]:
    """The mixer and the feed-forward of a model's first layer; None for what it does not have."""
    layer = next(iter(model.layers), None)
    branches = (layer.mixer, layer.feedforward) if layer is not None else (None, None)
    return tuple(branch and branch.inner for branch in branches)


def mixers_of(model: SequenceModel) -> list[nn.Module]:
    """Each layer's mixer."""
    return [layer.mixer.inner for layer in model.layers]


def feedforwards_of(model: SequenceModel) -> list[nn.Module | None]:
    """Each layer's feed-forward; None for none."""
    return [layer.feedforward and layer.feedforward.inner for layer in model.layers]


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
    *,
    d_model: int,
    n_layers: int,
    mixer: tuple[str, Settings] | None = None,
    layers: tuple[list[str], dict[str, Settings]] | None = None,
    norm: Settings,
    tied: bool,
    **others: Any,
) -> Settings:
    """The settings of a ``SequenceModel``.

    Args:
        d_model: width D.
        n_layers: number of layers.
        mixer: name and settings of the one in all layers.
        layers: where they are not alike, their names in order, and the settings of each name.
        norm: settings.
        tied: the head uses the embedding's matrix; otherwise it has one of its own, without a bias.
        others: settings that are not the usual ones.
    """
    pattern, mixers = layers or ([mixer[0]], dict([mixer]))
    named = {name for entry in pattern for name in entry.split("+")}
    usual = {"feedforward": None, "norm": norm, "residual": True, "positions": "none", "tie_embeddings": tied}
    return (
        {"_target_": "seqlab.models.SequenceModel", "d_model": d_model, "n_layers": n_layers}
        | {"pattern": pattern, "mixers": {name: mixers[name] for name in mixers if name in named}}
        | usual
        | {"head_bias": False, "embedding_std": 0.02, "dropout": 0.0}
        | others
    )
