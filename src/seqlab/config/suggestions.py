"""What was probably meant by the name of an option or a setting that does not exist."""

import difflib
from collections.abc import Iterable
from itertools import accumulate

from omegaconf import DictConfig, OmegaConf

from seqlab.config.options import all_options_of, config_folders, optional_groups
from seqlab.config.overrides import compose, flatten
from seqlab.errors import UserError, in_quotes, nearest
from seqlab.invocation import program


def with_choices(arguments: Iterable[str]) -> DictConfig:
    """The configuration under the valid choices of options among the arguments, with no other setting changed."""
    folders = config_folders()
    search = [f"hydra.searchpath=[{in_quotes(f'file://{folder.absolute()}')}]" for folder in folders[1:]]
    paths = {argument: f"{argument.replace('=', '/')}.yaml" for argument in arguments}
    return compose(*search, *(a for a, path in paths.items() if any((folder / path).is_file() for folder in folders)))


def known_settings(arguments: Iterable[str]) -> list[str]:
    """Every key that can be set under the choices among the arguments, parents before children."""
    keys = flatten(OmegaConf.to_container(with_choices(arguments), resolve=False))
    return list(dict.fromkeys(parent for key in keys for parent in accumulate(key.split("."), "{}.{}".format)))


OTHERWISE_CALLED = {"early_stopping": "patience"}
"""Settings by names that they have elsewhere."""


def nearest_setting(key: str, known: Iterable[str]) -> str:
    """A remedy that names the setting that was probably meant, or the settings beside it.

    Only the last part of a key is compared: most of a key is its group, in which unrelated settings look alike.
    """
    known = list(known)
    parent, dot, name = key.rpartition(".")
    name = OTHERWISE_CALLED.get(name, name)
    key = f"{parent}{dot}{name}"
    if any(other.rpartition(".")[2] == name for other in known):
        return nearest(key, known)
    while parent and parent not in known:  # up to the first group that exists
        parent, _, name = parent.rpartition(".")
    places = [other.rpartition(".") for other in known]
    beside = [last for place, _, last in places if place == parent and not last.startswith("_")]
    if not parent or not beside:
        return nearest(key, known)
    close = difflib.get_close_matches(name, beside, n=1)
    return f"Did you mean {f'{parent}.{close[0]}'!r}?" if close else f"{parent} has {', '.join(beside)}"


def no_option(group: str, option: str) -> UserError:
    """The error for an option that a group does not have."""
    if option == "null" and group in optional_groups():
        remedy = f"Leave {group} out, or write ~{group} where an experiment chooses one"
    elif option.startswith("["):
        remedy = f"Name one, and with -m several with commas between: {group}={option[1:-1]}"
    else:
        remedy = nearest(option, all_options_of(group))
    if remedy.startswith("There is n"):
        remedy = f"{program()} --help lists all that there are"
    return UserError(group, option, f"is no option of {group}", remedy)
