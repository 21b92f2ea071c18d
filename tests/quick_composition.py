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
from types import SimpleNamespace
from typing import Any

import omegaconf
from hydra._internal import config_loader_impl, config_repository, defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.defaults_list import Overrides
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from hydra.types import RunMode
from omegaconf import DictConfig

from replaced import Replaced
from support import CONF

REPLACED = Replaced()
OURS = {f"file://{CONF}", "pkg://hydra.conf", "structured://"}


@contextmanager
def quick_composition() -> Iterator[None]:
    loader = ConfigLoaderImpl
    defaults, compose = _once_a_choice(
        config_loader_impl.create_defaults_list, loader._compose_config_from_defaults_list
    )
    load_config = _once(ConfigRepository.load_config, lambda self, config_path: _from_ours(self, config_path))
    embed = _once(
        loader._load_single_config,
        lambda self, default, repo: _from_ours(repo, default.config_path, default.package, default.primary),
    )
    quick = {
        (Hydra, "get_mode"): _mode_where_it_is_asked_for(Hydra.get_mode),
        (config_repository, "copy"): SimpleNamespace(deepcopy=copy),  # of sources, none of which is changed
        (config_loader_impl, "create_defaults_list"): defaults,
        (defaults_list, "_create_interpolation_map"): _where_one_interpolates(defaults_list._create_interpolation_map),
        (ConfigRepository, "load_config"): load_config,
        (loader, "_load_single_config"): embed,
        (loader, "_compose_config_from_defaults_list"): compose,
        (omegaconf.base, "parse"): cache(omegaconf.base.parse),
        (omegaconf._utils, "parse"): cache(omegaconf._utils.parse),
    }
    with REPLACED.by(quick):
        yield


def _once(function: Callable, key_of: Callable[..., tuple | None]) -> Callable:
    """Each result once, as far as it has a key; then copies, which pickle makes nine times as fast as ``deepcopy``."""
    known = {}

    def once(*arguments: Any, **named: Any) -> Any:
        key = key_of(*arguments, **named)
        if key is None:
            return function(*arguments, **named)
        if key not in known:
            known[key] = pickle.dumps(function(*arguments, **named))
        return pickle.loads(known[key])

    return once


def _from_ours(repo: Any, *key: Any) -> tuple | None:
    """A key with what plugins and the command line have registered, and which of them; none for a test's own folder."""
    ours = {source.full_path() for source in repo.get_sources()} <= OURS
    return (*key, _names(ConfigStore.instance().repo)) if ours else None


def _names(stored: dict) -> tuple:
    return tuple((name, _names(part) if isinstance(part, dict) else part.provider) for name, part in stored.items())


def _where_one_interpolates(create_map: Callable) -> Callable:
    def create(overrides: Any, defaults: list, self_added: bool) -> DictConfig | None:
        return create_map(overrides, defaults, self_added) if any(one.is_interpolation() for one in defaults) else None

    return create


def _mode_where_it_is_asked_for(get_mode: Callable) -> Callable:
    """For its mode alone Hydra would compose each once more, and nothing in conf/ but ``search`` has one."""

    def mode(self: Hydra, config_name: str, overrides: list[str]) -> RunMode | None:
        given = any(override.startswith(("hydra.mode=", "search=")) for override in overrides)
        return get_mode(self, config_name, overrides) if given else None

    return mode


def _once_a_choice(create_defaults_list: Callable, compose: Callable) -> tuple[Callable, Callable]:
    """Overrides of groups alone change which texts are composed; those of values are applied to the whole."""
    lists, known = {}, set()

    def defaults(repo: Any, config_name: str, overrides_list: list, prepend_hydra: bool, skip_missing: bool) -> Any:
        given = (config_name, overrides_list, prepend_hydra, skip_missing)
        chosen = [one.input_line for one in overrides_list if repo.group_exists(one.key_or_group)]
        key = _from_ours(repo, config_name, *chosen, prepend_hydra, skip_missing)
        if key is None:
            return create_defaults_list(repo, *given)
        if key not in lists:
            lists[key] = create_defaults_list(repo, *given)
            known.add(id(lists[key].defaults))
        return replace(lists[key], config_overrides=Overrides(repo, overrides_list).config_overrides)

    return defaults, _once(compose, lambda self, defaults, repo: (id(defaults),) if id(defaults) in known else None)
