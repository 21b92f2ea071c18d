"""The trainer: one loop for every model, task and device.

``Trainer`` trains one model with the settings of a ``TrainerConfig``. Between two updates it evaluates if that is due,
then writes a checkpoint if that is due; so a run that is resumed from a checkpoint does exactly what it would have done
without interruption. Batch number ``step`` depends on the seed alone, so the step is the only state of the data.
"""

import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seqlab.data import Batch, DataSet
from seqlab.errors import Diverged, Interrupted
from seqlab.models.counting import training_flops
from seqlab.training import checkpoint
from seqlab.training.ahead import updates
from seqlab.training.captured import EAGER, EAGER_TOGETHER, captures
from seqlab.training.compile_ahead import can_compile, compile_ahead
from seqlab.training.counters import STARTING, Counters
from seqlab.training.evaluate import Evaluation, evaluate
from seqlab.training.parallel import ALONE, World
from seqlab.training.precision import autocast, check_precision
from seqlab.training.prefetch import Prefetch
from seqlab.training.progress import ProgressBar
from seqlab.training.saving import Saving
from seqlab.training.settings import TrainerConfig
from seqlab.training.signals import StopRequest
from seqlab.training.update import Update

log = logging.getLogger(__name__)


class Trainer:
    """Trains one model on one data set.

    Args:
        config: the settings.
        model: on ``device``, in float32. With ``ema``, ``self.model`` is a copy with its averaged weights.
        data: what to train and test it on.
        device: where to train.
        seed: of the order of the data.
        folder: the run folder; checkpoints are written to ``checkpoints/`` in it.
        world: the processes that train together, each with its rows of a batch; the first alone uses the folder.

    Raises:
        UserError: a setting does not fit the data, the model or the device.
    """

    def __init__(
        self,
        config: TrainerConfig,
        model: nn.Module,
        data: DataSet,
        *,
        device: torch.device,
        seed: int,
        folder: Path,
        world: World = ALONE,
    ):
        self.config, self.model, self.data, self.device, self.seed = config, model, data, device, seed
        self.folder, self.checkpoints, self.world = folder, folder / "checkpoints", world
        config.check(data, world)
        check_precision(model, device, config.precision)
        self.total = config.total_steps(data)
        self.evaluate_every = config.evaluate_every or -(-data.train_size // config.batch_size)
        self.checkpoint_every = config.checkpoint_every or self.evaluate_every
        self.tokens_per_step = config.batch_size * data.length
        self.cuda_graph = captures(config, model, device, world)
        self.update = Update(config, model, data, device=device, cuda_graph=self.cuda_graph, world=world)
        self.model = self.update.evaluated
        self.flops_per_step = config.batch_size * training_flops(self.update.counted, data)
        self.saving = Saving(self.checkpoints, self.update, self.model, device, world)
        self._starting = STARTING + (EAGER_TOGETHER - EAGER if self.cuda_graph and world.size > 1 else 0)
        self.counters = Counters()
        self.origin: dict[str, Any] = {}  # goes into the checkpoints' manifests
        self._saved: Counters | None = None
        self._started = time.perf_counter()

    def restore(self) -> None:
        """Restore the newest undamaged checkpoint of the run folder.

        Raises:
            UserError: there is none.
        """
        path, self.counters = self.saving.restore()
        self._saved = dataclasses.replace(self.counters)
        log.info("Continuing from %s.", path)

    def run(self, record: Callable[[dict[str, Any]], None], stop: StopRequest) -> None:
        """Train to the end of the budget, then load the best weights by validation into the model.

        Args:
            record: called with each record of metrics.
            stop: checked between steps and between pieces of an evaluation.

        Raises:
            Diverged: loss or gradient was not finite in ``max_skipped`` consecutive steps.
            Interrupted: ``stop`` received a signal; a checkpoint was written.
        """
        self.record, self.stop = record, stop
        self._started = time.perf_counter() - self.counters.wall_seconds
        first = self._first_step = self.counters.step
        batches = Prefetch(self._batch, first, self.total, device=self.device)
        with self.progress("training") as bar, batches as self.batches:
            if can_compile(self.device) and not (self.config.compile or self.is_over or self.world.size > 1):
                compile_ahead(self.update, self._batch(first), self.config, bar)
            while True:
                self._evaluate_if_due(bar)
                self._save_if_due()
                if self.is_over:
                    break
                self._train_step(bar)
                self._stop_if_asked()
        self.update.release()
        self.saving.wait()
        if self.counters.best_step != self.counters.step:
            checkpoint.load_weights(self.best_checkpoint, self.model, self.world)

    def test(self) -> Evaluation:
        """Measure the model on the test split, once, after training, and record it."""
        with self.progress("testing") as bar:
            result = self.evaluate("test", bar)
        self._record("test", **result.metrics)
        return result

    def progress(self, description: str) -> ProgressBar:
        """A progress bar at the present step."""
        return ProgressBar(description, total=self.total, completed=self.counters.step)

    @property
    def wall_seconds(self) -> float:
        """Seconds since the first step, those of earlier processes of a resumed run included."""
        return time.perf_counter() - self._started

    @property
    def best_checkpoint(self) -> Path:
        """The checkpoint with the lowest validation loss."""
        return checkpoint.path_of(self.checkpoints, self.counters.best_step)

    @property
    def stop_reason(self) -> str | None:
        """Why training ends before its budget; ``None`` if it does not."""
        return self.config.stop_reason(self.counters)

    @property
    def is_over(self) -> bool:
        """Whether training has ended."""
        return self.counters.step >= self.total or self.stop_reason is not None

    @property
    def spent(self) -> dict[str, float]:
        """The cost of training so far, in each unit in which models are compared at equal budgets."""
        step = self.counters.step
        tokens, flops = step * self.tokens_per_step, step * self.flops_per_step
        return {"tokens": tokens, "flops": flops, "seconds": self.counters.seconds}

    def _batch(self, step: int) -> Batch:
        return self.update.share(self.data.train_batch(step, self.config.batch_size, self.seed))

    def _train_step(self, bar: ProgressBar) -> None:
        """Make one update; where outcomes come late (``ahead``), several, to the next pause.

        Raises:
            Diverged: it is the last of too many that were not taken.
        """
        counters, at = self.counters, self.config.schedule
        made = updates(self.update, self.batches, lambda step: at(step, self.total), counters.step, self._pauses_after)
        for outcome, seconds, waited in made:
            counters.updated(outcome, seconds, waited, starting=counters.step < self._first_step + self._starting)
            if counters.step % self.config.log_every == 0 or counters.step == self.total:
                loss, norm = counters.take_mean_loss(), outcome.grad_norm
                more = self.update.values_to_log(outcome)
                self._record("train", loss=loss, lr=self.update.lr, grad_norm=norm, skipped=counters.skipped, **more)
            bar.step(counters.step, outcome.loss, counters.best_loss)
            if counters.skipped_in_a_row >= self.config.max_skipped:
                self.saving.wait()
                rank = self.world.the_one_not_finite(self.update.own_loss)
                self.update.release()
                raise Diverged(counters.step, counters.skipped_in_a_row, self.folder, rank)

    def _pauses_after(self, step: int) -> bool:
        """Whether something follows that needs the weights and counters of this step, such as a record."""
        every = self.config.log_every, self.evaluate_every, self.checkpoint_every
        return step >= self.total or self._signal() or any(step % interval == 0 for interval in every)

    def _record(self, split: str, **values: float) -> None:
        self.world.once(lambda: self.record({"step": self.counters.step, "split": split} | self.spent | values))

    def _evaluate_if_due(self, bar: ProgressBar) -> None:
        counters = self.counters
        due = counters.step % self.evaluate_every == 0 or counters.step >= self.total
        if not due or counters.step == counters.evaluated_step:
            return
        metrics = self.evaluate("validation", bar).metrics
        self._record("validation", **metrics)
        counters.evaluated(metrics)
        self.update.validated(loss := metrics["loss"], step := counters.step)
        log.info("Step %d of %d: validation loss %.4f, best %.4f.", step, self.total, loss, counters.best_loss)

    def evaluate(self, split: str, bar: ProgressBar) -> Evaluation:
        """Measure the model with its present weights on a split."""
        size = self.config.evaluated_at_once(self.data, split)
        batches, most = self.data.evaluation_size(split, size), self.config.evaluation_batches
        bar.begin_evaluation(split, batches if most is None else min(batches, most))
        result = evaluate(
            self.model,
            self.data,
            split,
            batch_size=size,
            most=most,
            device=self.device,
            autocast=lambda: autocast(self.device, self.config.precision),
            on_batch=bar.evaluated_batch,
            on_piece=self._stop_if_asked,
            world=self.world,
        )
        bar.end_evaluation()
        self._stop_if_asked()  # a signal may have come during the wait for the device
        return result

    def _save_if_due(self) -> None:
        counters = self.counters
        due = counters.step % self.checkpoint_every == 0 or counters.step == counters.best_step
        if (due or counters.step >= self.total or self.stop_reason) and counters != self._saved:
            self.save()

    def save(self) -> None:
        """Write a checkpoint of the present step, or begin to (``Saving``)."""
        counters = self.counters
        counters.wall_seconds = self.wall_seconds
        self.saving.save(counters, self.origin)
        self._saved = dataclasses.replace(counters)

    def _stop_if_asked(self) -> None:
        if signal := self._signal():
            if self.counters != self._saved:
                self.save()
            self.saving.wait()
            self.update.release()  # NCCL's end waits for that of a graph with its kernels
            raise Interrupted(signal, self.counters.step, self.folder)

    def _signal(self) -> int:
        """The number of a signal to stop that some process has received; 0 without one."""
        return self.world.largest(self.stop.signal or 0)
