"""The configuration: what its interpolations mean, and a check of every setting before anything is built.

A part's constructor is its schema: each ``_target_``'s settings are held against the names and types in its
signature, so that a mistyped one is refused with its place and the nearest name.
"""

import difflib
import inspect
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from seqlab.errors import UserError

CONFIG_FOLDER = Path(__file__).parents[2] / "conf"
RESUMABLE = ("trainer", "logger", "device", "debug", "resume", "data.dir", "data.cache_dir", "hydra")
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


def check(node: Any, key: str = "") -> None:
    """Hold every setting beneath a resolved configuration node against the signature of its ``_target_``."""
    if isinstance(node, list):
        for i, item in enumerate(node):
            check(item, f"{key}[{i}]")
    if not isinstance(node, dict):
        return
    annotations = signature_of(node, key) if "_target_" in node else {}
    for name, value in node.items():
        place = f"{key}.{name}" if key else str(name)
        check(value, place)
        if name in annotations and not builds_parts(value):
            check_type(value, annotations[name], place)


def builds_parts(value: Any) -> bool:
    """Whether a node holds something to instantiate, whose type is known only when it is built."""
    if isinstance(value, dict):
        return "_target_" in value or any(map(builds_parts, value.values()))
    return isinstance(value, list) and any(map(builds_parts, value))


def signature_of(node: dict[str, Any], key: str) -> dict[str, Any]:
    """The annotations of a target's parameters; a setting that is none of them is refused."""
    try:
        target = get_object(node["_target_"])
    except Exception as error:
        remedy = "Write the full path of a class or function that can be imported"
        raise UserError(f"{key}._target_", node["_target_"], f"cannot be imported ({error})", remedy) from error
    parameters = inspect.signature(target, eval_str=True).parameters.values()
    names = {p.name: p.annotation for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for name in node:
            if name not in names and name not in SPECIAL:
                rule = f"{node['_target_']} has no setting {name!r}"
                raise UserError(f"{key}.{name}", node[name], rule, nearest(name, names))
    return {name: kind for name, kind in names.items() if kind is not inspect.Parameter.empty}


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
        kind = inspect.formatannotation(annotation).replace("typing.", "")
        raise UserError(key, value, rule, f"Give it a value of type {kind}") from error


def settings_for(cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """The configuration to run: as composed, or that of the run which ``resume`` names.

    A resumed run keeps what it was started with; only settings that leave its mathematics alone, and the budget,
    may be given anew.

    Args:
        cfg: as composed.
        overrides: the command line's.
    """
    if cfg.resume is None:
        return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    folder = Path(cfg.resume)
    try:
        saved = OmegaConf.load(folder / "config.yaml")
    except (OSError, yaml.YAMLError, OmegaConfBaseException) as error:
        rule = f"is no run folder: config.yaml cannot be read there ({type(error).__name__})"
        raise UserError("resume", folder, rule, "Name a folder that an earlier run left under outputs/") from error
    OmegaConf.set_struct(saved, True)
    for override in overrides:
        key = override.split("=")[0].lstrip("+~")
        if key != "resume" and not key.startswith(RESUMABLE):
            raise UserError(
                key,
                override.partition("=")[2],
                "a resumed run keeps its model, data, optimizer and seed",
                f"Leave it out; what may change is {', '.join(RESUMABLE[:4])} and data.dir",
            )
        if "." in key and not key.startswith("hydra"):
            OmegaConf.update(saved, key, OmegaConf.select(cfg, key))
    for key in ("device", "debug", "resume"):
        saved[key] = cfg[key]
    if any(override.startswith("logger=") for override in overrides):
        saved.logger = cfg.logger
    return saved


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


def run_folder(resume: str | None, fresh: str) -> str:
    """Where a run writes: its own new folder, or the one that it continues."""
    return fresh if resume is None else resume


def hydra_folder(resume: str | None) -> str:
    """Where Hydra keeps what it composed; a resumed run adds to what the first one left."""
    return ".hydra" if resume is None else f".hydra/resumed_{datetime.now():%Y-%m-%d_%H-%M-%S}"


OmegaConf.register_new_resolver("seqlab.describe_options", describe_options, replace=True)
OmegaConf.register_new_resolver("seqlab.run_folder", run_folder, replace=True)
OmegaConf.register_new_resolver("seqlab.hydra_folder", hydra_folder, replace=True)
