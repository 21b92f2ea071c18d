"""Arguments of the form ``key=value``, checked against a command's settings."""

import sys
from collections.abc import Sequence
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from seqlab.config.schema import in_words
from seqlab.errors import UserError, nearest
from seqlab.invocation import as_typed

Kinds = dict[str, tuple[Any, Any]]
"""The settings of a command: the type and the default of each."""


def read_settings(argv: Sequence[str] | None, kinds: Kinds, docstring: str) -> dict[str, Any]:
    """The settings, with defaults for those that are not given; prints the help and exits if that is asked for.

    Args:
        argv: the arguments; ``None`` for those of the process.
        kinds: the settings that there are.
        docstring: the help.

    Raises:
        UserError: an argument is no setting, or has a value of another type.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(arguments):
        print(as_typed(docstring))
        sys.exit(0)
    settings = {key: default for key, (_, default) in kinds.items()}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or key not in kinds:
            rule = "is no setting" if equals else "is not of the form key=value"
            remedy = f"Write {key}=..." if key in kinds else nearest(key, kinds)
            raise UserError("arguments", argument, rule, remedy)
        settings[key] = parse_value(key, text, kinds[key][0])
    return settings


def parse_value(key: str, text: str, kind: Any) -> Any:
    """A setting's value from its text.

    Raises:
        UserError: it is not of the setting's type.
    """
    if text == "null" and kind not in (str, str | None):
        text = None
    try:
        return TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False)).validate_python(text)
    except ValidationError as error:
        rule = error.errors()[0]["msg"]
        raise UserError(key, text, rule[0].lower() + rule[1:], f"Give it {in_words(kind)}") from error
