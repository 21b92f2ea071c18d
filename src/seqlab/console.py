"""One console on standard error for the log and the progress bar, so that neither writes over the other."""

import logging
import threading

import rich
from rich.console import Console

rich.reconfigure(stderr=True)

taken = threading.Event()
"""Set while the table of a sweep has the console, which then has no place for a job's own bars."""


class ConsoleHandler(logging.Handler):
    """Writes log messages above the progress bar, unwrapped, so that paths and commands can be copied."""

    def emit(self, record: logging.LogRecord) -> None:
        style = "bold red" if record.levelno >= logging.ERROR else None
        rich.get_console().print(self.format(record), soft_wrap=True, markup=False, highlight=False, style=style)


def output() -> Console:
    """Standard output, for results."""
    return Console()


def say(message: str) -> None:
    """A line on standard error, unwrapped, so that paths and commands can be copied."""
    rich.get_console().print(message, markup=False, highlight=False, soft_wrap=True)


def complain(message: str) -> None:
    """The same, of a mistake."""
    rich.get_console().print(message, markup=False, highlight=False, soft_wrap=True, style="bold red")
