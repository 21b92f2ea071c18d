"""What an update did, and where a run stands: plain numbers, saved with every checkpoint."""

import dataclasses
import math
from typing import NamedTuple

STARTING = 5
"""Updates after a start in which kernels are compiled and caches filled."""


class Outcome(NamedTuple):
    """What an update did.

    ``loss`` is the batch's mean, ``grad_norm`` the norm before clipping. The weights changed if it was ``taken``; if
    not, it is ``hopeless`` unless fp16's loss scale can still come down. ``auxiliary_loss`` is what the model's parts
    added to what was differentiated, ``None`` where they have nothing to add; ``loss`` is the data's alone, so that
    models stay comparable.
    """

    loss: float
    grad_norm: float
    taken: bool
    hopeless: bool
    auxiliary_loss: float | None = None


@dataclasses.dataclass
class Counters:
    """Steps, time, the running mean of the loss, and the best validation loss.

    ``seconds`` is time in updates alone, ``data_seconds`` as much of it as was spent waiting for a batch,
    ``wall_seconds`` all time since the start, earlier parts of a resumed run included. The ``starting_`` ones are of
    the first updates of each part. ``hopeless`` are those of the skipped that no lower loss
    scale would mend. ``evaluated_step`` is the last step whose validation is complete, and ``last_metrics`` what it
    gave.
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
        """Count an update, taken or thrown away; ``starting`` if it is one of the first since a start."""
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

    @property
    def steps_per_second(self) -> float | None:
        """Without the starting ones, unless there are no others; none before the first update."""
        steps, seconds = self.step - self.starting_steps, self.seconds - self.starting_seconds
        if not steps:
            steps, seconds = self.step, self.seconds
        return steps / seconds if seconds else None

    def take_mean_loss(self) -> float:
        """The mean loss of the updates taken since this was last asked."""
        mean = self.loss_sum / self.loss_steps if self.loss_steps else math.nan
        self.loss_sum, self.loss_steps = 0.0, 0
        return mean

    def evaluated(self, metrics: dict[str, float]) -> None:
        """Note the validation of this step; the first is the best until one with a lower loss comes."""
        self.evaluated_step, self.last_metrics = self.step, metrics
        loss = metrics["loss"]
        if self.best_step is None or loss < self.best_loss:
            self.best_loss = loss if math.isfinite(loss) else math.inf
            self.best_step, self.best_metrics = self.step, metrics
            self.evaluations_without_gain = 0
        else:
            self.evaluations_without_gain += 1
