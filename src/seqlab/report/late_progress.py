"""A progress bar that appears only when something takes long."""

import time
from types import TracebackType
from typing import Self

import rich
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class LateProgress:
    """A bar on standard error from ``delay`` seconds on; none where that is no terminal.

    Args:
        delay: seconds of patience.
    """

    def __init__(self, delay: float = 2.0):
        self.delay = delay

    def __enter__(self) -> Self:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.console = rich.get_console()
        self.progress = Progress(*columns, console=self.console, transient=True)
        self.task = self.progress.add_task("", total=None)
        self.began, self.shown = time.monotonic(), False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.shown:
            self.progress.stop()

    def show(self, what: str, done: int | None = None, total: int | None = None) -> None:
        """What is being done now, and how much of it."""
        self.progress.update(self.task, description=what, completed=done or 0, total=total)
        if not self.shown and self.console.is_terminal and time.monotonic() - self.began >= self.delay:
            self.progress.start()
            self.shown = True
