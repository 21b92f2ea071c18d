"""Overrides such as ``+trainer.steps=10``, settings by their dotted keys, and compositions of ``conf/`` by Hydra."""

from collections.abc import Iterable
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from seqlab.config import CONFIG_FOLDER


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


def compose_in_job(*overrides: str, with_hydra: bool = False) -> DictConfig:
    """Another configuration than the running job's, from the same folders; the user's own among them."""
    job = HydraConfig.get()
    folders = [override for override in job.overrides.hydra if override.startswith("hydra.searchpath=")]
    return hydra.compose(job.job.config_name, [*folders, *overrides], return_hydra_config=with_hydra)
