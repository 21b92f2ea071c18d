"""One console on standard error for the log and the progress bar, so that neither writes over the other.

What can be written nowhere, because a disk is full or the reader has gone, is lost and ends nothing: whatever is amiss
is said by the run itself, which has results to save.
"""

import contextlib
import logging
import sys
import threading
from typing import Any

import rich
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.segment import Segment

from seqlab.errors import printable

LOST = contextlib.suppress(OSError, ValueError, AttributeError)
"""What a stream raises that cannot be written, that is closed, and that there is none of."""


class StandardError:
    """``sys.stderr``, whichever it is at the moment, without its errors."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream(), name)

    def stream(self) -> Any:
        """Beneath what ``rich`` puts there while it draws, which writes here."""
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)

    def write(self, text: str) -> int:
        with LOST:
            self.stream().write(text)
        return len(text)

    def flush(self) -> None:
        with LOST:
            self.stream().flush()


rich.reconfigure(file=StandardError())

taken = threading.Event()
"""Set while the table of a sweep has the console, which then has no place for a job's own bars."""


class ConsoleHandler(logging.Handler):
    """Writes log messages above the progress bar, unwrapped, so that paths and commands can be copied."""

    def emit(self, record: logging.LogRecord) -> None:
        style = "bold red" if record.levelno >= logging.ERROR else None
        rich.get_console().print(
            printable(self.format(record)), soft_wrap=True, markup=False, highlight=False, style=style
        )


class LogFile(logging.FileHandler):
    """``train.log``."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # from opening it
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


def output() -> Console:
    """Standard output, for results, whose names and values may come from anyone's run folders."""
    console = Console()
    console.push_render_hook(Harmless())
    return console


class Harmless(RenderHook):
    """Writes control characters out in whatever a console prints, besides those of its own styles."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [WrittenOut(one) for one in renderables]


class WrittenOut:
    """Something to print, with its control characters written out."""

    def __init__(self, inner: ConsoleRenderable):
        self.inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for text, style, control in console.render(self.inner, options):
            yield Segment(text if control else printable(text), style, control)


def progress(*columns: ProgressColumn, lasting: bool = False) -> Progress:
    """Bars on the shared console; none where it is no terminal, or where the table of a sweep has it.

    Args:
        columns: what stands behind a bar and its count; by default the time that has passed.
        lasting: take the whole width, and stay when all is done.
    """
    console = rich.get_console()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None if lasting else 40),
        MofNCompleteColumn(),
        *(columns or (TimeElapsedColumn(),)),
        console=console,
        expand=lasting,
        transient=not lasting,
        disable=taken.is_set() or not console.is_terminal,
    )


def say(message: str) -> None:
    """A line on standard error, unwrapped, so that paths and commands can be copied."""
    rich.get_console().print(printable(message), markup=False, highlight=False, soft_wrap=True)


def complain(message: str) -> None:
    """The same, of a mistake."""
    rich.get_console().print(printable(message), markup=False, highlight=False, soft_wrap=True, style="bold red")
