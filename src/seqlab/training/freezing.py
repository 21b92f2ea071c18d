"""Which parameters are trained, by patterns of their names."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from itertools import accumulate

from torch import nn

from seqlab.errors import UserError, nearest

Named = dict[str, nn.Parameter]


def is_of(pattern: str, name: str) -> bool:
    """Whether a pattern describes a parameter's name or some of its parts that follow one another.

    So ``in_proj`` is of each ``....in_proj.weight``, ``layers.0`` and ``layers.0.*`` of the first layer alone.
    """
    return fnmatchcase(f".{name}.", f"*.{pattern}.*")


def matching(model: nn.Module, patterns: Iterable[str], key: str) -> Named:
    """The parameters that some pattern is of (``is_of``), by name; a shared one goes by each of its names.

    Args:
        model: any.
        patterns: of names, with ``*``, ``?`` and ``[...]`` as in file names.
        key: the setting that they are of.

    Raises:
        UserError: one is of no parameter.
    """
    names = dict(model.named_parameters(remove_duplicate=False))
    found: Named = {}
    for pattern in patterns:
        these = {name: p for name, p in names.items() if is_of(pattern, name)}
        if not these:
            raise UserError(key, pattern, "is of no parameter of this model", alike(pattern.strip(".*"), names))
        found |= these
    return {name: p for name, p in names.items() if name in found}


def alike(pattern: str, names: Iterable[str]) -> str:
    """A remedy that names what of the parameters' names was probably meant, or the parts that they consist of."""
    split = [name.split(".") for name in names]
    parts = dict.fromkeys(part for name in split for part in name if not part.isdecimal())
    starts = dict.fromkeys(start for name in split for start in accumulate(name, "{}.{}".format))
    remedy = nearest(pattern, starts | parts)
    return remedy if remedy.startswith("Did you mean") else f"Its parts are: {', '.join(parts)}"


def freeze(model: nn.Module, patterns: Iterable[str]) -> None:
    """Leave the parameters that the patterns are of as they are: no gradient, no decay, no optimizer's state.

    Raises:
        UserError: a pattern is of no parameter, or nothing is left to train.
    """
    patterns = list(patterns)
    for p in matching(model, patterns, "freeze").values():
        p.requires_grad_(False)
    if patterns and not any(p.requires_grad for p in model.parameters()):
        raise UserError("freeze", patterns, "leaves nothing to train", "Leave a part of the model out of it")
