"""Reading the command line before Hydra does: flags and settings apart, paths quoted, mistakes refused."""

import argparse
import difflib
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException

from seqlab.config import CONFIG_FOLDER
from seqlab.config.options import optional_groups, top_level_keys
from seqlab.config.overrides import parse, parse_all
from seqlab.config.suggestions import no_option
from seqlab.errors import UserError, in_quotes
from seqlab.invocation import arguments, program

PATHS = ("init_from", "resume", "data.dir", "data.cache_dir", "hydra.run.dir", "hydra.sweep.dir")
"""Settings that name a folder, whose name may contain = and a comma, as those of a sweep's jobs do."""

OR_ELSE = ("data.files", "data.tokens", "data.end_token")
"""Settings that may be a path or a token with such characters in it, and may be several or something else."""

HOME = re.compile(r"(?<![^,\[:])~(?=/)")
"""A home folder, which a shell leaves as it is after an equals sign."""


def typed_settings() -> dict[str, str]:
    """The command line's settings as typed, by key; in the process of a sweep's job, those of the sweep's command."""
    return parse_all(arguments())


def in_order(arguments: Sequence[str]) -> list[str]:
    """The arguments as Hydra takes them: ``-m`` first, then the settings, with paths quoted, then the other flags.

    Raises:
        UserError: a flag does not exist, a setting has dashes, a path is empty, or an option is no option's name.
    """
    known = parse_flags(arguments)
    settings = [quoted_path(setting, swept=known.multirun) for setting in known.overrides]
    for setting in settings:
        refuse_empty_path(setting)
        refuse_no_name(setting)
    flags = [argument for argument in arguments if argument not in (*known.overrides, "-m", "--multirun")]
    if known.config_path and "://" not in known.config_path:
        flags += ["--config-path", str(Path(known.config_path).absolute())]  # Hydra would look beside our code
    return [*(["-m"] if known.multirun else []), *settings, *flags]


def parse_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """Hydra's flags with their values; ``overrides`` are the settings, wherever they stand among the flags.

    Raises:
        UserError: a flag does not exist or lacks what it needs, or a setting is written with dashes.
    """
    for argument in arguments:
        plain = argument.lstrip("-")
        if argument.startswith("-") and re.split("[.=]", plain)[0] in top_level_keys():
            remedy = f"Write {plain if '=' in plain else f'{plain}=...'}"
            raise UserError("command line", argument, "a setting is written without dashes", remedy)

    flags_listed = f"{program()} --hydra-help lists the flags"

    def refuse(message: str) -> None:
        raise UserError("command line", shlex.join(arguments), message, flags_listed)

    parser = get_args_parser()
    parser.error = refuse
    known, unknown = parser.parse_known_intermixed_args(list(arguments))
    for flag in unknown:
        flags = [name for action in parser._actions for name in action.option_strings]
        close = difflib.get_close_matches(flag, flags, n=1, cutoff=0.7)
        raise UserError("command line", flag, "is no flag", f"Did you mean {close[0]}?" if close else flags_listed)
    if known.resolve and not (known.cfg or known.help):
        refuse("--resolve shows what a configuration comes to, and goes with --cfg job")
    if known.experimental_rerun and not Path(known.experimental_rerun).is_file():
        remedy = "Name the config.pickle of a run that kept one"
        raise UserError("--experimental-rerun", known.experimental_rerun, "there is no such file", remedy)
    return known


def quoted_path(argument: str, *, swept: bool = False) -> str:
    """The argument with the path that it sets in quotes, which Hydra's grammar asks for where it has = or , in it.

    A value that is in quotes already or refers to another setting is left as it is. So are several values of a sweep,
    unless they are together the name of a path that exists, and what may be no path, unless it is a token.
    """
    key, value = parse(argument)
    if key not in (*PATHS, *OR_ELSE) or value[:1] in ("'", '"') or "${" in value:
        return argument
    path = HOME.sub(str(Path.home()), value)
    special = re.search(r"[=,()\[\]{}:\s]", path)
    several = (swept or key in OR_ELSE) and not os.path.lexists(path)  # of a long name no error
    token = key == "data.end_token" and re.search(r"[<>\[\]]", path)
    path = in_quotes(path) if token or (special and not several) else path
    return f"{argument.partition('=')[0]}={path}" if "=" in argument else argument


def refuse_empty_path(setting: str) -> None:
    """Refuse an empty path, which would mean the current folder.

    Raises:
        UserError: the setting names a folder and has no value.
    """
    key, value = parse(setting)
    if "=" in setting and key in PATHS and not value.strip("'\""):
        raise UserError(key, value, "names no folder", "Name one (. is the one you are in), or leave it out")


def refuse_no_name(setting: str) -> None:
    """Refuse to choose an option by a number, null or a list, or to choose none where one is needed.

    Raises:
        UserError: it does so.
    """
    group, _ = parse(setting)
    if setting.startswith("~"):
        if (CONFIG_FOLDER / group).is_dir() and group not in optional_groups():
            raise UserError("command line", setting, "a run needs one", f"Choose another: {group}=...")
        return
    if not (group.startswith("hydra/") or (CONFIG_FOLDER / group.partition("@")[0]).is_dir()):
        return
    try:
        override = OverridesParser.create().parse_override(setting)
    except HydraException:
        return  # Hydra will say that it cannot be read
    value = override.value()
    for chosen in value.list if isinstance(value, ChoiceSweep) else [value]:
        if chosen is None or isinstance(chosen, bool | int | float | list):
            refusal = no_option(group, Override._get_value_element_as_str(chosen))
            raise refusal
