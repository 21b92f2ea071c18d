"""What the commands but train share: options with checks, and how they end after a mistake or Ctrl-C."""

import argparse
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from typing_extensions import override

from seqlab import console
from seqlab.errors import UserError
from seqlab.invocation import as_typed, program
from seqlab.places import check_place


class Parser(argparse.ArgumentParser):
    """A parser described by a command's docstring, whose errors are ``UserError`` like every other mistake."""

    def __init__(self, name: str, docstring: str):
        description, _, more = as_typed(docstring).partition("\n\n")
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(program(name), description=description, epilog=more, formatter_class=formatter)

    def option(self, key: str, read: Callable[[str, str], Any], **settings: Any) -> None:
        """Add an option whose value is ``read(key, text)``, which raises a UserError for a mistake."""
        self.add_argument(key, type=partial(read, key), **settings)

    @override
    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        self.arguments = sys.argv[1:] if args is None else args
        return super().parse_known_args(args, namespace)

    @override
    def error(self, message: str) -> NoReturn:
        remedy = f"{self.prog} --help lists what there is"
        raise UserError("arguments", shlex.join(self.arguments), message, remedy)


def whole(key: str, text: str, least: int = 1) -> int:
    """A whole number.

    Raises:
        UserError: it is none, or less than ``least``.
    """
    if not text.strip().isdecimal() or int(text) < least:
        raise UserError(key, text, f"has to be a whole number from {least} on", f"For example {key} 16")
    return int(text)


def wholes(key: str, text: str) -> list[int]:
    """Whole numbers from 1 on, separated by commas; ascending, each once."""
    return sorted({whole(key, part) for part in text.split(",")})


def doubling(key: str, text: str) -> list[int]:
    """Sizes: ``first:last`` doubles from the first to the last; or numbers separated by commas.

    Raises:
        UserError: a size is no whole number, or the last is less than the first.
    """
    first, colon, last = text.partition(":")
    if not colon:
        return wholes(key, text)
    start, end = whole(key, first), whole(key, last)
    if end < start:
        raise UserError(key, text, "ends before it begins", f"For example {key} 1024:131072")
    return [start << power for power in range((end // start).bit_length())]


def number(key: str, text: str, what: str = "a number") -> float:
    """A finite number above 0.

    Raises:
        UserError: it is not.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UserError(key, text, f"has to be {what} above 0", f"For example {key} 2")
    return value


def seconds(key: str, text: str) -> float:
    """A finite number of seconds above 0."""
    return number(key, text, "a number of seconds")


def names_of(allowed: Iterable[str]) -> Callable[[str, str], list[str]]:
    """A function that reads names separated by commas, each once, and refuses those that are not ``allowed``."""
    allowed = list(allowed)

    def names(key: str, text: str) -> list[str]:
        chosen = list(dict.fromkeys(name.strip() for name in text.split(",")))
        for name in chosen:
            if name not in allowed:
                raise UserError(key, name, "is not among the names it takes", f"Choose from {', '.join(allowed)}")
        return chosen

    return names


def folder_to_write(key: str, text: str) -> Path:
    """A folder for results, in which files can be written; it need not exist."""
    check_place(key, Path(text))
    return Path(text)


def file_to_write(key: str, text: str) -> Path:
    """A file for results, in such a folder.

    Raises:
        UserError: it is a folder.
    """
    if Path(text).is_dir():
        raise UserError(key, text, "is a folder", f"Name a file, for example {key} results.json")
    return folder_to_write(key, str(Path(text).parent)) / Path(text).name


def results_folder(name: str) -> Path:
    """The default folder for a benchmark's results."""
    return Path("outputs", "benchmarks", f"{name}-{datetime.now():%Y-%m-%d_%H-%M-%S}")


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, by which ``timeout`` and schedulers end a process, as Ctrl-C: what was measured is written."""
    if threading.current_thread() is not threading.main_thread():  # no other can set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def command(parse: Callable[[Sequence[str] | None], Any], run: Callable[[Any], int]) -> Callable[..., int]:
    """The main function of a command, which returns the exit status and reports foreseen errors in a line or two.

    Args:
        parse: from the arguments (``None`` for the process's own) to the settings.
        run: from the settings to the exit status.
    """

    def main(argv: Sequence[str] | None = None) -> int:
        try:
            with terminated_as_interrupted():
                return run(parse(argv))
        except BrokenPipeError:  # whoever read has enough, and Python's last flush must find somewhere to write
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except KeyboardInterrupt:
            console.say("Stopped at once.")
            return 130
        except Exception as error:
            from seqlab.config.exceptions import translate  # not before it is needed: it takes a second to import

            ending = translate(error)
            if ending is None:
                raise
            console.complain(str(ending))
            return ending.exit_status

    return main
