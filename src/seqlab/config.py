"""The configuration: what its interpolations mean, and a check of every setting before anything is built.

A part's constructor is its schema: each ``_target_``'s settings are held against the names and types in its
signature, so that a mistyped one is refused with its place and the nearest name.
"""

import difflib
import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, Field, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from seqlab.analysis.targets import check_targets
from seqlab.errors import UserError
from seqlab.sweep.folder import sweep_folder

CONFIG_FOLDER = Path(__file__).parents[2] / "conf"
SPECIAL = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")


def nearest(name: str, names: Iterable[str]) -> str:
    """A remedy that names what was probably meant, or all there is."""
    names = list(names)
    same_end = [other for other in names if other.split(".")[-1] == name.split(".")[-1]]
    close = same_end or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"There are: {', '.join(names)}" if len(names) <= 20 else "There is nothing like it"


def known_settings(arguments: list[str]) -> list[str]:
    """Every key that can be set on the command line, with the parts that valid choices among the arguments bring."""
    chosen = [a for a in arguments if (CONFIG_FOLDER / f"{a.replace('=', '/')}.yaml").is_file()]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        cfg = compose("config", chosen)
    return list(dotted_keys(OmegaConf.to_container(cfg, resolve=False)))


def dotted_keys(node: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Every key beneath a node, parents before children."""
    for name, value in node.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from dotted_keys(value, f"{prefix}{name}.")


TOP_LEVEL: dict[str, Any] = {
    "seed": Annotated[int, Field(ge=0, lt=2**63)],
    "device": Literal["auto", "cpu", "cuda"],
    "threads": Annotated[int, Field(ge=1)] | None,
    "resume": str | None,
    "debug": bool,
    "sweep.resume": bool,
}


def check_all(cfg: DictConfig) -> None:
    """Refuse a configuration with a setting of a wrong name or type, before anything is built."""
    resolved, raw = (OmegaConf.to_container(cfg, resolve=resolve) for resolve in (True, False))
    for key, annotation in TOP_LEVEL.items():
        group, _, name = key.rpartition(".")
        check_type((resolved[group] if group else resolved)[name], annotation, key)
    check_targets(resolved.get("target"))
    check(resolved, raw)


def check(node: Any, raw: Any = None, key: str = "") -> None:
    """Hold every setting beneath a resolved configuration node against the signature of its ``_target_``.

    Args:
        node: resolved.
        raw: the same node with its interpolations, which tell where a value comes from.
        key: the node's place.
    """
    if isinstance(node, list):
        for i, item in enumerate(node):
            check(item, None, f"{key}[{i}]")
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


GIVEN_LATER = {"tokens", "d_input", "d_output", "max_length"}  # to a model, by the data


def signature_of(node: dict[str, Any], key: str) -> dict[str, Any]:
    """The annotations of a target's parameters; a setting that is none of them, or a missing one, is refused."""
    try:
        parameters = inspect.signature(get_object(node["_target_"]), eval_str=True).parameters.values()
    except Exception as error:
        remedy = "Write the full path of a class or function that can be imported"
        why = str(error).splitlines()[0]
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
            raise UserError(f"{key}.{name}", "missing", f"{node['_target_']} needs it", f"Set +{key}.{name}=...")
    return {name: p.annotation for name, p in named.items() if p.annotation is not p.empty}


def check_type(value: Any, annotation: Any, key: str) -> None:
    """Refuse a value that its parameter's annotation does not admit."""
    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True, strict=True))
    except (PydanticSchemaGenerationError, PydanticUserError):
        return  # an annotation for the type checker alone
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        rules = dict.fromkeys(detail["msg"] for detail in error.errors())
        rule = " or ".join(message[0].lower() + message[1:] for message in rules)
        raise UserError(key, value, rule, f"Give it {in_words(annotation)}") from error


WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


def in_words(annotation: Any) -> str:
    """What a type admits, for a person."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return in_words(arguments[0])
    if get_origin(annotation) is Literal:
        return " or ".join(map(str, arguments))
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(map(in_words, arguments))
    if get_origin(annotation) is list:
        return f"a list, of {in_words(arguments[0])} each"
    return WORDS.get(annotation, f"a value of type {getattr(annotation, '__name__', annotation)}")


def first_comment(path: Path) -> str:
    """An option's description: the first comment in its YAML that is not a directive."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# ") and not line.startswith("# @"):
            return line[2:]
    return ""


def describe_options() -> str:
    """Every configuration group with its options, a line each, for ``--help``."""
    lines = []
    for group in sorted(path for path in CONFIG_FOLDER.iterdir() if path.is_dir() and path.name != "hydra"):
        options = sorted(group.glob("*.yaml"))
        width = max((len(option.stem) for option in options), default=0)
        lines.append(f"{group.name}=")
        lines += [f"  {option.stem:<{width}}  {first_comment(option)}" for option in options]
    return "\n".join(lines)


def console_level(mode: RunMode | None) -> str:
    """What a job says on the screen: in a sweep, whose screen shows all jobs, only what is amiss."""
    return "WARNING" if mode is RunMode.MULTIRUN else "INFO"


OmegaConf.register_new_resolver("seqlab.describe_options", describe_options, replace=True)
OmegaConf.register_new_resolver("seqlab.console_level", console_level, replace=True)
# Cached with the configuration, as Hydra's own ``now`` is: every job of a sweep gets what the first reading gave.
OmegaConf.register_new_resolver("seqlab.sweep_folder", sweep_folder, replace=True, use_cache=True)
