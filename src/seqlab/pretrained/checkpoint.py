"""A checkpoint of a known family: the configuration of its model, and its weights."""

import logging
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from seqlab.config.schema import check
from seqlab.errors import UserError
from seqlab.pretrained.families import FAMILIES, Family
from seqlab.pretrained.fields import Fields
from seqlab.pretrained.files import CONFIG, Tensors, folder_of, read_json, refuse, tensors_in
from seqlab.pretrained.sources import Source, Table, source_of
from seqlab.pretrained.state_spaces import as_transformers, is_state_spaces, renamed

log = logging.getLogger(__name__)

HEAD = "lm_head.weight"


class Checkpoint(NamedTuple):
    """What a checkpoint's ``config.json`` says."""

    folder: Path
    architecture: str  # the class of ``transformers``
    family: Family
    vocabulary: int
    model: dict[str, Any]  # as a YAML of ``conf/model`` has it; ``max_length`` is the number of learned positions
    table: Table  # which tensors are which parameters
    state_spaces: bool = False  # of ``mamba_ssm``, with names of its own, and pickled perhaps

    @classmethod
    def read(cls, name: str) -> "Checkpoint":
        """The checkpoint in a folder, or of that name on the hub.

        Raises:
            UserError: there is none, its architecture is unknown, or a field cannot be expressed.
        """
        folder = folder_of(name)
        values = read_json(folder / CONFIG)
        if own := is_state_spaces(values):
            values = as_transformers(values, folder)
        architecture = architecture_of(values, folder)
        fields = Fields(values, architecture, folder)
        fields.only(quantization_config=None)
        family = FAMILIES[architecture]
        model = family.settings(fields)
        check(model, key="model")
        return cls(folder, architecture, family, fields.whole("vocab_size"), model, family.table(fields), own)

    def put_weights(self, model: nn.Module) -> None:
        """Copy the weights into the model that ``model`` describes, on any device.

        Raises:
            UserError: a tensor is missing, unknown or of another shape, or a file is damaged.
        """
        parameters = dict(model.named_parameters())
        sources = {name: source_of(name, self.table) for name in parameters}
        with tensors_in(self.folder, pickled=self.state_spaces) as found, torch.no_grad():
            tensors = self._as_named(found)
            tied = HEAD in tensors and "head.weight" not in parameters
            needed = {name for source in sources.values() for name in source.names}
            self._refuse_names("lacks", needed - tensors.keys())
            self._refuse_names("has, and has no use for,", tensors.keys() - needed - ({HEAD} if tied else set()))
            for name, source in sources.items():
                parameters[name].copy_(self._parameter(source, tensors, parameters[name]))
            embedding = sources["embed.weight"].names[0]
            if tied and not torch.equal(tensors[HEAD](), tensors[embedding]()):
                rule = f"its {HEAD} is not {embedding}, as tie_word_embeddings says"
                refuse(self.folder, rule, "Name a checkpoint in which they are one, or set tie_word_embeddings=false")
        log.info("The weights are those of the %s in %s.", self.architecture, self.folder)

    def _as_named(self, found: Tensors) -> Tensors:
        """Tensors by the names that the whole model has for them: of the body alone they lack its name."""
        prefix = f"{self.family.body}."
        found = {renamed(name): read for name, read in found.items()} if self.state_spaces else found
        bare = not any(name.startswith(prefix) for name in found)
        named = {f"{prefix}{name}" if bare and name != HEAD else name: read for name, read in found.items()}
        return {name: read for name, read in named.items() if not re.fullmatch(self.family.constant, name)}

    def _refuse_names(self, does: str, names: set[str]) -> None:
        if names:
            shown = ", ".join(sorted(names)[:3])
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            rule = f"as {self.architecture} of its {CONFIG} it {does} {shown}{more}"
            refuse(self.folder, rule, f"Name a checkpoint whose {CONFIG} and weights belong together")

    def _parameter(self, source: Source, tensors: Tensors, parameter: Tensor) -> Tensor:
        """A parameter's value, of its shape and any floating dtype.

        Raises:
            UserError: the checkpoint's tensors give another shape, or no floating numbers.
        """
        values = [tensors[name]() for name in source.names]
        try:
            value = source.change(*values)
        except (RuntimeError, IndexError):  # of a number of axes that it does not take
            value = None
        floating = all(tensor.is_floating_point() for tensor in values)
        if value is None or value.shape != parameter.shape or not floating:
            shown = ", ".join(
                f"{name} {tuple(each.shape)} of {each.dtype}" for name, each in zip(source.names, values, strict=True)
            )
            rule = f"{shown} does not make the {tuple(parameter.shape)} that its {CONFIG} asks for"
            refuse(self.folder, rule, f"Name a checkpoint whose {CONFIG} and weights belong together")
        return value


def architecture_of(values: dict[str, Any], folder: Path) -> str:
    """The class of ``transformers`` that a ``config.json`` is for.

    Raises:
        UserError: it is of none that is known.
    """
    named = values.get("architectures")
    named = str(named[0]) if isinstance(named, list) and named else f"of model_type {values.get('model_type')}"
    if named not in FAMILIES:
        rule = f"{folder} holds this architecture, and known are {', '.join(FAMILIES)}"
        raise UserError("init_from: architecture", named, rule, "Name a checkpoint of one of these")
    return named
