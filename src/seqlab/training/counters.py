"""The outcome of an update, and the progress of a run: plain numbers, saved with every checkpoint."""

import dataclasses
import math
from typing import Any, NamedTuple

STARTING = 5
"""The first updates of a process, in which kernels are compiled and caches filled."""


class Outcome(NamedTuple):
    """The outcome of an update.

    Attributes:
        loss: the batch's mean loss, without the auxiliary loss, so that models stay comparable.
        grad_norm: the norm of the gradient before clipping.
        taken: whether the optimizers made a step; not if loss or gradient is not finite.
        hopeless: not taken, and a lower loss scale of fp16 would not help.
        auxiliary_loss: what modules of the model added to the loss for the gradient; ``None`` if they add nothing.
    """

    loss: float
    grad_norm: float
    taken: bool
    hopeless: bool
    auxiliary_loss: float | None = None


@dataclasses.dataclass
class Counters:
    """Steps, time, the running mean of the loss, and the best validation loss.

    Attributes:
        seconds: time in updates, the wait for batches included.
        data_seconds: the time waited for batches.
        wall_seconds: all time since the start, that of earlier processes of a resumed run included.
        starting_steps, starting_seconds: the first updates of each process, which compile kernels.
        skipped, skipped_in_a_row, hopeless: updates not taken; the latter two count the ``hopeless`` ones only.
        loss_sum, loss_steps: of the updates taken since the last training record.
        evaluated_step, last_metrics: the last step whose validation is complete, and its metrics.
        best_step, best_loss, best_metrics: the best validation so far.
        evaluations_without_gain: evaluations since the best one.
    """

    step: int = 0
    seconds: float = 0.0
    data_seconds: float = 0.0
    wall_seconds: float = 0.0
    starting_steps: int = 0
    starting_seconds: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    hopeless: int = 0
    loss_sum: float = 0.0
    loss_steps: int = 0
    evaluated_step: int = 0
    best_step: int | None = None
    best_loss: float = math.inf
    best_metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    evaluations_without_gain: int = 0
    last_metrics: dict[str, float] = dataclasses.field(default_factory=dict)

    def updated(self, outcome: Outcome, seconds: float, data_seconds: float, *, starting: bool) -> None:
        """Count an update, taken or not; ``starting`` if it is one of the first of this process."""
        self.step += 1
        self.seconds += seconds
        self.data_seconds += data_seconds
        if starting:
            self.starting_steps += 1
            self.starting_seconds += seconds
        if outcome.taken:
            self.loss_sum += outcome.loss
            self.loss_steps += 1
            self.skipped_in_a_row = 0
        else:
            self.skipped += 1
            self.skipped_in_a_row += outcome.hopeless
            self.hopeless += outcome.hopeless

    def is_settled(self, record: dict[str, Any]) -> bool:
        """Whether a record of metrics is part of this state, so that training will not write it again."""
        last = {"train": self.step, "validation": self.evaluated_step}
        return record["step"] <= last.get(record["split"], -1)

    @property
    def steps_per_second(self) -> float | None:
        """Updates per second, without the starting ones unless there are no others; ``None`` before the first."""
        steps, seconds = self.step - self.starting_steps, self.seconds - self.starting_seconds
        if not steps:
            steps, seconds = self.step, self.seconds
        return steps / seconds if seconds else None

    def take_mean_loss(self) -> float:
        """The mean loss of the updates taken since the last call, NaN if there were none."""
        mean = self.loss_sum / self.loss_steps if self.loss_steps else math.nan
        self.loss_sum, self.loss_steps = 0.0, 0
        return mean

    def evaluated(self, metrics: dict[str, float]) -> None:
        """Store the validation metrics of this step; they are the best if they are the first or the loss is lower."""
        self.evaluated_step, self.last_metrics = self.step, metrics
        loss = metrics["loss"]
        if self.best_step is None or loss < self.best_loss:
            self.best_loss = loss if math.isfinite(loss) else math.inf
            self.best_step, self.best_metrics = self.step, metrics
            self.evaluations_without_gain = 0
        else:
            self.evaluations_without_gain += 1
