"""Hydra's errors about the command line in plain words, each with what was probably meant."""

import difflib
import re
import shlex
import sys
from collections.abc import Callable, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from seqlab.config import CONFIG_FOLDER
from seqlab.config.command_line import parse_flags, typed_settings
from seqlab.config.influence import CHANGEABLE
from seqlab.config.suggestions import known_settings, nearest_setting, no_option
from seqlab.errors import UserError
from seqlab.invocation import program

WRONG_FORM = "does not have the form that it takes"
PLUGINS = ("basic", "joblib", "submitit_local", "submitit_slurm", "local_gpus", "seqlab_ray", "points", "seqlab")
"""Launchers and sweepers of this project."""


def composition_error(message: str) -> UserError:
    """The error that one of Hydra's messages about the command line stands for."""
    for pattern, meaning in MEANINGS.items():
        if found := re.search(pattern, message):
            return meaning(*found.groups())
    return unreadable(sys.argv[1:], message)


def typed_with(text: str) -> tuple[str, str]:
    """The typed key and value of the setting whose value has a text in it."""
    return next((item for item in typed_settings().items() if text in item[1]), ("command line", ""))


def wrong_form(key: str, value: str) -> UserError:
    """The error for a value of another form than the setting has: a number where a mapping is."""
    from seqlab.config.schema import wanted_form  # imports the part that the setting is of

    return UserError(key, value, WRONG_FORM, f"Give it {wanted_form(key, sys.argv[1:])}")


def missing_folder(which: str, folder: str) -> UserError:
    """The error for a folder of configurations that does not exist."""
    flag = {"Additional": "--config-dir", "Primary": "--config-path"}[which]
    remedy = "Name a folder with groups in it, as conf/ has (model/, data/, ...)"
    return UserError(flag, folder, "there is no such folder", remedy)


def missing_plugin(kind: str, name: str) -> UserError:
    """The error for a launcher or sweeper of a package that is not installed."""
    plugin = name.partition("_")[0]  # submitit_local and submitit_slurm come together
    close = difflib.get_close_matches(name, PLUGINS, n=1)
    if plugin in ("joblib", "submitit"):
        remedy = f"Install it with pip install 'seqlab[{plugin}]'"
    else:
        remedy = f"Did you mean {close[0]!r}?" if close else "Install the package that brings it"
    return UserError(f"hydra/{kind}", name, "is not among Hydra's plugins here", remedy)


def no_setting(key: str) -> UserError:
    """The error for a key that the composed configuration does not have."""
    arguments = typed_settings()
    value = arguments.get(key, "")
    if "resume" in arguments and key in CHANGEABLE:  # composed are the default parts, and not those of the run
        rule = "is no setting of the parts that the command line begins with"
        return UserError(key, value, rule, f"Write '+{key}={value}'")
    if key.startswith("hydra."):
        return UserError(key, value, "is no setting of Hydra's", f"{program()} --cfg hydra lists all")
    if lacking := options_without(key):
        remedy = f"Leave {key} out, or sweep over those that have it in a command of their own"
        return UserError(key, value, f"is no setting of {', '.join(lacking)}", remedy)
    return UserError(key, value, "is no setting", nearest_and_all(key))


def nearest_and_all(key: str) -> str:
    """A remedy that names the setting probably meant, and how to see all."""
    return f"{nearest_setting(key, known_settings(sys.argv[1:]))} ({program()} --cfg job lists all)"


def options_without(key: str) -> list[str]:
    """The options of a sweep that lack a setting which others of the same group have."""
    for group, values in typed_settings().items():
        if "," in values and (CONFIG_FOLDER / group).is_dir():
            options = [f"{group}={option}" for option in values.split(",")]
            lacking = [option for option in options if key not in known_settings([*sys.argv[1:], option])]
            if 0 < len(lacking) < len(options):
                return lacking
    return []


def unreadable(arguments: Sequence[str], message: str) -> UserError:
    """The error for the first argument that is no setting, or for all of them where each alone is one."""
    parser = OverridesParser.create()
    remedy = "Write settings as key=value, without spaces, and quote what the shell would take for itself"
    for argument in parse_flags(arguments).overrides:
        try:
            readable = bool(parser.parse_override(argument).key_or_group)
        except HydraException:
            readable = False
        if not readable:
            options = sorted(CONFIG_FOLDER.glob(f"*/{argument}.yaml")) if argument.isidentifier() else []
            if options:
                remedy = f"Did you mean {options[0].parent.name}={argument}?"
            rule = "cannot be read" if "=" in argument else "is no setting with a value"
            return UserError("command line", argument, rule, remedy)
    return UserError("command line", shlex.join(arguments), message.splitlines()[0], remedy)


MEANINGS: dict[str, Callable[..., UserError]] = {
    r"Cannot find primary config '([^']+)'": lambda name: UserError(
        "--config-name",
        name,
        "there is no configuration of this name",
        "Leave it out: the configuration is called config; your own is found with --config-dir",
    ),
    r"(?s)(Additional|Primary) config directory .*?'([^']+)'": missing_folder,
    r"Could not find 'hydra/([^']+)/([^'/]*)'": missing_plugin,
    r"Could not find '(\w+)/([^']*)'": no_option,
    r"Could not override '([^']+)'": no_setting,
    r"Could not append to config\. An item is already at '([^']+)'": lambda key: UserError(
        f"+{key}", value := typed_settings().get(key, ""), "is a setting already", f"Write {key}={value}, without the +"
    ),
    r"Could not delete from config\. '([^']+)' does not exist": lambda key: UserError(
        "command line",
        f"~{key}",
        "takes away what is not there",
        nearest_and_all(key),
    ),
    r"Error merging override \+*(hydra\.[^=]+)=(.*)": lambda key, value: UserError(
        key, value, WRONG_FORM, f"{program()} --cfg hydra shows what it is"
    ),
    r"Error merging override \+*([^=]+)=(.*)": wrong_form,
    r"Ambiguous value for argument '([^=']+)=([^']*)'": lambda key, value: UserError(
        key,
        value,
        "is several values, and a run takes one",
        f"Add -m to run each in turn, or write '{key}=[{value}]' for a list",
    ),
    r"Multiple values for (\w+)\.": lambda group: UserError(
        group, typed_settings().get(group, ""), "is chosen already", f"Write it once, as {group}=..., without a +"
    ),
    r"Missing key (\w+)": lambda key: UserError(key, "missing", "a run needs it", f"Set {key}=..."),
    r"does not support sweep type : INTERVAL_SWEEP": lambda: UserError(
        *typed_with("interval("),
        "an interval has no single values to run, and is for a search",
        "Write range(start, stop, step) or the values with commas between, or add search=optuna",
    ),
    r"range\(\) arg 3 must not be zero": lambda: UserError(
        *typed_with("range("), "a range cannot go on by steps of 0", "Write range(start, stop, step)"
    ),
}
"""Hydra's messages, and the error that each stands for; the groups of a pattern are the arguments."""
