"""One update: accumulate the gradient of a batch, clip it, and step the optimizers if it is finite.

Symbols: B batch, L length, E experts.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from seqlab.data import Batch, DataSet
from seqlab.models.head_loss import reads_hidden
from seqlab.models.layer import recompute
from seqlab.models.mixture_of_experts import MixtureOfExperts, auxiliary_losses, balances, expert_load
from seqlab.models.protocols import parts, share_positions
from seqlab.models.sequence_model import ModelState
from seqlab.training.average import Average, NonMonotonic, copy_of
from seqlab.training.captured import EAGER, EAGER_TOGETHER, CapturedGradient
from seqlab.training.carried import CarriedState
from seqlab.training.counters import Outcome
from seqlab.training.device_step import DeviceStep, can_step
from seqlab.training.freezing import freeze
from seqlab.training.lora import Lora
from seqlab.training.objective import Objective
from seqlab.training.optim import trainable
from seqlab.training.parallel import ALONE, World
from seqlab.training.precision import autocast
from seqlab.training.settings import TrainerConfig
from seqlab.training.sharding import is_part, parts_of_state, whole

Visits = dict[nn.Module, Tensor]
"""The share of each expert in a batch's visits (choices of an expert by a token), (E,), for each mixture of experts."""


def add_visits(visits: Visits, weight: float) -> None:
    """Add the shares (E,) of the last forward pass, times the share of the batch that it saw, in place."""
    for part, share in visits.items():
        share.add_(part.expert_share, alpha=weight)


def outcome_of(loss: float, norm: float, *auxiliary: float) -> Outcome:
    """The outcome of a step that is taken if loss and norm are finite."""
    taken = math.isfinite(loss) and math.isfinite(norm)
    return Outcome(loss, norm, taken, not taken, *auxiliary)


class Update:
    """Everything that changes a model's weights.

    Args:
        config: the settings. With several parts of a batch, the shares of the whole batch's visits, which are factors
            of the loss that balances experts, are counted in a forward pass before; of several processes, each computes
            its share of the rows.
        model: on ``device``, in float32.
        data: has the loss and the mask.
        device: where to train.
        cuda_graph: whether a step's kernels are captured once and replayed (``captures``); without those of the
            optimizers if these cannot leave it to the device whether to step (``can_step``).
        world: the processes that train together.

    Attributes:
        late: whether ``launch`` returns before the device is done.
        counted: the model, or a copy of it to count operations on where this one has parts of the weights.
        own_loss: of the last batch, from this process's rows: a scalar on the device.
        shared_out: whether this process has parts of the weights.
        evaluated: the model whose weights are evaluated and kept: the given one, or one with averaged weights.
    """

    def __init__(
        self,
        config: TrainerConfig,
        model: nn.Module,
        data: DataSet,
        *,
        device: torch.device,
        cuda_graph: bool = False,
        world: World = ALONE,
    ):
        self.data, self.device, self.precision, self.world = data, device, config.precision, world
        self.accumulate, self.clip_norm = config.accumulate, config.clip_norm or math.inf
        in_parts = config.accumulate * world.size > 1
        self.experts = parts(model, MixtureOfExperts) if in_parts else []
        self.counts_first = config.accumulate > 1 and balances(model)
        freeze(model, config.freeze)
        self.lora = Lora(model, config.lora) if config.lora else None
        self.evaluated = copy_of(model) if config.ema or config.nt_asgd else model
        self.counted = world.shard(model, config.parallel, config.offload)
        self.shared_out = any(map(is_part, model.parameters()))
        if self.lora and self.shared_out:
            self.lora.share_out(model)
        self.average = None
        if self.evaluated is not model:
            world.shard(self.evaluated, config.parallel, config.offload)
            kind, rule = (Average, config.ema) if config.ema else (NonMonotonic, config.nt_asgd)
            self.average = kind(model, self.evaluated, rule)
        recompute(model, int(config.checkpoint_layers))
        self.parameters = trainable(model)
        config.regularisation.apply(model)
        self.context_parallel = config.context_parallel
        if config.context_parallel > 1:
            share_positions(model, world.context(config.context_parallel))
        self.carried = CarriedState(model, data, config, world) if data.carries else None
        optimizers = config.optimizer(model)
        self.optimizers = [optimizers] if isinstance(optimizers, Optimizer) else optimizers
        if self.lora:
            self.lora.check_trained(self.optimizers)
        self.base_rates = [[group["lr"] for group in o.param_groups] for o in self.optimizers]
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        if config.compile:  # a hint to use TensorFloat32, which is less exact
            warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")
        self.model = torch.compile(model) if config.compile else model
        smoothing = config.regularisation.label_smoothing
        self.objective = Objective(self.model, data, device, config.precision, smoothing)
        self.wrapped = self.objective if self.lora else world.wrap(self.objective, config.parallel, cuda_graph)
        plain = device.type == "cuda" and not (self.scaler.is_enabled() or config.compile)
        self.late = plain and not self.shared_out and all(map(can_step, self.optimizers))
        self.device_step = DeviceStep(self.optimizers, device) if self.late else None
        change = self._gradient_and_step if self.device_step else self._gradient
        eager = EAGER if world.size == 1 else EAGER_TOGETHER
        self.change = CapturedGradient(change, model, eager) if cuda_graph else change

    @property
    def lr(self) -> float:
        """The learning rate of parameters that have no factor on it."""
        group = self.optimizers[0].param_groups[0]
        return group["lr"] / group.get("factor", 1.0)

    def share(self, batch: Batch) -> Batch:
        """What this process computes of a batch."""
        return self.world.share(batch, self.context_parallel)

    def __call__(self, batch: Batch, rate: float) -> Outcome:
        """Train on a batch with every learning rate times ``rate``; skip the step if loss or gradient is not finite."""
        return self.launch(batch, rate)()

    def launch(self, batch: Batch, rate: float) -> Callable[[], Outcome]:
        """As a call, without waiting for the device if ``late``; what is returned waits for it and has the outcome."""
        for optimizer, rates in zip(self.optimizers, self.base_rates, strict=True):
            for group, base in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = base * rate
        if self.carried:
            self.carried.next()
        if self.device_step is None:
            outcome = self._step(*self.change(*batch).tolist())  # in float32 and bf16 the only wait for the device
            return lambda: outcome
        self.device_step.set_rates()
        values = self.change(*batch).to("cpu", non_blocking=True)  # in pinned memory
        done = torch.cuda.Event()
        done.record()
        return lambda: done.synchronize() or outcome_of(*values.tolist())

    def validated(self, loss: float, step: int) -> None:
        """Take note of the validation loss after a number of steps, which an average may wait for."""
        if self.average:
            self.average.validated(loss, step)

    def _step(self, loss: float, norm: float, *auxiliary: float) -> Outcome:
        """Step the optimizers if loss and norm are finite."""
        outcome = outcome_of(loss, norm, *auxiliary)
        for optimizer in self.optimizers:
            if outcome.taken:
                self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        if outcome.taken:
            self._follow()
        can_mend = self.scaler.is_enabled() and self.scaler.get_scale() > 1  # a gradient past fp16's range
        self.scaler.update()
        return outcome._replace(hopeless=outcome.hopeless and not (can_mend and math.isfinite(loss)))

    def _gradient_and_step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        values = self._gradient(inputs, targets)
        self._follow(1 - self.device_step(values[:2]))
        return values

    def _follow(self, taken: Tensor | float = 1.0) -> None:
        """What comes after the optimizers' step, unless ``taken``, a number or a scalar on the device, is 0."""
        if self.lora:
            self.lora.merge()
        if self.average:
            self.average.update(taken)

    def _gradient(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Accumulate the gradient of the batch's mean loss and of its auxiliary loss.

        Returns:
            The mean loss, the norm before clipping, and the auxiliary loss if there is one: (2,) or (3,) float32.
        """
        inputs, targets = Batch(inputs, targets).to(self.device)
        count = self.world.mean(self.data.mask(targets).sum())
        loss, added = torch.zeros((), device=self.device), None
        shares = self._count_visits(inputs) if self.counts_first else None
        visits = self._no_visits()
        pieces = list(zip(inputs.chunk(self.accumulate), targets.chunk(self.accumulate), strict=True))
        for number, piece in enumerate(pieces):
            with self.world.adds_up(self.wrapped, number == len(pieces) - 1):
                part_loss, after = self.wrapped(*piece, count, self._state_before(number))
                own_loss = part_loss.detach()
                loss += own_loss
                weight = len(piece[0]) / len(inputs)
                add_visits(visits, weight)
                auxiliary = auxiliary_losses(self.model, shares or self._of_all(visits))
                if auxiliary is not None:
                    auxiliary = auxiliary * weight
                    part_loss = part_loss + auxiliary
                    added = auxiliary.detach() if added is None else added + auxiliary.detach()
                self.scaler.scale(part_loss).backward()
                if self.carried:
                    self.carried.keep(number, after, own_loss)
        for part, share in self._of_all(visits).items():
            part.expert_share.copy_(share)  # instead of the last part's
        if self.lora:  # whose gradients are not those of the model's parameters, which torch adds up
            self.lora.collect()
            for p in self.parameters:
                p.grad = self.world.mean(p.grad)
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        self.own_loss = loss
        norm = whole(nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)).to(self.device)
        return self.world.mean(torch.stack((loss, norm) if added is None else (loss, norm, added)))

    def differentiate(self, batch: Batch) -> None:
        """Add the gradient of the first part of a batch to the parameters', as a step does for each, and no more."""
        inputs, targets = (part.chunk(self.accumulate)[0] for part in Batch(*batch).to(self.device))
        loss, _ = self.objective(inputs, targets, self.data.mask(targets).sum(), self._state_before(0))
        auxiliary = auxiliary_losses(self.model)
        (loss if auxiliary is None else loss + auxiliary).backward()

    def _state_before(self, part: int) -> ModelState | None:
        """The state that a part of a batch goes on from, if the model carries one."""
        return self.carried.parts[part] if self.carried else None

    def _count_visits(self, inputs: Tensor) -> Visits:
        """The share of each expert in the visits of the whole batch, (E,), for each mixture of experts.

        The forward passes are the same as those that follow: with the same random numbers and, since gradients are
        enabled here too, the same kernels.
        """
        visits, without_outputs = self._no_visits(), {"head": nn.Identity()} if reads_hidden(self.model) else {}
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else [], device_type=self.device.type):
            for number, part in enumerate(inputs.chunk(self.accumulate)):
                with autocast(self.device, self.precision):
                    if self.carried:
                        self.model.carry(part, self._state_before(number))
                    else:
                        self.model(part, **without_outputs)
                auxiliary_losses(self.model)  # removes them, so that no autograd graph stays
                add_visits(visits, len(part) / len(inputs))
        return self._of_all(visits)

    def _of_all(self, visits: Visits) -> Visits:
        """The shares in the visits of all processes' rows, from this process's."""
        return {part: self.world.mean(share) for part, share in visits.items()}

    def _no_visits(self) -> Visits:
        return {part: torch.zeros_like(part.expert_share) for part in self.experts}

    def release(self) -> None:
        """Free the memory of gradients and captured kernels; a further update would capture anew."""
        if isinstance(self.change, CapturedGradient):
            self.change = CapturedGradient(self.change.gradient, self.change.model, self.change.eager)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def values_to_log(self, outcome: Outcome) -> dict[str, float]:
        """Values to log besides loss and norm: the auxiliary loss and the load of experts, if the model has them."""
        load = expert_load(self.model)
        busy = {} if load is None else {"largest_expert_share": load.largest_share, "dead_experts": load.dead}
        return busy if outcome.auxiliary_loss is None else {"auxiliary_loss": outcome.auxiliary_loss} | busy

    def state_dict(self) -> dict[str, Any]:
        """The state of the optimizers, with parts where weights are shared out, and of the loss scale, and of weights
        that are not those of ``evaluated``."""
        return {
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            **{name: part.state() for name, part in self._beside().items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, of parts or whole; ``evaluated`` has its weights already."""
        self.release()  # captured kernels would go on with the state that is replaced here
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(parts_of_state(saved, optimizer))
        self.scaler.load_state_dict(state["scaler"])
        for name, part in self._beside().items():
            part.load_state(state[name])

    def _beside(self) -> dict[str, Average | Lora | CarriedState]:
        """What has a state besides the optimizers' and that of the model."""
        beside = {"average": self.average, "lora": self.lora, "carried": self.carried}
        return {name: part for name, part in beside.items() if part}
