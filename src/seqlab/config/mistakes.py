"""What is wrong with what was typed: Hydra's complaints about the command line, with the nearest name."""

import difflib
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException

from seqlab.config.arguments import settings_among
from seqlab.config.influence import CHANGEABLE
from seqlab.config.options import CONFIG_FOLDER, known_settings
from seqlab.errors import UserError, in_quotes, nearest

MULTIRUN = ("-m", "--multirun")
ALL = "python train.py --cfg job lists all"


def in_order(arguments: Sequence[str]) -> list[str]:
    """The arguments as Hydra takes them: ``-m`` in front, since in between it does not, and paths quoted.

    Raises:
        UserError: a flag is none, a setting is written with dashes, or what it chooses is no option's name.
    """
    plain = [argument for argument in arguments if argument not in MULTIRUN]
    swept = len(plain) < len(arguments)
    typed = settings_among(plain)
    settings = [quoted_path(setting, swept=swept) for setting in typed]
    for setting in settings:
        refuse_no_folder(setting)
        refuse_no_name(setting)
    return [*(["-m"] if swept else []), *settings, *(flag for flag in plain if flag not in typed)]


def refuse_no_folder(setting: str) -> None:
    """Refuse a setting for a folder that is given none, which would be the folder that the command is typed in."""
    key, equals, value = setting.lstrip("+").partition("=")
    if equals and key in PATHS and not value.strip("'\""):
        raise UserError(key, value, "names no folder", "Name one (. is the one you are in), or leave it out")


def refuse_no_name(setting: str) -> None:
    """Refuse the choice of an option by what is no name of one: a number, null, a list."""
    group = setting.partition("=")[0].lstrip("+")
    if group.startswith("~") and (CONFIG_FOLDER / group[1:]).is_dir() and group[1:] not in without_choice():
        raise UserError("command line", setting, "a run needs one", f"Choose another: {group[1:]}=...")
    if not (group.startswith("hydra/") or (CONFIG_FOLDER / group.partition("@")[0]).is_dir()):
        return
    try:
        override = OverridesParser.create().parse_override(setting)
    except HydraException:
        return  # it cannot be read, which Hydra says
    swept = isinstance(override.value(), ChoiceSweep)
    for value in override.value().list if swept else [override.value()]:
        if value is None or isinstance(value, bool | int | float | list):
            raise no_option(group, Override._get_value_element_as_str(value))


PATHS = ("resume", "data.dir", "data.cache_dir", "hydra.run.dir", "hydra.sweep.dir")
"""Settings that name a folder, whose name may have = and , in it, as the folders of a sweep's jobs do."""


def quoted_path(argument: str, *, swept: bool = False) -> str:
    """The argument with the path that it sets in quotes, which Hydra's grammar asks for where it has = or , in it.

    What is quoted already or refers to another setting stays; so do several values of a sweep, unless they are the
    name of what is there.
    """
    key, equals, path = argument.partition("=")
    plain = not re.search(r"[=,()\[\]{}:\s]", path) or path[0] in "'\"" or "${" in path
    if key.lstrip("+~") not in PATHS or plain or (swept and not Path(path).exists()):
        return argument
    return f"{key}{equals}{in_quotes(path)}"


def composition_error(message: str) -> UserError:
    """Hydra's complaint about the command line, with the nearest name."""
    for pattern, meaning in MEANINGS.items():
        if found := re.search(pattern, message):
            return meaning(*found.groups())
    return unreadable(sys.argv[1:], message)


def given() -> dict[str, str]:
    """What the command line sets, by key."""
    return dict(argument.lstrip("+~").partition("=")[::2] for argument in sys.argv[1:])


def holding(text: str) -> tuple[str, str]:
    """Key and value of the argument that has a text in it."""
    key, _, value = next((argument for argument in sys.argv[1:] if text in argument), "command line").partition("=")
    return key, value


def no_option(group: str, option: str) -> UserError:
    """An option that a group has not."""
    if option == "null" and group in without_choice():
        remedy = f"Leave {group} out, or write ~{group} where an experiment chooses one"
    elif option.startswith("["):
        remedy = f"Name one, and with -m several with commas between: {group}={option[1:-1]}"
    else:
        remedy = nearest(option, sorted(path.stem for path in (CONFIG_FOLDER / group).glob("*.yaml")))
    if remedy.startswith("There is n"):
        remedy = "python train.py --help lists all that there are"
    return UserError(group, option, f"is no option of {group}", remedy)


def without_choice() -> set[str]:
    """The groups of which nothing is chosen until somebody does."""
    lines = (CONFIG_FOLDER / "config.yaml").read_text(encoding="utf-8").splitlines()
    return {found[1] for line in lines if (found := re.match(r"  - (\w+): null$", line))}


def wrong_form(key: str, value: str) -> UserError:
    """A value that does not fit to what a setting was."""
    from seqlab.config.schema import wanted_form  # imports the part that the setting is of

    return UserError(key, value, "does not have the form that it takes", f"Give it {wanted_form(key, sys.argv[1:])}")


def wrong_form_of_hydras(key: str, value: str) -> UserError:
    """The same of Hydra's own settings."""
    return UserError(key, value, "does not have the form that it takes", "python train.py --cfg hydra shows what it is")


def missing(key: str) -> UserError:
    """A setting that was taken away, or that a person's own configuration has not."""
    return UserError(key, "missing", "a run needs it", f"Set {key}=...")


def several(key: str, value: str) -> UserError:
    """Several values for one run."""
    remedy = f"Add -m to run each in turn, or write '{key}=[{value}]' for a list"
    return UserError(key, value, "is several values, and a run takes one", remedy)


def chosen_already(group: str) -> UserError:
    """An option that is added to the one that there is."""
    return UserError(group, given().get(group, ""), "is chosen already", f"Write it once, as {group}=..., without a +")


def there_already(key: str) -> UserError:
    """A setting that is added, and is there."""
    value = given().get(key, "")
    return UserError(f"+{key}", value, "is a setting already", f"Write {key}={value}, without the +")


def nothing_to_delete(key: str) -> UserError:
    """A setting that is taken away, and is not there."""
    remedy = f"{nearest_setting(key, known_settings(sys.argv[1:]))} ({ALL})"
    return UserError("command line", f"~{key}", "takes away what is not there", remedy)


def no_interval() -> UserError:
    """A range of numbers where single ones are run."""
    key, value = holding("interval(")
    remedy = "Write range(start, stop, step) or the values with commas between, or add search=optuna"
    return UserError(key, value, "an interval has no single values to run, and is for a search", remedy)


def no_step() -> UserError:
    """A range that never ends."""
    return UserError(*holding("range("), "a range cannot go on by steps of 0", "Write range(start, stop, step)")


def no_config_name(name: str) -> UserError:
    """A configuration that there is not."""
    remedy = "Leave it out: the configuration is called config; your own is found with --config-dir"
    return UserError("--config-name", name, "there is no configuration of this name", remedy)


def no_config_folder(flag: str) -> Callable[[str], UserError]:
    """A folder of configurations that there is not, by its flag."""
    remedy = "Name a folder with groups in it, as conf/ has (model/, data/, ...)"
    return lambda folder: UserError(flag, folder, "there is no such folder", remedy)


def missing_plugin(kind: str, name: str) -> UserError:
    """A launcher or sweeper that comes with a package which is not here."""
    plugin = name.partition("_")[0]  # submitit_local and submitit_slurm come together
    close = difflib.get_close_matches(name, PLUGINS, n=1)
    if plugin in ("joblib", "submitit"):
        remedy = f"Install it with pip install 'seqlab[{plugin}]'"
    else:
        remedy = f"Did you mean {close[0]!r}?" if close else "Install the package that brings it"
    return UserError(f"hydra/{kind}", name, "is not among Hydra's plugins here", remedy)


PLUGINS = ("basic", "joblib", "submitit_local", "submitit_slurm", "points", "seqlab")
"""Launchers and sweepers that this project has to do with."""


def no_setting(key: str) -> UserError:
    """A key that the composed configuration has not."""
    arguments = given()
    value = arguments.get(key, "")
    if "resume" in arguments and key in CHANGEABLE:  # composed are the usual parts, and not those of the run
        rule = "is no setting of the parts that the command line begins with"
        return UserError(key, value, rule, f"Write '+{key}={value}'")
    if key.startswith("hydra."):
        return UserError(key, value, "is no setting of Hydra's", "python train.py --cfg hydra lists all")
    if lacking := options_without(key):
        remedy = f"Leave {key} out, or sweep over those that have it in a command of their own"
        return UserError(key, value, f"is no setting of {', '.join(lacking)}", remedy)
    return UserError(key, value, "is no setting", f"{nearest_setting(key, known_settings(sys.argv[1:]))} ({ALL})")


def options_without(key: str) -> list[str]:
    """The options among several of a sweep that lack a setting which others of them have."""
    for group, values in given().items():
        if "," in values and (CONFIG_FOLDER / group).is_dir():
            options = [f"{group}={option}" for option in values.split(",")]
            has = {option: key in known_settings([*sys.argv[1:], option]) for option in options}
            if len(set(has.values())) == 2:
                return [option for option in options if not has[option]]
    return []


def nearest_setting(key: str, known: Iterable[str]) -> str:
    """A remedy that names the setting that was probably meant, or what there is beside it.

    The whole key is no measure: most of it is the way to the place, where a quite different setting is as near.
    """
    known = list(known)
    parent, _, name = key.rpartition(".")
    if any(other.rpartition(".")[2] == name for other in known):
        return nearest(key, known)
    while parent and parent not in known:  # up to the first place that there is
        parent, _, name = parent.rpartition(".")
    places = [other.rpartition(".") for other in known]
    beside = [last for place, _, last in places if place == parent and not last.startswith("_")]
    if not parent or not beside:
        return nearest(key, known)
    close = difflib.get_close_matches(name, beside, n=1)
    return f"Did you mean {f'{parent}.{close[0]}'!r}?" if close else f"{parent} has {', '.join(beside)}"


def unreadable(arguments: Sequence[str], message: str) -> UserError:
    """The first argument that is no setting, or all where none is by itself."""
    parser = OverridesParser.create()
    for argument in settings_among([argument for argument in arguments if argument not in MULTIRUN]):
        try:
            if not parser.parse_override(argument).key_or_group:
                raise HydraException("no key")
        except HydraException:
            options = sorted(CONFIG_FOLDER.glob(f"*/{argument}.yaml")) if argument.isidentifier() else []
            remedy = "Write settings as key=value, without spaces, and quote what the shell would take for itself"
            if options:
                remedy = f"Did you mean {options[0].parent.name}={argument}?"
            rule = "cannot be read" if "=" in argument else "is no setting with a value"
            return UserError("command line", argument, rule, remedy)
    remedy = "Write settings as key=value, and quote what the shell would take for itself"
    return UserError("command line", shlex.join(arguments), message.splitlines()[0], remedy)


MEANINGS: dict[str, Callable[..., UserError]] = {
    r"Cannot find primary config '([^']+)'": no_config_name,
    r"Additional config directory '([^']+)' not found": no_config_folder("--config-dir"),
    r"Primary config directory not found\.\s+Check that the config directory '([^']+)'": no_config_folder(
        "--config-path"
    ),
    r"Could not find 'hydra/([^']+)/([^'/]*)'": missing_plugin,
    r"Could not find '(\w+)/([^']*)'": no_option,
    r"Could not override '([^']+)'": no_setting,
    r"Could not append to config\. An item is already at '([^']+)'": there_already,
    r"Could not delete from config\. '([^']+)' does not exist": nothing_to_delete,
    r"Error merging override \+*(hydra\.[^=]+)=(.*)": wrong_form_of_hydras,
    r"Error merging override \+*([^=]+)=(.*)": wrong_form,
    r"Ambiguous value for argument '([^=']+)=([^']*)'": several,
    r"Multiple values for (\w+)\.": chosen_already,
    r"Missing key (\w+)": missing,
    r"does not support sweep type : INTERVAL_SWEEP": no_interval,
    r"range\(\) arg 3 must not be zero": no_step,
}
"""What Hydra says of a command line, and what it means; the groups of a pattern are the arguments."""
