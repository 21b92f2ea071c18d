"""The flags on the command line, and what is no flag: the settings."""

import difflib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.utils import get_args_parser

from seqlab.config.options import beginnings
from seqlab.errors import UserError

FLAGS = "python train.py --hydra-help lists the flags"


def settings_among(arguments: Sequence[str]) -> list[str]:
    """The arguments that are neither flags nor what flags are given."""
    for argument in arguments:
        plain = argument.lstrip("-")
        if argument.startswith("-") and re.split("[.=]", plain)[0] in beginnings():
            remedy = f"Write {plain if '=' in plain else f'{plain}=...'}"
            raise UserError("command line", argument, "a setting is written without dashes", remedy)

    def complain(message: str) -> None:
        raise UserError("command line", shlex.join(arguments), message, FLAGS)

    parser = get_args_parser()
    parser.error = complain
    known, rest = parser.parse_known_args(list(arguments))
    for flag in (argument for argument in rest if argument.startswith("-")):
        flags = [name for action in parser._actions for name in action.option_strings]
        close = difflib.get_close_matches(flag, flags, n=1, cutoff=0.7)
        raise UserError("command line", flag, "is no flag", f"Did you mean {close[0]}?" if close else FLAGS)
    if known.resolve and not (known.cfg or known.help):
        complain("--resolve shows what a configuration comes to, and goes with --cfg job")
    if known.experimental_rerun and not Path(known.experimental_rerun).is_file():
        remedy = "Name the config.pickle of a run that kept one"
        raise UserError("--experimental-rerun", known.experimental_rerun, "there is no such file", remedy)
    return [*known.overrides, *rest]
