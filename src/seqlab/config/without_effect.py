"""Settings that have no effect on a job are refused or noted; a size that the model chose itself is noted."""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from seqlab.config import CONFIG_FOLDER
from seqlab.config.options import path_part, top_level_keys
from seqlab.config.overrides import compose_in_job, flatten, parse, sets_any
from seqlab.config.suggestions import nearest_setting
from seqlab.errors import UserError

log = logging.getLogger(__name__)

ABSENT = object()


def check_choice(cfg: DictConfig) -> None:
    """Refuse a job's settings that have no effect; log the size that its model chose, and a window without effect.

    Raises:
        UserError: as ``refuse_without_effect``, or a launcher or processes are given for one run.
    """
    hydra = HydraConfig.get()
    choices, overrides = hydra.runtime.choices, list(hydra.overrides.task)
    swept = hydra.mode is RunMode.MULTIRUN
    if not swept and (launcher := choices.get("launcher")):
        rule = "starts the jobs of a sweep, and this is one run"
        raise UserError("launcher", launcher, rule, "Add -m, or leave it out")
    if not swept and (processes := OmegaConf.select(cfg, "sweep.processes")):
        rule = "is for the jobs of a sweep, and this is one run"
        raise UserError(
            "sweep.processes", processes, rule, f"Start it by torchrun --nproc-per-node={processes}, or add -m"
        )
    refuse_without_effect(cfg, unused_mixers_too=not swept)
    if choices.get("size") == own_size(choices.model) and (note := size_note([choices.model], overrides)):
        log.info("%s", note)
    if not swept and (note := idle_note(cfg, choices.model, overrides)):
        log.info("%s", note)
    if note := window_note(cfg):  # the table of a sweep would show two equal models without a reason
        log.log(logging.WARNING if swept else logging.INFO, "%s", note)


def refuse_without_effect(cfg: DictConfig, *, unused_mixers_too: bool = True) -> None:
    """Refuse names that no folder can have, and settings that nothing of a job reads.

    Args:
        cfg: a job's, with its interpolations.
        unused_mixers_too: refuse the settings of a mixer that the pattern leaves out, instead of a warning: in a sweep,
            other jobs may use it.

    Raises:
        UserError: names the first of them; also a sweep of ``resume``, and an architecture beside ``init_from``.
    """
    hydra = HydraConfig.get()
    choices, overrides = hydra.runtime.choices, list(hydra.overrides.task)
    if hydra.mode is RunMode.MULTIRUN and cfg.resume is not None:
        raise UserError("resume", cfg.resume, "continues one run and cannot be swept", "Leave out -m and search=")
    path_part("name", cfg.name, choices.model)
    path_part("data_name", cfg.data_name, choices.data)
    check_added(cfg, overrides)
    refuse_beside_checkpoint(cfg, overrides)
    for error in settings_of_unused_mixers(cfg, choices, overrides):
        if unused_mixers_too:
            raise error
        log.warning("%s", error)


def check_added(cfg: DictConfig, overrides: Iterable[str]) -> None:
    """Refuse a new part of the configuration (``+optimiser.lr=1``) that nothing in it refers to.

    Raises:
        UserError: names the new setting.
    """
    for override in overrides:
        key, value = parse(override)
        root = key.partition(".")[0]
        if not override.startswith("+") or "/" in key or "@" in key or root in top_level_keys():
            continue
        rest = {k: v for k, v in unresolved(cfg).items() if k.partition(".")[0] != root}
        if not any("${" in str(item) and re.search(rf"\b{re.escape(root)}\b", str(item)) for item in rest.values()):
            raise UserError(f"+{key}", value, "is a new setting that nothing reads", nearest_setting(key, rest))


def refuse_beside_checkpoint(cfg: DictConfig, overrides: Iterable[str]) -> None:
    """Refuse settings of an architecture where a checkpoint has its own (``init_from``); dropout is none.

    Raises:
        UserError: names the first of them.
    """
    if cfg.get("init_from") is None:
        return
    for override in overrides:
        key, value = parse(override)
        if sets_any(override, ("model", "size")) and key != "model.dropout":
            rule = f"the model and its size are those of init_from={cfg.init_from}"
            raise UserError(key, value, rule, f"Leave {key} out, or init_from")


def unresolved(cfg: DictConfig) -> dict[str, Any]:
    """Every setting by its dotted key, with its interpolations."""
    return flatten(OmegaConf.to_container(cfg, resolve=False))


def window_note(cfg: DictConfig) -> str | None:
    """A note on a sliding window that is as long as the sequences, and so has no effect."""
    length, mixers = OmegaConf.select(cfg, "data.length"), cfg.model.get("mixers") or {}
    for name in mixers_in_pattern(cfg.model):
        window = OmegaConf.select(mixers, f"{name}.window")
        if isinstance(window, int) and isinstance(length, int) and window >= length:
            key = f"model.mixers.{name}.window={window}"
            return f"{key} covers all of data.length={length}: the model trains as the same one without a window."
    return None


def mixers_in_pattern(model: Mapping[str, Any]) -> list[str]:
    """The mixers that the pattern of a model's settings names, each once; a plus sign joins those side by side."""
    return list(dict.fromkeys(name for entry in model.get("pattern") or () for name in str(entry).split("+")))


def unused_mixers(model: Mapping[str, Any]) -> list[str]:
    """The mixers that a model's settings describe and its pattern leaves out, as a hybrid's may."""
    used = mixers_in_pattern(model)
    return [name for name in model.get("mixers") or () if name not in used]


def reaches_nothing(cfg: DictConfig, key: str) -> bool:
    """Whether a setting has no effect: that of a mixer which the pattern leaves out, or a size which nothing reads.

    Args:
        cfg: a job's, with its interpolations.
        key: of the setting.
    """
    unused = tuple(f"model.mixers.{name}." for name in unused_mixers(cfg.model))
    if key.startswith(unused):
        return True
    group, _, name = key.rpartition(".")
    if group != "size" or name not in (cfg.get("size") or ()) or cfg.get("match") is not None:
        return False  # the reference that a model is matched with may read what the model does not
    settings = unresolved(cfg)
    read = [str(v) for k, v in settings.items() if not k.startswith((*unused, "hydra."))]
    return not any("${" in text and re.search(rf"\b{name}\b|{{size}}", text) for text in read)


def idle_note(cfg: DictConfig, model: str, overrides: Iterable[str]) -> str | None:
    """A note on sizes that are set and that the model does not have."""
    idle = [override for override in overrides if reaches_nothing(cfg, parse(override)[0])]
    return f"{', '.join(idle)}: changes nothing, as model={model} does not read it." if idle else None


def settings_of_unused_mixers(cfg: DictConfig, choices: DictConfig, overrides: list[str]) -> Iterator[UserError]:
    """An error for each setting of a mixer that the command line or an experiment sets and the pattern leaves out.

    Args:
        cfg: a job's, with its interpolations.
        choices: the option of each group.
        overrides: its command line.
    """
    unused = unused_mixers(cfg.model)
    touched = choices.get("experiment") or any(parse(override)[0].startswith("model.") for override in overrides)
    if not unused or not touched:
        return
    plain = compose_in_job(f"model={choices.model}").model.mixers
    own, shipped = (OmegaConf.to_container(node, resolve=False) for node in (cfg.model.mixers, plain))
    for name in unused:
        for key, value in differences(own[name], shipped.get(name, ABSENT), f"model.mixers.{name}"):
            rule = f"changes nothing, as model.pattern={list(cfg.model.pattern)} has no {name!r}"
            yield UserError(key, value, rule, f"Put {name} into model.pattern, or leave {key} out")


def differences(node: Any, other: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Each setting beneath ``node`` that is not what it is beneath ``other``, with its key."""
    if isinstance(node, dict) and isinstance(other, dict):
        for name, value in node.items():
            yield from differences(value, other.get(name, ABSENT), f"{key}.{name}")
    elif node != other:
        yield key, node


def own_size(model: str) -> str | None:
    """The size that a model's file chooses, ``None`` for one that takes the default size."""
    path = CONFIG_FOLDER / "model" / f"{model}.yaml"
    defaults = OmegaConf.load(path).get("defaults", []) if path.is_file() else []
    named = (entry.get("override /size") for entry in defaults if isinstance(entry, DictConfig))
    return next(filter(None, named), None)


def size_note(models: Iterable[str], overrides: Iterable[str]) -> str | None:
    """A note on models that choose their own size, unless the command line does or their names say it."""
    if any(override.startswith("size=") for override in overrides):
        return None
    sizes = {model: own_size(model) for model in models}
    chosen = [f"model={m} chose size={s}" for m, s in sizes.items() if s and not m.endswith(f"_{s}")]
    return f"{', '.join(chosen)}; size=... on the command line has the last word." if chosen else None
