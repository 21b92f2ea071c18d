"""What is wrong with what was typed: Hydra's complaints about the command line, with the nearest name."""

import difflib
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from seqlab.config import CONFIG_FOLDER, known_settings
from seqlab.errors import UserError, nearest

MULTIRUN = ("-m", "--multirun")
ALL = "python train.py --cfg job lists all"


def in_order(arguments: Sequence[str]) -> list[str]:
    """The arguments as Hydra takes them: ``-m`` in front, since in between it does not, and paths quoted.

    Raises:
        UserError: a setting is written with dashes.
    """
    settings = [argument for argument in arguments if argument not in MULTIRUN]
    for argument in settings:
        plain = argument.lstrip("-")
        if argument.startswith("--") and re.split("[.=]", plain)[0] in beginnings():
            remedy = f"Write {plain if '=' in plain else f'{plain}=...'}"
            raise UserError("command line", argument, "a setting is written without dashes", remedy)
    swept = len(settings) < len(arguments)
    return [*(["-m"] if swept else []), *(quoted_path(setting, swept=swept) for setting in settings)]


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
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', path)
    return f'{key}{equals}"{escaped}"'


def beginnings() -> set[str]:
    """The first parts of all keys, without composing anything: the groups, and what stands in config.yaml itself."""
    groups = {path.name for path in CONFIG_FOLDER.iterdir() if path.is_dir()}
    lines = (CONFIG_FOLDER / "config.yaml").read_text(encoding="utf-8").splitlines()
    own = {line.partition(":")[0] for line in lines if re.match(r"\w+:", line)}
    return (groups | own) - {"hydra", "defaults"}


def composition_error(message: str) -> UserError:
    """Hydra's complaint about the command line, with the nearest name."""
    arguments = dict(argument.lstrip("+~").partition("=")[::2] for argument in sys.argv[1:])
    if found := re.search(r"Could not find 'hydra/([^']+)/([^'/]*)'", message):
        return missing_plugin(*found.groups())
    if found := re.search(r"Could not find '(\w+)/([^']*)'", message):
        group, option = found.groups()
        remedy = nearest(option, sorted(path.stem for path in (CONFIG_FOLDER / group).glob("*.yaml")))
        if remedy.startswith("There is nothing"):
            remedy = "python train.py --help lists all that there are"
        return UserError(group, option, f"is no option of {group}", remedy)
    if found := re.search(r"Could not override '([^']+)'", message):
        return no_setting(found[1], arguments)
    if found := re.search(r"Error merging override \+*(?!hydra\.)([^=]+)=(.*)", message):
        from seqlab.schema import wanted_form  # imports the part that the setting is of

        key, value = found.groups()
        remedy = f"Give it {wanted_form(key, sys.argv[1:])}"
        return UserError(key, value, "does not have the form that it takes", remedy)
    if found := re.search(r"Ambiguous value for argument '([^=']+)=([^']*)'", message):
        key, value = found.groups()
        remedy = f"Add -m to run each in turn, or write '{key}=[{value}]' for a list"
        return UserError(key, value, "is several values, and a run takes one", remedy)
    if found := re.search(r"Multiple values for (\w+)\.", message):
        group = found[1]
        return UserError(
            group, arguments.get(group, ""), "is chosen already", f"Write it once, as {group}=..., without a +"
        )
    return unreadable(sys.argv[1:], message)


def missing_plugin(kind: str, name: str) -> UserError:
    """A launcher or sweeper that comes with a package which is not here."""
    plugin = name.partition("_")[0]  # submitit_local and submitit_slurm come together
    ours = plugin in ("joblib", "submitit")
    package = f"'seqlab[{plugin}]'" if ours else f"the plugin that brings it (hydra-{plugin}-...)"
    rule = "is not among Hydra's plugins here"
    return UserError(f"hydra/{kind}", name, rule, f"Install it with pip install {package}")


def no_setting(key: str, arguments: dict[str, str]) -> UserError:
    """A key that the composed configuration has not."""
    value = arguments.get(key, "")
    if "resume" in arguments and is_changeable(key):  # composed are the usual parts, and not those of the run
        rule = "is no setting of the parts that the command line begins with"
        return UserError(key, value, rule, f"Write '+{key}={value}'")
    if key.startswith("hydra."):
        return UserError(key, value, "is no setting of Hydra's", "python train.py --cfg hydra lists all")
    return UserError(key, value, "is no setting", f"{nearest_setting(key, known_settings(sys.argv[1:]))} ({ALL})")


def is_changeable(key: str) -> bool:
    """Whether a resumed run may have the setting otherwise."""
    from seqlab.resume import CHANGEABLE  # imports torch, which most mistakes are told without

    return key in CHANGEABLE


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
    for argument in arguments:
        try:
            if not argument.startswith("-"):
                parser.parse_override(argument)
        except HydraException:
            options = sorted(CONFIG_FOLDER.glob(f"*/{argument}.yaml")) if argument.isidentifier() else []
            remedy = "Write settings as key=value, without spaces, and quote what the shell would take for itself"
            if options:
                remedy = f"Did you mean {options[0].parent.name}={argument}?"
            rule = "cannot be read" if "=" in argument else "is no setting with a value"
            return UserError("command line", argument, rule, remedy)
    remedy = "Write settings as key=value, and quote what the shell would take for itself"
    return UserError("command line", shlex.join(arguments), message.splitlines()[0], remedy)
