"""Which of a checkpoint's tensors make a parameter, and how; and the other way round, to write a checkpoint.

A family's table has our parameters' names, and for each a name in the checkpoint or a ``Source``. An asterisk stands
for a layer's number, on both sides; where layers are not alike, the table names each.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

Values = dict[str, Any]
"""The fields of a ``config.json``."""


class Source(NamedTuple):
    """The tensors of a checkpoint that make one parameter."""

    names: tuple[str, ...]
    change: Callable[..., Tensor] = lambda tensor: tensor  # of these tensors to the parameter
    undo: Callable[[Tensor, Values], tuple[Tensor, ...]] = lambda parameter, _: (parameter,)  # its inverse


Table = Mapping[str, str | Source]


def joined(*names: str, shares: tuple[str, ...] = ()) -> Source:
    """Matrices (n_i, D), or vectors (n_i,), one below the other.

    Args:
        names: of the tensors.
        shares: for each the field of ``config.json`` that its n_i is a multiple of, by the same factor for all; none if
            all n_i are equal.
    """

    def parts(parameter: Tensor, fields: Values) -> tuple[Tensor, ...]:
        numbers = [fields[share] for share in shares] or [1] * len(names)
        return parameter.split([len(parameter) * number // sum(numbers) for number in numbers])

    return Source(names, lambda *tensors: torch.cat(tensors), parts)


def transposed(name: str) -> Source:
    """A matrix that the checkpoint has as (D_in, D_out)."""
    return Source((name,), lambda tensor: tensor.t(), lambda parameter, _: (parameter.t(),))


def depthwise(name: str) -> Source:
    """The weight of a depthwise convolution, (D, 1, K) in the checkpoint and (D, K) here."""
    return Source((name,), lambda tensor: tensor.squeeze(1), lambda parameter, _: (parameter.unsqueeze(1),))


def scaled(source: str | Source, factor: float | Tensor) -> Source:
    """A parameter that is ``factor`` times what the checkpoint has, in float32 if that is narrower.

    A vector of factors (n,) is for its rows.
    """
    source = Source((source,)) if isinstance(source, str) else source
    if bool((torch.as_tensor(factor) == 1).all()):
        return source

    def change(*tensors: Tensor) -> Tensor:
        value = source.change(*tensors)
        value = value.to(torch.promote_types(value.dtype, torch.float32))
        return value * (factor if isinstance(factor, float) else factor.view(-1, *[1] * (value.ndim - 1)))

    return Source(source.names, change)


def source_of(parameter: str, table: Table) -> Source:
    """The source of a parameter by its name in the model."""
    number = re.match(r"layers\.(\d+)\.", parameter)
    source = table.get(parameter) or table[re.sub(r"^layers\.\d+\.", "layers.*.", parameter)]
    source = Source((source,)) if isinstance(source, str) else source
    return source._replace(names=tuple(name.replace("*", number[1]) if number else name for name in source.names))


def translated(parameters: Mapping[str, Tensor], table: Table, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors as the parameters of a model, or their gradients as the parameters' gradients.

    Args:
        parameters: of the model, by name; only their names are read.
        table: the family's.
        tensors: by name in the checkpoint, of its shapes.

    Returns:
        Tensors of the parameters' names and shapes.
    """
    sources = {name: source_of(name, table) for name in parameters}
    return {name: source.change(*(tensors[n] for n in source.names)) for name, source in sources.items()}


def stored(parameters: Mapping[str, Tensor], table: Table, fields: Values) -> dict[str, Tensor]:
    """The parameters of a model as a checkpoint's tensors, the inverse of ``translated``.

    Args:
        parameters: of the model, by name.
        table: the family's.
        fields: of the checkpoint's ``config.json``.

    Returns:
        Tensors of the checkpoint's names and shapes, each contiguous and with memory of its own.
    """
    tensors = {}
    for name, parameter in parameters.items():
        source = source_of(name, table)
        parts = source.undo(parameter.detach(), fields)
        whole = len(parts) == 1 and parts[0].is_contiguous()
        copies = parts if whole else [part.clone(memory_format=torch.contiguous_format) for part in parts]
        tensors |= zip(source.names, copies, strict=True)
    return tensors
