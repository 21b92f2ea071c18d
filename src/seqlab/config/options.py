"""The groups in ``conf/``, their options and descriptions.

Like ``cli.resolvers``, this imports no torch: ``--help``, ``--cfg job`` and a mistyped name do not wait for it.
"""

from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from seqlab.config import CONFIG_FOLDER
from seqlab.errors import UserError
from seqlab.invocation import as_typed, config_dirs, remembered


def options_of(group: str) -> list[str]:
    """The options of a group in ``conf/``, by name."""
    return sorted(path.stem for path in (CONFIG_FOLDER / group).glob("*.yaml"))


def all_options_of(group: str) -> list[str]:
    """Every option of a group that can be chosen, those of a user's own folder (``--config-dir``) among them."""
    if GlobalHydra.instance().is_initialized():
        return GlobalHydra.instance().config_loader().get_group_options(group)
    return sorted(path.stem for folder in config_folders() for path in (folder / group).glob("*.yaml"))


def config_folders() -> list[Path]:
    """``conf/``, and the user's own folder that the command line names (``--config-dir``)."""
    return [CONFIG_FOLDER, *(own for own in map(Path, config_dirs(remembered())) if own.is_dir())]


def top_level_keys() -> set[str]:
    """The first parts of all keys, without composing anything: the groups, and the settings of ``config.yaml``."""
    groups = {path.name for path in CONFIG_FOLDER.iterdir() if path.is_dir()}
    return (groups | OmegaConf.load(CONFIG_FOLDER / "config.yaml").keys()) - {"hydra", "defaults"}


def optional_groups() -> set[str]:
    """The groups of which ``config.yaml`` chooses no option."""
    defaults = OmegaConf.load(CONFIG_FOLDER / "config.yaml").defaults
    return {group for entry in defaults if OmegaConf.is_dict(entry) for group in entry if entry[group] is None}


def model_name(name: str, option: str, init_from: str | None) -> str:
    """The name of a run's model: the one that is set, or else that of the folder that the model is read from."""
    if init_from is None or name != option:
        return name
    folder = Path(str(init_from))
    return folder.name if folder.name.strip(".") else folder.resolve().name


def path_part(key: str, name: Any, option: str) -> str:
    """A run's name as one part of its folder's path.

    Args:
        key: the setting of the name.
        name: of the model or the data.
        option: the name unless another is set; it may be in a folder of its own (``model=mine/deep``).

    Raises:
        UserError: the name is not text, is empty, or would lead to another folder.
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
    for fault in (words for words, found in faults.items() if found):
        rule = f"is part of the name of the run's folder, and {fault}"
        raise UserError(key, name, rule, f"Give it a plain name, for example {key}={option.replace('/', '_')}_2")
    return name


def first_comment(path: Path) -> str:
    """An option's description: the first comment in its YAML that is not a directive."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# ") and not line.startswith("# @"):
            return line[2:]
    return ""


def describe_options() -> str:
    """Every configuration group with its options, a line each, for ``--help``; a user's own come after ours."""
    groups: dict[str, list[Path]] = {}
    for folder in config_folders():
        for group in sorted(path for path in folder.iterdir() if path.is_dir() and path.name != "hydra"):
            groups.setdefault(group.name, []).extend(sorted(group.glob("*.yaml")))
    lines = []
    for group, options in sorted(groups.items()):
        width = max((len(option.stem) for option in options), default=0)
        lines.append(f"{group}=")
        lines += [f"  {option.stem:<{width}}  {first_comment(option)}" for option in options]
    return "\n".join(lines)


def help_text() -> str:
    """The text of ``--help``."""
    return as_typed(OmegaConf.load(CONFIG_FOLDER / "hydra" / "help" / "seqlab.yaml").template)
