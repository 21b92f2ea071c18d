"""A check of every setting before anything is built.

A part's constructor is its schema: each ``_target_``'s settings are checked against the names and types in its
signature, and a mistyped one is refused with its key and the nearest name.
"""

import inspect
import math
import os
import re
from collections.abc import Iterable, Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from hydra._internal.utils import _locate  # get_object logs what it raises, and the message would come twice
from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, Field, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError
from typing_extensions import get_type_hints, is_typeddict

from seqlab.config.suggestions import with_choices
from seqlab.errors import UserError, nearest

SPECIAL = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")

TOP_LEVEL: dict[str, Any] = {
    "name": str,
    "data_name": str,
    "seed": Annotated[int, Field(ge=0, lt=2**63)],
    "device": Literal["auto", "cpu", "cuda"],
    "threads": Annotated[int, Field(ge=1)] | None,
    "init_from": str | None,
    "resume": str | None,
    "trust": str | list[str] | None,
    "debug": bool,
    "sweep.resume": bool,
    "sweep.processes": Annotated[int, Field(ge=1)] | None,
}


def check_all(cfg: DictConfig) -> None:
    """Refuse a configuration with a setting of a wrong name or type, before anything is built.

    Raises:
        UserError: names the first such setting.
    """
    resolved, raw = (OmegaConf.to_container(cfg, resolve=resolve) for resolve in (True, False))
    for key, annotation in TOP_LEVEL.items():
        group, _, name = key.rpartition(".")
        settings = resolved.get(group, {}) if group else resolved
        if not isinstance(settings, dict):
            raise UserError(group, settings, "is a group of settings", f"Set {key}=...")
        if name in settings:  # an older run, which is continued, may lack some
            check_type(settings[name], annotation, key)
    refuse_more_than_cores(resolved.get("threads"))
    check(resolved, raw)


def cores() -> int:
    """All cores of the machine; a container may give this process fewer, which makes it slower and is no mistake."""
    return os.cpu_count() or 1


def refuse_more_than_cores(threads: int | None) -> None:
    """Refuse more CPU threads in a job than the machine has cores.

    Raises:
        UserError: there are fewer cores.
    """
    if threads is not None and threads > cores():
        raise UserError("threads", threads, f"this machine has {cores()} cores", f"Give it {cores()} or fewer, or null")


def check(node: Any, raw: Any = None, key: str = "") -> None:
    """Check every setting beneath a resolved configuration node against the signature of its ``_target_``.

    Args:
        node: resolved.
        raw: the same node with its interpolations, by which an error names the setting that a value comes from.
        key: of the node.

    Raises:
        UserError: a setting has a wrong name or type, is missing, or is not finite.
    """
    if isinstance(node, float) and not math.isfinite(node):
        raise UserError(key, node, "is not finite", "Give it a number; where a setting may be left open, null does so")
    if isinstance(node, list):
        for i, item in enumerate(node):
            check(item, None, f"{key}.{i}")
    if not isinstance(node, dict):
        return
    annotations = signature_of(node, key) if "_target_" in node else {}
    for name, value in node.items():
        below = raw.get(name) if isinstance(raw, dict) else None
        place = f"{key}.{name}" if key else str(name)
        check(value, below, place)
        if name in annotations and not builds_parts(value):
            origin = re.fullmatch(r"\$\{([\w.]+)\}", below) if isinstance(below, str) else None
            check_type(value, annotations[name], origin.group(1) if origin else place)


def builds_parts(value: Any) -> bool:
    """Whether a node holds something to instantiate, whose type is known only when it is built."""
    if isinstance(value, dict):
        return "_target_" in value or any(map(builds_parts, value.values()))
    return isinstance(value, list) and any(map(builds_parts, value))


GIVEN_LATER = {"tokens", "d_input", "d_output", "max_length"}
"""Arguments that the data gives to a model."""

GIVEN_TO_PARTS = {"d_model", "model"}
"""Arguments that a model gives to its mixers, and that an optimizer is given."""


def signature_of(node: dict[str, Any], key: str) -> dict[str, Any]:
    """The annotations of a target's parameters, by name.

    Raises:
        UserError: the target cannot be imported, a setting is no parameter of it, or one is missing.
    """
    try:
        parameters = inspect.signature(_locate(node["_target_"]), eval_str=True).parameters.values()
    except Exception as error:
        remedy = "Write the full path of a class or function that can be imported"
        why = " ".join(str(error).splitlines()[:2])  # Hydra's own second line has the cause
        raise UserError(f"{key}._target_", node["_target_"], f"cannot be used ({why})", remedy) from error
    named = {p.name: p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for name in node:
            if name not in named and name not in SPECIAL:
                rule = f"{node['_target_']} has no setting {name!r}"
                raise UserError(f"{key}.{name}", node[name], rule, nearest(name, named))
    for name, parameter in named.items():
        missing = parameter.default is parameter.empty and name not in node and name not in GIVEN_LATER
        if missing and not node.get("_partial_"):
            remedy = f"Set +{key}.{name}=..."
            if name in GIVEN_TO_PARTS:
                remedy = "Write _partial_: true beside its _target_, since it is given when the model is built"
            raise UserError(f"{key}.{name}", "missing", f"{node['_target_']} needs it", remedy)
    return {name: p.annotation for name, p in named.items() if p.annotation is not p.empty}


def check_type(value: Any, annotation: Any, key: str) -> None:
    """Refuse a value that its parameter's annotation does not admit.

    Raises:
        UserError: says what the annotation admits.
    """
    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True, strict=True))
    except (PydanticSchemaGenerationError, PydanticUserError):
        return  # an annotation for the type checker alone
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        messages = [(detail["loc"], detail["msg"][0].lower() + detail["msg"][1:]) for detail in error.errors()]
        if any(map(is_typeddict, (annotation, *get_args(annotation)))):  # whose fields have rules of their own
            messages = [(loc, ": ".join([*map(str, loc[:1]), message])) for loc, message in messages]
        rule = " or ".join(dict.fromkeys(message for _, message in messages)).replace(" after validation", "")
        raise UserError(key, value, rule, f"Give it {in_words(annotation)}{alike(value, annotation)}") from error


def alike(value: Any, annotation: Any) -> str:
    """A suggestion for a value of nearly the right type: 10000 for 1e4, ``[x]`` for ``x``."""
    if isinstance(value, float) and value.is_integer() and "whole number" in in_words(annotation):
        return f", for example {int(value)}"
    return f", for example [{value}]" if annotation == list[str] and isinstance(value, str) else ""


WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    type(None): "null",
    list: "a list",
    dict: "a mapping",
}


def in_words(annotation: Any) -> str:
    """What a type admits, in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        examples = [f", for example {one}" for about in arguments[1:] for one in getattr(about, "examples", None) or ()]
        return in_words(arguments[0]) + " and".join(limits_of(arguments[1:])) + "".join(examples)
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin in (Union, UnionType):
        return " or ".join(map(in_words, arguments))
    if is_typeddict(annotation):
        fields = get_type_hints(annotation, include_extras=True)
        return "{" + ", ".join(f"{name}: {in_words(kind)}" for name, kind in fields.items()) + "}"
    if origin is list:
        return f"a list, of {in_words(arguments[0])} each"
    return WORDS.get(origin or annotation, f"a value of type {getattr(annotation, '__name__', annotation)}")


LIMITS = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}
LARGEST_SHOWN = 2**31
"""A limit beyond this only says that a number fits into 64 bits."""


def limits_of(constraints: Iterable[Any]) -> Iterator[str]:
    """What pydantic's constraints ask of a number, in words."""
    for about in constraints:
        for limit in getattr(about, "metadata", None) or [about]:  # of a Field, or a constraint by itself
            for name, words in LIMITS.items():
                value = getattr(limit, name, None)
                if value is not None and abs(value) < LARGEST_SHOWN:
                    yield f" {words} {value:g}"


def wanted_form(key: str, arguments: list[str]) -> str:
    """What a setting takes, in words: by the signature that it is for, or by the value that it has."""
    cfg = with_choices(arguments)
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    annotations = signature_of(OmegaConf.to_container(node), parent) if "_target_" in node else {}
    usual = list if OmegaConf.is_list(node.get(name)) else dict
    return in_words(annotations.get(name, usual))
