"""What the choice of a model brings besides the model: settings that reach nothing, a size of its own."""

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from seqlab.config import CONFIG_FOLDER, search_path
from seqlab.errors import UserError

log = logging.getLogger(__name__)

ABSENT = object()


def check_choice(cfg: DictConfig) -> None:
    """Refuse a running job's settings that its model has no use for, and say which size came with the model."""
    hydra = HydraConfig.get()
    choices, overrides = hydra.runtime.choices, list(hydra.overrides.task)
    check_mixers(cfg, choices, overrides)
    if choices.get("size") == own_size(choices.model) and (note := size_note([choices.model], overrides)):
        log.info("%s", note)


def unused_mixers(cfg: DictConfig) -> list[str]:
    """The mixers that a model describes and its pattern leaves out, as a hybrid's may."""
    return [name for name in cfg.model.get("mixers") or () if name not in (cfg.model.get("pattern") or ())]


def check_mixers(cfg: DictConfig, choices: DictConfig, overrides: list[str]) -> None:
    """Refuse what the command line or an experiment sets of a mixer that the pattern leaves out.

    In a sweep, whose jobs share settings and may differ in the pattern, it is a warning.

    Args:
        cfg: a job's, with its interpolations.
        choices: the options that it took.
        overrides: its command line.
    """
    unused = unused_mixers(cfg)
    touched = choices.get("experiment") or any(override.lstrip("+~").startswith("model.") for override in overrides)
    if not unused or not touched:
        return
    plain = compose(HydraConfig.get().job.config_name, [*search_path(), f"model={choices.model}"]).model.mixers
    own, shipped = (OmegaConf.to_container(node, resolve=False) for node in (cfg.model.mixers, plain))
    for name in unused:
        for key, value in differences(own[name], shipped.get(name, ABSENT), f"model.mixers.{name}"):
            rule = f"changes nothing, as model.pattern={list(cfg.model.pattern)} has no {name!r}"
            error = UserError(key, value, rule, f"Put {name} into model.pattern, or leave {key} out")
            if HydraConfig.get().mode is not RunMode.MULTIRUN:
                raise error
            log.warning("%s", error)


def differences(node: Any, other: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Each setting beneath ``node`` that is not what it is beneath ``other``, with its place."""
    if isinstance(node, dict) and isinstance(other, dict):
        for name, value in node.items():
            yield from differences(value, other.get(name, ABSENT), f"{key}.{name}")
    elif node != other:
        yield key, node


def own_size(model: str) -> str | None:
    """The size that a model's file chooses, ``None`` for one that runs at whatever size the others do."""
    path = CONFIG_FOLDER / "model" / f"{model}.yaml"
    defaults = OmegaConf.load(path).get("defaults", []) if path.is_file() else []
    named = (entry.get("override /size") for entry in defaults if isinstance(entry, DictConfig))
    return next(filter(None, named), None)


def size_note(models: Iterable[str], overrides: Iterable[str]) -> str | None:
    """What to say of models that choose their own size, unless the command line does or their names say it."""
    if any(override.startswith("size=") for override in overrides):
        return None
    sizes = {model: own_size(model) for model in models}
    told = [f"model={m} chose size={s}" for m, s in sizes.items() if s and not m.endswith(f"_{s}")]
    return f"{', '.join(told)}; size=... on the command line has the last word." if told else None
