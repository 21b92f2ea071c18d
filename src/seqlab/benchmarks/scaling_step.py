"""Training steps in the processes that torchrun starts: the update of train.py, and a bare loop around torch's DDP.

    torchrun --standalone --nproc-per-node=2 -m seqlab.benchmarks.scaling_step settings.json

``seqlab benchmark scaling`` starts it so. Symbols: B sequences of L tokens.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from seqlab.benchmarks.scaling_points import BARE, GRAPH, NO_GRAPH, Case, Point
from seqlab.benchmarks.session import failure
from seqlab.benchmarks.training_step import RandomTokens
from seqlab.config.overrides import compose
from seqlab.data import Batch
from seqlab.invocation import processes
from seqlab.jsonio import load
from seqlab.models.layer import recompute
from seqlab.runs.build import build_model
from seqlab.runs.environment import peak_memory, reset_peak_memory
from seqlab.runs.load import TokenWidths
from seqlab.runs.process import free_memory, reset_global_state
from seqlab.training import TrainerConfig
from seqlab.training.ahead import updates
from seqlab.training.captured import EAGER_TOGETHER, captures
from seqlab.training.counters import Outcome
from seqlab.training.objective import Objective
from seqlab.training.optim import adamw
from seqlab.training.parallel import World, joined
from seqlab.training.prefetch import Prefetch
from seqlab.training.schedule import constant
from seqlab.training.update import Update

WARM_UP = EAGER_TOGETHER + 2
"""Steps before the first sample: torch's DDP waits for the device in its first ten, and a graph is captured in the last
but one at the latest."""


class Trained(NamedTuple):
    """How a model is built and trained: overrides of conf/, and settings of the trainer."""

    overrides: list[str]
    vocabulary: int
    parallel: str = "ddp"
    checkpoint_layers: bool = False


class PlainDDP:
    """A bare loop as anyone writes it: torch's ``DistributedDataParallel`` and AdamW with their defaults, clipped to 1.

    Its loss is computed by the same module, and it is called as an ``Update`` is.
    """

    def __init__(self, model: nn.Module, precision: str, device: torch.device, world: World):
        self.device, self.parameters, self.late = device, list(model.parameters()), device.type == "cuda"
        objective = Objective(model, RandomTokens(), device, precision)
        self.objective = objective if world.size == 1 else nn.parallel.DistributedDataParallel(objective)
        self.optimizer = torch.optim.AdamW(self.parameters, fused=True)

    def launch(self, batch: Batch, rate: float) -> Callable[[], Outcome]:
        """Launch an update, whose learning rate is AdamW's own; what is returned waits for it."""
        inputs, targets = (part.to(self.device, non_blocking=True) for part in batch)  # (B, L) each
        count = torch.full((), float(targets.numel()), device=self.device)
        loss, _ = self.objective(inputs, targets, count)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        values = torch.stack((loss.detach(), norm)).to("cpu", non_blocking=True)
        done = torch.cuda.Event() if self.late else None
        if done:
            done.record()

        def outcome() -> Outcome:
            if done:
                done.synchronize()
            return Outcome(*values.tolist(), True, False)

        return outcome


def batch_of(step: int, rows: int, length: int, vocabulary: int) -> Batch:
    """Random tokens, (B, L) each, and those that follow them."""
    tokens = torch.randint(vocabulary, (rows, length + 1), generator=torch.Generator().manual_seed(step))
    return Batch(tokens[:, :-1], tokens[:, 1:])


def prepare(
    case: Case, trained: Trained, settings: dict[str, Any], world: World, device: torch.device
) -> tuple[Update | PlainDDP, int]:
    """What makes a case's updates, and the number of the model's parameters."""
    free_memory()  # of the case before
    reset_global_state(settings["seed"])
    widths = TokenWidths(trained.vocabulary, trained.vocabulary, settings["length"])
    with device:
        model = build_model(compose(*trained.overrides), widths, device).train()
    parameters = sum(p.numel() for p in model.parameters())
    if case.contestant == BARE:
        recompute(model, int(trained.checkpoint_layers))
        return PlainDDP(model, settings["precision"], device, world), parameters
    config = TrainerConfig(
        optimizer=adamw,
        schedule=constant,
        batch_size=case.rows * world.size,
        steps=1,
        precision=settings["precision"],
        parallel=trained.parallel,
        checkpoint_layers=trained.checkpoint_layers,
        cuda_graph={NO_GRAPH: False, GRAPH: True}.get(case.contestant, "auto"),
    )
    graph = captures(config, model, device, world)
    return Update(config, model, RandomTokens(), device=device, cuda_graph=graph, world=world), parameters


def measured(case: Case, settings: dict[str, Any], world: World, device: torch.device) -> Point:
    """Make a case's steps as the trainer does, and time each from outcome to outcome."""
    trained = Trained(**settings["models"][case.model])
    point, total = Point(*case, settings["length"]), WARM_UP + settings["steps"]
    update, point.parameters = prepare(case, trained, settings, world, device)

    def make(step: int) -> Batch:
        return world.share(batch_of(step, case.rows * world.size, point.length, trained.vocabulary))

    def steps(first: int, last: int) -> tuple[list[float], float]:
        """Seconds of steps ``first`` to ``last`` - 1, and the last loss."""
        found = []
        while first + len(found) < last:
            for outcome, seconds, _ in updates(update, batches, lambda _: 1.0, first + len(found), last.__le__):
                found.append(seconds)
                loss = outcome.loss
        return found, loss

    with Prefetch(make, 0, total, device=device) as batches:
        (point.first_call,), loss = steps(0, 1)
        reset_peak_memory()  # of what tuning the kernels needed
        steps(1, WARM_UP)
        world.gather(None)  # so that all begin together
        point.samples, _ = steps(WARM_UP, total)
    point.first_loss = sum(world.gather(loss)) / world.size
    peaks = world.gather(peak_memory(device))
    point.peak_bytes = None if None in peaks else max(peaks)
    return point


def main() -> None:
    """Measure the cases that the file of the first argument names; their results are lines of the file it names.

    At an error the process ends, and torchrun ends the others.
    """
    settings = load(Path(sys.argv[1]))
    device = torch.device(settings["device"])
    with joined(*processes()) as world, Path(settings["results"]).open("a") as results:

        def write(place: int, point: Point) -> None:
            results.write(json.dumps([place, asdict(point)]) + "\n")
            results.flush()

        world.take(device)
        for place, given in enumerate(settings["cases"]):
            case = Case(*given)
            try:
                point = measured(case, settings, world, device)
            except Exception as error:
                traceback.print_exc()
                found = failure(error, ours=False)
                write(place, Point(*case, settings["length"], status=found.status, reason=found.reason))
                sys.stderr.flush()
                os._exit(1)  # without waiting for the others, who may wait for this one
            world.once(lambda place=place, point=point: write(place, point))


if __name__ == "__main__":
    main()
