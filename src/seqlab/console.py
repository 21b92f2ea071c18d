"""One console on standard error for the log and the progress bar, so that neither writes over the other.

Text that cannot be written, because a disk is full or a pipe is closed, is dropped without an error: the run goes on to
save its results, and reports a full disk itself.
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
from rich.text import Text
from typing_extensions import override

from seqlab.errors import printable

UNWRITTEN = contextlib.suppress(OSError, ValueError, AttributeError)
"""The errors of a stream that cannot be written, is closed, or is ``None``."""


class StandardError:
    """A stream that writes to the present ``sys.stderr`` and ignores its errors."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream(), name)

    def stream(self) -> Any:
        """The present ``sys.stderr``, without the proxy that ``rich`` puts there while it draws."""
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)

    def write(self, text: str) -> int:
        """Write as far as that is possible; returns the number of characters in the text."""
        with UNWRITTEN:
            self.stream().write(text)
        return len(text)

    def flush(self) -> None:
        """Flush as far as that is possible."""
        with UNWRITTEN:
            self.stream().flush()


rich.reconfigure(file=StandardError())

taken = threading.Event()
"""Set while the console shows the table of a sweep, and no progress bars of its jobs."""


class ConsoleHandler(logging.Handler):
    """Writes log messages above the progress bar, unwrapped, so that paths and commands can be copied."""

    @override
    def emit(self, record: logging.LogRecord) -> None:
        style = "bold red" if record.levelno >= logging.ERROR else None
        rich.get_console().print(
            printable(self.format(record)), soft_wrap=True, markup=False, highlight=False, style=style
        )


class LogFile(logging.FileHandler):
    """``train.log``; what a full disk does not take is dropped."""

    @override
    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # opening the file may fail
            super().emit(record)

    @override
    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    @override
    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()

    @override
    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


def output() -> Console:
    """A console on standard output, for results; control characters in them, which may be anyone's, are escaped."""
    console = Console()
    console.push_render_hook(EscapeControls())
    return console


class EscapeControls(RenderHook):
    """Escapes control characters in whatever a console prints, except those of its own styles."""

    @override
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [Escaped(one) for one in renderables]


class Escaped:
    """Something to print, with its control characters escaped."""

    def __init__(self, inner: ConsoleRenderable):
        self.inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for text, style, control in console.render(self.inner, options):
            yield Segment(text if control else printable(text), style, control)


class NotebookProgress(Progress):
    """Progress bars in the output of a notebook's cell, drawn again as they move; ``rich`` would need ipywidgets."""

    INTERVAL = 0.2  # seconds

    @override
    def start(self) -> None:
        from IPython.display import display

        self._next = 0.0
        self._shown = display(self, display_id=True)

    @override
    def stop(self) -> None:
        self._shown.update(Text() if self.live.transient else self)
        self._shown = None

    @override
    def update(self, *arguments: Any, **changes: Any) -> None:
        super().update(*arguments, **changes)
        self._draw()

    @override
    def advance(self, *arguments: Any) -> None:
        super().advance(*arguments)
        self._draw()

    def _draw(self) -> None:
        if self._shown is not None and (now := self.get_time()) >= self._next:
            self._shown.update(self)
            self._next = now + self.INTERVAL

    _shown: Any = None


def in_notebook() -> bool:
    """Whether what is printed goes to a notebook's page."""
    return rich.get_console().is_jupyter


def progress(*columns: ProgressColumn, lasting: bool = False) -> Progress:
    """Progress bars on the shared console; none where it is no terminal or notebook, or shows the table of a sweep.

    Args:
        columns: shown after a bar and its count; by default the elapsed time.
        lasting: take the whole width of a terminal, and stay at the end.
    """
    console = rich.get_console()
    wide = lasting and console.is_terminal  # a notebook's page may be narrower than it says
    return (NotebookProgress if console.is_jupyter else Progress)(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None if wide else 40),
        MofNCompleteColumn(),
        *(columns or (TimeElapsedColumn(),)),
        console=console,
        expand=wide,
        transient=not lasting,
        disable=taken.is_set() or not (console.is_terminal or console.is_jupyter),
    )


def say(message: str) -> None:
    """Print a line on standard error, unwrapped, so that paths and commands can be copied."""
    rich.get_console().print(printable(message), markup=False, highlight=False, soft_wrap=True)


def complain(message: str) -> None:
    """Print an error message on standard error in bold red, unwrapped."""
    rich.get_console().print(printable(message), markup=False, highlight=False, soft_wrap=True, style="bold red")
