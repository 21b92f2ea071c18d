"""The progress bar, on the console that the log shares."""

import math
from typing import Self

from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from seqlab.console import taken


class ProgressBar:
    """One bar for training, and one beneath it while a split is evaluated."""

    def __init__(self, description: str, *, total: int, completed: int = 0):
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}"),
            console=get_console(),
            expand=True,
            disable=taken.is_set() or not get_console().is_terminal,
        )
        self.training = self.progress.add_task(description, total=total, completed=completed, note="")
        self.evaluation = self.progress.add_task("", visible=False, note="")

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def step(self, step: int, loss: float, best: float) -> None:
        """Move the training bar to a step, with its loss and the best validation loss so far."""
        note = f"loss {loss:.4f}" + (f", best {best:.4f}" if math.isfinite(best) else "")
        self.progress.update(self.training, completed=step, note=note)

    def begin_evaluation(self, split: str, batches: int) -> None:
        self.progress.reset(self.evaluation, total=batches, description=split, visible=True)

    def evaluated_batch(self) -> None:
        self.progress.advance(self.evaluation)

    def end_evaluation(self) -> None:
        self.progress.update(self.evaluation, visible=False)
