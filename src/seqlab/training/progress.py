"""The progress bar, on the console of the log; without a terminal, occasional lines in the log instead."""

import logging
import math
import time
from typing import Self

from rich.progress import TaskID, TextColumn, TimeRemainingColumn

from seqlab import console

log = logging.getLogger(__name__)

FIRST_LINE, MOST_SECONDS = 2.0, 60.0
"""Seconds until the first line in the log, and the longest interval; each interval is twice the one before."""


class ProgressBar:
    """One bar for training, and one below it while a split is evaluated."""

    def __init__(self, description: str, *, total: int, completed: int = 0):
        columns = TimeRemainingColumn(compact=True), TextColumn("{task.fields[note]}")
        self.progress = console.progress(*columns, lasting=True)
        self.training = self.progress.add_task(description, total=total, completed=completed, note="")
        self.evaluation = self.progress.add_task("", visible=False, note="")
        self._pause, self._next = FIRST_LINE, time.monotonic() + FIRST_LINE

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def step(self, step: int, loss: float, best: float) -> None:
        """Move the training bar to a step, with its loss and the best validation loss so far."""
        note = f"loss {loss:.4f}" + (f", best {best:.4f}" if math.isfinite(best) else "")
        self.progress.update(self.training, completed=step, note=note)
        self._log(self.training, f"step {step:,}", note)

    def say(self, note: str) -> None:
        """Show what training waits for."""
        self.progress.update(self.training, note=note)
        if self.progress.disable:
            log.info("%s: %s.", self.progress.tasks[self.training].description, note)

    def begin_evaluation(self, split: str, batches: int) -> None:
        """Show the evaluation bar for a split of so many batches."""
        self.progress.reset(self.evaluation, total=batches, description=split, visible=True)

    def evaluated_batch(self) -> None:
        """Advance the evaluation bar by one batch."""
        self.progress.advance(self.evaluation)
        task = self.progress.tasks[self.evaluation]
        self._log(self.evaluation, f"batch {task.completed:,.0f}", "")

    def end_evaluation(self) -> None:
        """Hide the evaluation bar."""
        self.progress.update(self.evaluation, visible=False)

    def _log(self, bar: TaskID, place: str, note: str) -> None:
        """If no bar is shown, log the progress, at growing intervals."""
        if not self.progress.disable or time.monotonic() < self._next:
            return
        task = self.progress.tasks[bar]
        log.info("%s: %s of %s%s.", task.description, place, f"{task.total:,.0f}", note and f", {note}")
        self._pause = min(2 * self._pause, MOST_SECONDS)
        self._next = time.monotonic() + self._pause
