"""Hydra's composition without the work that it does again each time: the same configurations in a third of the time.

Thousands are composed of the same texts in conf/, most of them of the same choices among these: what a folder of a
test's own adds is composed as ever.
"""

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import omegaconf
from hydra._internal import config_loader_impl, config_repository
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.defaults_list import Overrides
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from replaced import Replaced
from support import CONF

REPLACED = Replaced()
OURS = {f"file://{CONF}", "pkg://hydra.conf", "structured://"}


@contextmanager
def quick_composition() -> Iterator[None]:
    defaults, compose = _once_a_choice(
        config_loader_impl.create_defaults_list, ConfigLoaderImpl._compose_config_from_defaults_list
    )
    quick = {
        (OmegaConf, "load"): staticmethod(_parsed_once(OmegaConf.load)),
        (Hydra, "get_mode"): _mode_where_it_is_asked_for(Hydra.get_mode),
        (config_repository, "copy"): SimpleNamespace(deepcopy=copy),  # of sources, none of which is changed
        (config_loader_impl, "create_defaults_list"): defaults,
        (ConfigLoaderImpl, "_compose_config_from_defaults_list"): compose,
        (omegaconf.base, "parse"): cache(omegaconf.base.parse),
        (omegaconf._utils, "parse"): cache(omegaconf._utils.parse),
    }
    with REPLACED.by(quick):
        yield


def _parsed_once(load: Callable) -> Callable:
    content = cache(lambda path, modified: pickle.dumps(load(path)))

    def load_once(file: Any) -> DictConfig | ListConfig:
        path = Path(getattr(file, "name", file)).resolve()
        if not path.is_relative_to(CONF):
            return load(file)
        return pickle.loads(content(path, path.stat().st_mtime_ns))

    return load_once


def _mode_where_it_is_asked_for(get_mode: Callable) -> Callable:
    """For its mode alone Hydra would compose each once more, and nothing in conf/ but ``search`` has one."""

    def mode(self: Hydra, config_name: str, overrides: list[str]) -> RunMode | None:
        given = any(override.startswith(("hydra.mode=", "search=")) for override in overrides)
        return get_mode(self, config_name, overrides) if given else None

    return mode


def _once_a_choice(create_defaults_list: Callable, compose_config: Callable) -> tuple[Callable, Callable]:
    """Overrides of groups alone change which texts are composed; those of values are applied to the whole."""
    lists, whole = {}, {}

    def defaults(repo: Any, config_name: str, overrides_list: list, prepend_hydra: bool, skip_missing: bool) -> Any:
        given = (config_name, overrides_list, prepend_hydra, skip_missing)
        if not {source.full_path() for source in repo.get_sources()} <= OURS:
            return create_defaults_list(repo, *given)
        chosen = [one.input_line for one in overrides_list if repo.group_exists(one.key_or_group)]
        launchers = ConfigStore.instance().repo["hydra"]["launcher"]  # those that are installed
        key = (config_name, *chosen, prepend_hydra, skip_missing, *launchers)
        if key not in lists:
            lists[key] = create_defaults_list(repo, *given)
            whole[id(lists[key].defaults)] = None
        return replace(lists[key], config_overrides=Overrides(repo, overrides_list).config_overrides)

    def compose(self: ConfigLoaderImpl, defaults: list, repo: Any) -> DictConfig:
        if id(defaults) not in whole:  # which keeps the lists that it is for
            return compose_config(self, defaults, repo)
        if whole[id(defaults)] is None:
            whole[id(defaults)] = pickle.dumps(compose_config(self, defaults, repo))
        return pickle.loads(whole[id(defaults)])  # nine times as fast as a deep copy

    return defaults, compose
