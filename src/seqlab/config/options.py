"""The configuration as it lies in ``conf/``: its keys, its options and what is said of them.

Neither this file nor ``resolvers`` imports torch: ``--help``, ``--cfg job`` and a mistyped name do not wait for it.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from seqlab.errors import UserError

CONFIG_FOLDER = Path(__file__).parents[3] / "conf"


def known_settings(arguments: list[str]) -> list[str]:
    """Every key that can be set on the command line, with the parts that valid choices among the arguments bring."""
    return list(dotted_keys(OmegaConf.to_container(with_choices(arguments), resolve=False)))


def with_choices(arguments: list[str]) -> DictConfig:
    """The configuration under the valid choices of parts among the arguments, with no other setting changed."""
    chosen = [a for a in arguments if (CONFIG_FOLDER / f"{a.replace('=', '/')}.yaml").is_file()]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return compose("config", chosen)


def beginnings() -> set[str]:
    """The first parts of all keys, without composing anything: the groups, and what stands in config.yaml itself."""
    groups = {path.name for path in CONFIG_FOLDER.iterdir() if path.is_dir()}
    lines = (CONFIG_FOLDER / "config.yaml").read_text(encoding="utf-8").splitlines()
    own = {line.partition(":")[0] for line in lines if re.match(r"\w+:", line)}
    return (groups | own) - {"hydra", "defaults"}


def dotted_keys(node: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Every key beneath a node, parents before children."""
    for name, value in node.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from dotted_keys(value, f"{prefix}{name}.")


def model_options() -> list[str]:
    """Every model that can be chosen, those of a person's own folder (``--config-dir``) among them."""
    if GlobalHydra.instance().is_initialized():
        return GlobalHydra.instance().config_loader().get_group_options("model")
    return sorted(path.stem for path in (CONFIG_FOLDER / "model").glob("*.yaml"))


def path_part(key: str, name: Any, option: str) -> str:
    """A run's name as one part of its folder's path.

    Args:
        key: that sets the name.
        name: of the model or the data.
        option: that is called so if nobody sets another name; it may lie in a folder of its own (``model=mine/deep``).

    Raises:
        UserError: the name is none, or leads elsewhere.
    """
    if name == option:
        return option.replace("/", "_")
    faults = {
        "has to be text": not isinstance(name, str),
        "cannot be empty": not str(name).strip(),
        "cannot have / or \\ in it": bool({"/", "\\"} & set(str(name))),
        "cannot begin with a dot": str(name).startswith("."),
        "cannot have characters in it that nobody sees": not str(name).isprintable(),
    }
    for fault in (words for words, there in faults.items() if there):
        rule = f"is part of the name of the run's folder, and {fault}"
        raise UserError(key, name, rule, f"Give it a plain name, for example {key}={option.replace('/', '_')}_2")
    return name


def search_path() -> list[str]:
    """The override by which the running job finds a person's own folders, for what is composed besides it."""
    return [override for override in HydraConfig.get().overrides.hydra if override.startswith("hydra.searchpath=")]


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


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Every setting by its dotted key; of parts in a list by their number, as in ``model.feedforward.1.top_k``."""
    if isinstance(node, list) and any(isinstance(item, dict) for item in node):
        node = dict(enumerate(node))
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    return {k: v for name, item in node.items() for k, v in flat(item, f"{prefix}.{name}".lstrip(".")).items()}
