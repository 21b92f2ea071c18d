"""The settings of a training run and the length that follows from them; ``conf/trainer`` has their values."""

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt
from torch import nn
from torch.optim import Optimizer

from seqlab.data import DataSet
from seqlab.errors import UserError, nearest
from seqlab.training.counters import Counters
from seqlab.training.lora import LoraSettings
from seqlab.training.parallel import Parallel, World
from seqlab.training.precision import Precision
from seqlab.training.regularisation import Regularisation

BUDGETS = ("steps", "epochs", "tokens")
"""Units of the length of a run, each a field of ``TrainerConfig``."""


@dataclasses.dataclass(kw_only=True)
class TrainerConfig:
    """Settings of a training run.

    Args:
        optimizer: returns the torch optimizers of a model (``seqlab.training.optim``).
        schedule: factor on the learning rate, from the step and the number of steps (``seqlab.training.schedule``).
        batch_size: windows in an update.
        steps, epochs, tokens: the budget, exactly one of them.
        accumulate: number of parts of a batch, to save memory; the gradient is that of the whole batch. With a loss
            that balances experts this takes a second forward pass, which counts the whole batch's visits of experts.
        clip_norm: largest norm of the gradient; ``None`` does not clip.
        precision: of the model's computations; parameters are always float32.
        parallel: how the processes that torchrun starts hold the weights: all of them each (``ddp``, which is ``auto``
            too), or a part each (``fsdp``). Without torchrun it has no effect. ``batch_size`` is that of all together.
        offload: keep the parts of ``fsdp`` and the optimizer's state in the CPU's memory, where the optimizer steps.
        context_parallel: how many processes share each sequence, a slice of its positions each, for sequences too long
            for one; a divisor of their number.
        checkpoint_layers: keep of each layer (``true``), or of every n-th, only its inputs for the backward pass, and
            compute the rest again there: less memory for up to a third more time, the same gradients.
        timeout: seconds that processes wait for one another, at most, before the run ends.
        compile: train through ``torch.compile``.
        cuda_graph: capture the kernels of a step once and replay them, which makes small models faster on a GPU;
            ``auto`` does so on CUDA in float32 and bf16 without ``compile``, in a process that trains alone.
        evaluate_every: steps between evaluations; ``None`` is an epoch.
        checkpoint_every: steps between checkpoints; ``None`` is ``evaluate_every``. Each better validation loss and the
            end of training are saved too.
        log_every: steps between training records.
        patience: evaluations without a better validation loss after which to stop; ``None`` never stops early.
        stop_above: ``{metric: name, value: x}``: stop when this metric of the validation split is above x.
        max_skipped: consecutive steps without a finite loss and gradient after which to give up.
        evaluation_batch_size: windows at a time in evaluation; ``None`` is ``batch_size``.
        evaluation_batches: the largest number of batches of a split to read, from its start; ``None`` reads all.
        further_tests: measure the data's tests beyond training, after the test split.
        ema: decay of an exponential moving average of the weights, which then is what is evaluated, kept as the best
            weights and tested; ``None`` takes the weights themselves.
        nt_asgd: evaluations without a gain after which to evaluate, keep and test the mean of the weights from there on
            (``NonMonotonic``); AWD-LSTM has 5. ``None`` takes the weights themselves, or ``ema``.
        regularisation: dropouts, losses and label smoothing of training (``seqlab.training.regularisation``); ``None``
            is none but ``model.dropout``.
        freeze: names of parameters that stay as they are, or patterns of them (``seqlab.training.freezing``).
        lora: ``{rank: r, alpha: x, on: [names]}``: train low-rank changes of these weights alone
            (``seqlab.training.lora``).

    Raises:
        UserError: not exactly one of ``BUDGETS`` is given, ``accumulate`` does not divide ``batch_size``, or two
            settings exclude each other.
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
    parallel: Parallel = "auto"
    offload: bool = False
    context_parallel: PositiveInt = 1
    checkpoint_layers: bool | PositiveInt = False
    timeout: PositiveFloat = 600.0
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
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    nt_asgd: PositiveInt | None = None
    regularisation: Regularisation | None = None
    freeze: list[str] = dataclasses.field(default_factory=list)
    lora: LoraSettings | None = None

    def __post_init__(self) -> None:
        given = {name: value for name in BUDGETS if (value := getattr(self, name)) is not None}
        if len(given) != 1:
            raise UserError(
                ", ".join(given or BUDGETS),
                ", ".join(map(str, given.values())) or "null",
                f"the budget is exactly one of {', '.join(BUDGETS[:-1])} and {BUDGETS[-1]}",
                "Set one and leave the others null, for example steps=1000 epochs=null",
            )
        if self.batch_size % self.accumulate:
            raise UserError(
                "accumulate",
                self.accumulate,
                f"must divide batch_size={self.batch_size}, so that the parts are alike",
                "Change one of the two",
            )
        if self.ema and self.nt_asgd:
            raise UserError("nt_asgd", self.nt_asgd, f"is one average, and ema={self.ema:g} another", "Set one of them")
        self.regularisation = self.regularisation or Regularisation()
        if self.compile and self.regularisation.weights:
            rule = "does not compile weights that are dropped (regularisation.weights)"
            raise UserError("compile", True, rule, "Set compile=false")

    def total_steps(self, data: DataSet) -> int:
        """The number of updates that the budget allows on this data, rounded up."""
        if self.steps is not None:
            return self.steps
        if self.epochs is not None:
            return math.ceil(self.epochs * data.train_size / self.batch_size)
        return math.ceil(self.tokens / (self.batch_size * data.length))

    def check(self, data: DataSet, world: World) -> None:
        """Check the settings against the data and the processes that train together.

        Raises:
            UserError: they do not fit.
        """
        data.check_batch_size(self.batch_size)
        self.check_context(data, world)
        self.check_shares(world)
        self.check_carried(data, world)
        self.check_stop_above(data)
        self.regularisation.check_data(data)

    def check_context(self, data: DataSet, world: World) -> None:
        """Check that processes can have equal slices of the sequences.

        Raises:
            UserError: they cannot.
        """
        size = self.context_parallel
        if world.size % size:
            rule = f"so many processes share a sequence, and they do not divide the {world.size} there are"
            remedy = f"Set context_parallel=1, or start torchrun with --nproc-per-node={size}"
            raise UserError("context_parallel", size, rule, remedy)
        if data.length % size:
            rule = f"must divide the length of the sequences, {data.length}, so that slices are alike"
            raise UserError("context_parallel", size, rule, "Change one of the two")
        if size > 1 and self.compile:
            rule = "does not compile what processes that share a sequence exchange"
            raise UserError("compile", True, rule, "Set compile=false, or context_parallel=1")
        for name, value in self.regularisation.of_whole_sequences.items() if size > 1 else ():
            rule = "is of whole sequences, and context_parallel gives each process a slice"
            raise UserError(f"regularisation.{name}", value, rule, "Set context_parallel=1, or leave it out")

    def check_shares(self, world: World) -> None:
        """Check that processes can have equal shares of a batch, and can train together as these settings say.

        Raises:
            UserError: they cannot.
        """
        sharded = self.parallel == "fsdp" and world.size > 1
        if self.offload and not sharded:
            rule = "moves the parts of weights that several processes hold with parallel=fsdp"
            raise UserError("offload", True, rule, "Leave it out, or set parallel=fsdp and start torchrun")
        if world.size == 1:
            return
        shares = world.size // self.context_parallel
        if self.batch_size % (parts := shares * self.accumulate):
            split = f"{shares} {'processes' if self.context_parallel == 1 else 'groups of processes'}"
            split += f" in {self.accumulate} parts each" if self.accumulate > 1 else ""
            rule = f"is the batch of all together, and does not divide evenly among {split}"
            fits = -(-self.batch_size // parts) * parts
            remedy = f"Start another number of processes, or a new run with batch_size={fits}"
            raise UserError("batch_size", self.batch_size, rule, remedy)
        if sharded and self.regularisation.weights:
            rule = "needs whole weights in each process, and parallel=fsdp shares them out"
            name = "regularisation.weights"
            raise UserError(name, self.regularisation.weights, rule, "Set parallel=ddp, or leave it out")

    def check_carried(self, data: DataSet, world: World) -> None:
        """Check that a model's state can be carried from window to window, if it is to be.

        Raises:
            UserError: it cannot.
        """
        for name, value, refused, remedy in (
            ("compile", True, self.compile, "Set compile=false"),
            ("context_parallel", self.context_parallel, self.context_parallel > 1, "Set context_parallel=1"),
            ("parallel", "fsdp", self.parallel == "fsdp" and world.size > 1, "Set parallel=ddp"),
        ):
            if data.carries and refused:
                rule = "does not carry a state from one window to the next, as data.windows=carried does"
                raise UserError(name, value, rule, f"{remedy}, or data.windows=contiguous")

    def check_stop_above(self, data: DataSet) -> None:
        """Check ``stop_above``.

        Raises:
            UserError: it does not name a metric of the data and a number.
        """
        rule = self.stop_above
        if rule is None:
            return
        metric, value = rule.get("metric"), rule.get("value")
        if set(rule) != {"metric", "value"} or isinstance(value, str):
            wanted = "must name a metric of the validation split and a number"
            raise UserError("stop_above", rule, wanted, "For example stop_above={metric:accuracy,value:0.99}")
        if metric not in data.metrics:
            raise UserError("stop_above.metric", metric, "is no metric of this data", nearest(metric, data.metrics))

    def evaluated_at_once(self, data: DataSet, split: str) -> int:
        """Windows of a split that an evaluation takes at a time."""
        return data.largest_batch(split, self.evaluation_batch_size or self.batch_size)

    def stop_reason(self, counters: Counters) -> str | None:
        """Why a run with these counters ends before its budget; ``None`` if it continues."""
        if self.stop_above is not None:
            metric, value = self.stop_above["metric"], self.stop_above["value"]
            reached = counters.last_metrics.get(metric, -math.inf)
            if reached > value:
                return f"validation {metric} {reached:.4g} is above {value:g}"
        if self.patience is not None and counters.evaluations_without_gain >= self.patience:
            return f"no better validation loss in {self.patience} evaluations"
        return None
