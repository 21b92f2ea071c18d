"""Overrides such as ``+trainer.steps=10``, settings by their dotted keys, and compositions of ``conf/`` by Hydra."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from seqlab.config import CONFIG_FOLDER
from seqlab.errors import in_quotes

PLAIN = re.compile(r"[\w./+-]+")
"""Text that an override takes as it is."""


def as_override(key: str, value: Any) -> str:
    """The override that sets a value of Python's; text stays text, whatever is in it, but may refer to settings."""
    return f"{key}={as_value(value)}"


def as_value(value: Any) -> str:
    """A value in Hydra's grammar: nothing, a truth value, a number, text, a path, or a list or mapping of these."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{as_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(as_value, value))}]"
    text = str(value)
    return text if PLAIN.fullmatch(text) or not isinstance(value, str | Path) else in_quotes(text)


def parse(override: str) -> tuple[str, str]:
    """Key and value of an override as they were typed, the key without ``+`` or ``~``."""
    key, _, value = override.lstrip("+~").partition("=")
    return key, value


def parse_all(overrides: Iterable[str]) -> dict[str, str]:
    """The values that overrides set, by key."""
    return dict(map(parse, overrides))


def sets_any(override: str, keys: Iterable[str]) -> bool:
    """Whether an override sets one of the keys, something beneath it, or it in another package (``key@package``)."""
    key = parse(override)[0].partition("@")[0]
    return any(f"{key}.".startswith(f"{other}.") for other in keys)


def flatten(node: Any, prefix: str = "", *, into_lists: bool = False) -> dict[str, Any]:
    """The leaves of nested mappings by dotted key; lists and empty mappings are leaves.

    Args:
        node: plain containers.
        prefix: the node's own key.
        into_lists: whether to number what is in a list that has mappings in it, as in ``model.feedforward.1.top_k``.
    """
    if into_lists and isinstance(node, list) and any(isinstance(item, dict) for item in node):
        node = dict(enumerate(node))
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    flat: dict[str, Any] = {}
    for name, value in node.items():
        flat |= flatten(value, f"{prefix}.{name}" if prefix else str(name), into_lists=into_lists)
    return flat


def compose(*overrides: str, with_hydra: bool = False) -> DictConfig:
    """The configuration of a command line, composed outside of ``hydra.main``."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return hydra.compose("config", list(overrides), return_hydra_config=with_hydra)


@contextmanager
def hydra_of(config: DictConfig) -> Iterator[None]:
    """Resolve ``${hydra:...}`` from a composed configuration, as within its run or job."""
    hydra = HydraConfig.instance()
    before = hydra.cfg
    hydra.set_config(config)
    try:
        yield
    finally:
        hydra.cfg = before


def compose_in_job(*overrides: str, with_hydra: bool = False) -> DictConfig:
    """Another configuration than the running job's, from the same folders; the user's own among them."""
    job = HydraConfig.get()
    folders = [override for override in job.overrides.hydra if override.startswith("hydra.searchpath=")]
    return hydra.compose(job.job.config_name, [*folders, *overrides], return_hydra_config=with_hydra)
