"""The fields of a checkpoint's ``config.json``; those that have no counterpart here are refused."""

from pathlib import Path
from typing import Any, NoReturn

from seqlab.errors import UserError

NEEDED: Any = object()
"""In place of a default: the field has to be there."""


class Fields:
    """The fields of one ``config.json``.

    Args:
        values: what is in it.
        architecture: the class of ``transformers`` that it is for.
        folder: the checkpoint's.
    """

    def __init__(self, values: dict[str, Any], architecture: str, folder: Path):
        self.values, self.architecture, self.folder = values, architecture, folder

    def whole(self, name: str, default: Any = NEEDED) -> int:
        """A field that is a whole number of at least 1; ``default``, of any type, where it is missing or null.

        Raises:
            UserError: it is something else, or missing without a default.
        """
        value = self._value(name, default)
        if value is not default and (type(value) is not int or value < 1):
            self.refuse(name, value, "a whole number of at least 1")
        return value

    def number(self, name: str, default: float) -> float:
        """A field that is a number above 0.

        Raises:
            UserError: it is something else.
        """
        value = self._value(name, default)
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            self.refuse(name, value, "a number above 0")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """A field that is true or false.

        Raises:
            UserError: it is something else.
        """
        value = self._value(name, default)
        if type(value) is not bool:
            self.refuse(name, value, "true or false")
        return value

    def only(self, **expressible: Any) -> None:
        """Refuse fields that have another value than the one, or the ones of a tuple, that can be expressed.

        The first is what a missing field stands for.

        Raises:
            UserError: names the first such field.
        """
        for name, admitted in expressible.items():
            admitted = admitted if isinstance(admitted, tuple) else (admitted,)
            value = self._value(name, admitted[0])
            if value not in admitted:
                self.refuse(name, value, " or ".join(str(one) for one in admitted))

    def refuse(self, name: str, value: Any, expressible: str) -> NoReturn:
        """Refuse a field.

        Raises:
            UserError: says what can be expressed.
        """
        rule = f"{self.architecture} in {self.folder} has it, and what can be expressed here is {expressible}"
        raise UserError(f"init_from: {name}", value, rule, "Name a checkpoint that has it so")

    def _value(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is not None:
            return value
        if default is NEEDED:
            rule = f"config.json of {self.architecture} in {self.folder} lacks it"
            raise UserError(f"init_from: {name}", "missing", rule, "Name a whole checkpoint")
        return default
