"""The class of ``transformers`` that computes what a model does, and its ``config.json``.

A family proposes the fields of ``config.json``, and the model that is read from them is compared with the one given,
module by module. So a model is exported if and only if it would be read again as the same one; what has no counterpart
there is what is missing from the model that was read.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from typing_extensions import override

from seqlab.errors import UserError
from seqlab.models import SequenceModel
from seqlab.pretrained.families import FAMILIES, Family
from seqlab.pretrained.families.family import halves
from seqlab.pretrained.fields import Fields
from seqlab.pretrained.sources import Values, stored
from seqlab.runs.build import build_model
from seqlab.runs.load import TokenWidths

FREE = {"training", "scan_backend", "backend", "experts_backend", "balance_weight", "z_weight", "separator"}
"""Attributes of a module that do not change what it computes of one document once trained; nor does a ``Dropout``."""

REMEDY = "Export a model that is alike there, or use this one with seqlab generate"
REMEDIES = {
    "head.bias": "Train it with +model.head_bias=false, or with model.tie_embeddings=true",
    "head": "Train it with model.softmaxes=1, or use this one with seqlab generate",
}
"""Those for places that a setting decides."""


class Counterpart(NamedTuple):
    """What of ``transformers`` computes the same."""

    architecture: str  # the class
    family: Family
    fields: Values  # of ``config.json``

    def tensors(self, model: SequenceModel) -> dict[str, Tensor]:
        """The model's parameters by the names, and in the shapes, that the class has for them."""
        table = self.family.table(Written(self.fields, self.architecture, Path()))
        return stored(dict(model.named_parameters()), table, self.fields)


class Written(Fields):
    """The fields of a ``config.json`` that is to be written."""

    @override
    def refuse(self, name: str, value: Any, expressible: str) -> NoReturn:
        """Refuse a field.

        Raises:
            UserError: says what the class takes.
        """
        raise UserError(name, value, f"{self.architecture} of transformers takes {expressible}", REMEDY)


def counterpart(model: nn.Module) -> Counterpart:
    """What of ``transformers`` computes the same as a model of any size; its weights are not looked at.

    Raises:
        UserError: no class that is known does; of the nearest one it says where the model is another.
    """
    if not isinstance(model, SequenceModel) or not model.tokens:
        what = "features of a position and no tokens" if isinstance(model, SequenceModel) else type(model).__name__
        raise UserError("model", what, "no class of transformers has it", "Export a SequenceModel of tokens")
    refusals = []
    for architecture, family in FAMILIES.items():
        if (fields := family.fields(model)) is None:
            continue
        found = Counterpart(architecture, family, common_fields(model, architecture) | fields)
        try:
            check_same(found, model)
        except UserError as refusal:
            refusals.append(refusal)
        else:
            return found
    if refusals:
        raise refusals[-1]  # of the most special kind, which comes after the general ones
    parts = dict.fromkeys(type(half).__name__ for half in halves(model) if half is not None)
    rule = f"no class of transformers that is known here has them; known are {', '.join(FAMILIES)}"
    raise UserError("layers", " and ".join(parts) or "none", rule, "Export a model of one of these kinds")


def common_fields(model: SequenceModel, architecture: str) -> Values:
    """The fields that every class has; which token ends a text, if one does, the data say."""
    return {
        "architectures": [architecture],
        "vocab_size": model.embed.num_embeddings,
        "tie_word_embeddings": model.head.weight is model.embed.weight,
        "dtype": str(model.embed.weight.dtype).removeprefix("torch."),
        **{f"{token}_token_id": None for token in ("bos", "eos", "pad")},
    }


def check_same(found: Counterpart, model: SequenceModel) -> None:
    """Check that the model that is read from the fields is the one given.

    Raises:
        UserError: it is another.
    """
    settings = found.family.settings(Written(found.fields, found.architecture, Path()))
    vocabulary, meta = found.fields["vocab_size"], torch.device("meta")
    with meta:
        cfg, widths = OmegaConf.create({"model": settings}), TokenWidths(vocabulary, vocabulary, model.max_length)
        read = build_model(cfg, widths, meta)
    for place, ours, theirs in differences(model, read):
        rule = f"{found.architecture}, the nearest class of transformers, has {theirs} there"
        raise UserError(place, ours, rule, REMEDIES.get(place, REMEDY))


def differences(model: nn.Module, other: nn.Module) -> Iterator[tuple[str, Any, Any]]:
    """Where two models compute something else whatever their weights are: the place, and what each has there."""
    modules, others = dict(model.named_modules()), dict(other.named_modules())
    for place in modules | others:
        one, two = modules.get(place), others.get(place)
        if kind(one) != kind(two):
            yield place or "model", kind(one), kind(two)
            continue
        settings, theirs = plain_attributes(one), plain_attributes(two)
        for name in sorted(settings | theirs):
            if settings.get(name) != theirs.get(name):
                yield f"{place}.{name}".lstrip("."), settings.get(name), theirs.get(name)
    shapes, theirs = ({name: tuple(p.shape) for name, p in each.named_parameters()} for each in (model, other))
    for name in shapes | theirs:
        if shapes.get(name) != theirs.get(name):
            yield name, shapes.get(name, "nothing"), theirs.get(name, "nothing")


def kind(module: nn.Module | None) -> str:
    """The name of a module's class; where a class says that it computes what another does, that one's."""
    return "nothing" if module is None else getattr(module, "computes", type(module)).__name__


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """A module's settings: what it holds besides parameters, modules and what torch keeps."""
    if isinstance(module, nn.Dropout):
        return {}
    return {name: value for name, value in vars(module).items() if not name.startswith("_") and name not in FREE}
