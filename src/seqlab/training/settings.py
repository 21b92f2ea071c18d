"""The settings of a training run; ``conf/trainer`` holds their values."""

import dataclasses
from collections.abc import Callable
from typing import Literal

from pydantic import PositiveFloat, PositiveInt
from torch import nn
from torch.optim import Optimizer

from seqlab.errors import UserError
from seqlab.training.precision import Precision


@dataclasses.dataclass(kw_only=True)
class TrainerConfig:
    """Settings of a training run.

    Args:
        optimizer: given the model, its torch optimizers (``seqlab.training.optim``).
        schedule: given step and total, the factor on the learning rate (``seqlab.training.schedule``).
        batch_size: windows in an update.
        steps, epochs, tokens: the budget, exactly one of them.
        accumulate: parts that a batch is cut into to save memory; the gradient is that of the whole. Models that
            balance experts pay a second forward pass for it, in which the whole batch's visits are counted.
        clip_norm: largest norm of the gradient; ``None`` leaves it as it is.
        precision: of the model's arithmetic; parameters are always float32.
        compile: train through ``torch.compile``.
        cuda_graph: record the kernels of a step once and replay them, which a GPU needs for small models; ``auto`` does
            so on CUDA in float32 and bf16 without ``compile``.
        evaluate_every: steps between evaluations; ``None`` is an epoch.
        checkpoint_every: steps between checkpoints, besides those of each better validation loss and of the end;
            ``None`` is ``evaluate_every``.
        log_every: steps between training records.
        patience: evaluations without a better validation loss before stopping; ``None`` goes on to the end.
        stop_above: ``{metric: name, value: x}``: stop when this metric of the validation split is above x.
        max_skipped: steps in a row whose loss or gradient is not finite before giving up.
        evaluation_batch_size: windows at a time in evaluation; ``None`` is ``batch_size``.
        evaluation_batches: read this many batches of a split at most, its first ones; ``None`` is the whole split.
        further_tests: measure the data's tests beyond training, after the test split.
    """

    optimizer: Callable[[nn.Module], list[Optimizer]]
    schedule: Callable[[int, int], float]
    batch_size: PositiveInt
    steps: PositiveInt | None = None
    epochs: PositiveFloat | None = None
    tokens: PositiveInt | None = None
    accumulate: PositiveInt = 1
    clip_norm: PositiveFloat | None = 1.0
    precision: Precision = "float32"
    compile: bool = False
    cuda_graph: bool | Literal["auto"] = "auto"
    evaluate_every: PositiveInt | None = None
    checkpoint_every: PositiveInt | None = None
    log_every: PositiveInt = 10
    patience: PositiveInt | None = None
    stop_above: dict[str, str | float] | None = None
    max_skipped: PositiveInt = 5
    evaluation_batch_size: PositiveInt | None = None
    evaluation_batches: PositiveInt | None = None
    further_tests: bool = True

    def __post_init__(self) -> None:
        if self.batch_size % self.accumulate:
            raise UserError(
                "trainer.accumulate",
                self.accumulate,
                f"must divide batch_size={self.batch_size}, so that the parts are alike",
                "Change one of the two",
            )
