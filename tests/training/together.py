"""What processes compute together in the tests, and one alone."""

import copy
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fits import config_of
from omegaconf import OmegaConf
from torch import Tensor, nn

from seqlab.config.exceptions import message_of
from seqlab.data import Batch, DataSet
from seqlab.invocation import processes
from seqlab.models import SequenceModel, expert_load
from seqlab.models.head_loss import reads_hidden
from seqlab.models.pattern import names_in
from seqlab.runs.build import build_model
from seqlab.runs.load import TokenWidths
from seqlab.training import checkpoint, evaluate, metrics
from seqlab.training.counters import Counters
from seqlab.training.evaluate import Evaluation
from seqlab.training.optim import soap
from seqlab.training.parallel import ALONE, World, joined
from seqlab.training.saving import Saving
from seqlab.training.sharding import own, part_of, parts_of_state, whole
from seqlab.training.update import Update
from support import architectures, composed, optimizers

CPU = torch.device("cpu")
ROWS, LENGTH, VOCABULARY = 8, 12, 7


class Words(DataSet):
    """Random tokens; how many positions of a row count differs, and a split ends in a batch of one row."""

    tokens, d_input, d_output, length, train_size = True, VOCABULARY, VOCABULARY, LENGTH, 64
    fingerprint, description = "0" * 12, "words"

    def __init__(self) -> None:
        self.metrics = {
            "accuracy": partial(metrics.top_k_accuracy, k=1),
            "calibration": metrics.CalibrationError(),
            "exact": metrics.ExactSequences(),
            "perplexity": metrics.Perplexity(),
        }

    def _batch(self, seed: int, rows: int) -> Batch:
        draw = torch.Generator().manual_seed(seed)
        tokens = torch.randint(VOCABULARY, (rows, LENGTH), generator=draw)
        asked = torch.rand(rows, LENGTH, generator=draw) < torch.rand(rows, 1, generator=draw)
        return Batch(tokens, tokens.roll(1, dims=1).where(asked | (torch.arange(LENGTH) == 3), -100))

    def train_batch(self, index: int, batch_size: int, seed: int) -> Batch:
        return self._batch(1000 * seed + index, batch_size)

    def begins(self, index: int, batch_size: int) -> bool:
        return index == 0

    def evaluation_size(self, split: str, batch_size: int) -> int:
        return 3

    def evaluation_batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        return (self._batch(-1 - number, rows) for number, rows in enumerate((batch_size, batch_size, 1)))

    def slices(self, batch: Batch) -> dict[str, Tensor]:
        return {"token": batch.inputs}

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if torch.is_inference_mode_enabled():
            outputs = outputs.float()  # as the contract has it; gradients are compared more closely
        return nn.functional.cross_entropy(outputs.transpose(1, 2), targets, reduction="none")


def settings_of(name: str, *overrides: str) -> dict[str, Any]:
    """Of a small model."""
    sizes = "size.d_model=16", "size.n_heads=2", "size.d_ff=32"
    return OmegaConf.to_container(composed(f"model={name}", *sizes, *overrides).model)


@cache
def every_mixer() -> dict[str, Any]:
    """One model with a layer of each mixer that some model has, and experts after every other one."""
    mixers = {}
    for name in architectures():
        model = settings_of(name)
        for mixer in (mixer for entry in model["pattern"] for mixer in names_in(entry)):
            if model["mixers"][mixer] not in mixers.values():
                mixers[f"{mixer}_of_{name}"] = model["mixers"][mixer]
    model, last = settings_of("transformer_moe"), list(mixers)[-1]
    pattern = [*list(mixers)[:-1], f"{last}+mamba_of_hybrid"]
    experts = [None, model["feedforward"]]
    return model | {"mixers": mixers, "pattern": pattern, "n_layers": len(pattern), "feedforward": experts}


def built(model: dict[str, Any], seed: int = 0) -> SequenceModel:
    """A model in float64, without dropout, whose masks are each process's own."""
    torch.manual_seed(seed)
    built = build_model(OmegaConf.create({"model": model}), TokenWidths(VOCABULARY, VOCABULARY, LENGTH, True), CPU)
    for part in built.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return built.double()


def update_of(model: dict[str, Any], settings: dict[str, Any], world: World, seed: int = 0) -> Update:
    """With another seed, which a run that goes on from a checkpoint may begin with, weights are others."""
    data, settings = Words(), dict(settings)
    data.carries, skips = settings.pop("carries", False), settings.pop("skips", False)
    config = config_of(batch_size=ROWS, clip_norm=0.1, **settings)
    config.check(data, world)
    with pytest.MonkeyPatch.context() as patch:  # as graphs alone: to compile C++ takes a minute
        patch.setattr(torch, "compile", lambda net, original=torch.compile: original(net, backend="eager"))
        update = Update(config, built(model, seed), data, device=CPU, world=world)
    if skips:  # which in float64, or with few words, no model does
        assert reads_hidden(update.model)
        update.objective.skips_logits = lambda *_: True
    return update


def stepped(update: Update, number: int) -> float:
    """Update with a batch, of which this process takes its share; the loss."""
    return update(update.share(update.data.train_batch(number, ROWS, 1)), 1.0).loss


def saved_of(update: Update) -> dict[str, Any]:
    """What a checkpoint has, of which later updates change nothing."""
    return copy.deepcopy({"weights": checkpoint.weights_of(update.evaluated), "state": whole(update.state_dict())})


def trained(model: dict[str, Any], settings: dict[str, Any], world: World = ALONE) -> dict[str, Any]:
    """The gradient of a batch, updates with clipping, an evaluation in pieces before and after: all that is shared.

    A model of many layers is there for their gradients: one update, and no evaluation.
    """
    deep = model["n_layers"] > 2
    update = update_of(model, settings, world)
    found = {"values": update._gradient(*update.share(update.data.train_batch(0, ROWS, 1)))}
    found["gradients"] = {str(number): whole(p.grad) for number, p in enumerate(update.parameters)}
    update.release()
    update.scaler.update()  # as a step does
    before = () if deep else evaluated(update, world)
    found["losses"] = [stepped(update, number) for number in ((1,) if deep else (1, 2))]
    found["evaluation"] = () if deep else (*before, *evaluated(update, world))
    found |= saved_of(update)
    found["load"] = expert_load(update.model)
    found["scale"] = scale_after_overflow(update, world.rank == world.size - 1) if update.scaler.is_enabled() else None
    return found


def evaluated(update: Update, world: World) -> Evaluation:
    given = {"batch_size": 5, "device": CPU, "autocast": nullcontext, "world": world}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "LONG", LENGTH - 1)
        patch.setattr(evaluate, "PIECE_ON_CPU", 15)  # positions of three rows
        return evaluate.evaluate(update.evaluated, update.data, "test", **given)


def scale_after_overflow(update: Update, here: bool) -> float:
    """The loss scale after a step in whose gradient one number is not finite, which one process has."""
    for p in update.parameters:
        p.grad = torch.zeros_like(p)
        if here:
            own(p.grad).flatten()[-1:] = torch.inf
    update.scaler.unscale_(update.optimizers[0])
    update._step(1.0, torch.inf)
    return update.scaler.get_scale()


def resumed(
    model: dict[str, Any], settings: dict[str, Any], saved: dict[str, Any], world: World = ALONE
) -> dict[str, Any]:
    """One more update, by another number of processes than those that ``trained`` with the same settings.

    Besides, what a checkpoint would have before that, and before any step.
    """
    update, saved = update_of(model, settings, world, seed=1), copy.deepcopy(saved)
    found = {"fresh": saved_of(update), "fresh again": saved_of(update)}
    checkpoint.put_weights(saved["weights"], update.evaluated)
    update.load_state_dict(saved["state"])
    return found | {"read": saved_of(update), "loss": stepped(update, 3), "weights": saved_of(update)["weights"]}


def by_soap(model: dict[str, Any], world: World = ALONE) -> dict[str, Any]:
    """Weights and state after steps of SOAP by given gradients, in whose midst its state is read by another one."""
    net, draw, saved = built(model), torch.Generator().manual_seed(1), []
    world.shard(net, "fsdp")
    for _ in range(2):
        ours = soap(net, precondition_frequency=2)
        for optimizer, state in zip(ours, saved, strict=False):
            optimizer.load_state_dict(parts_of_state(state, optimizer))
        for _ in range(3):
            for p in net.parameters():
                p.grad = part_of(torch.randn(p.shape, dtype=p.dtype, generator=draw), p)
            for optimizer in ours:
                optimizer.step()
        saved = copy.deepcopy(whole([optimizer.state_dict() for optimizer in ours]))
    return {"weights": checkpoint.weights_of(net), "state": saved}


def saving_of(update: Update, folder: Path, world: World) -> Saving:
    return Saving(folder, update, update.evaluated, CPU, world)


def ended(update: Update, first: int) -> dict[str, Any]:
    """Losses of updates from ``first`` on, and all that is left."""
    return {"losses": [stepped(update, number) for number in range(first, 4)]} | saved_of(update)


def kept(model: dict[str, Any], settings: dict[str, Any], folder: Path, world: World) -> dict[str, Any]:
    """Updates in whose midst a checkpoint is begun; then one that fails in the last process, whose disk is full."""
    update = update_of(model, settings, world)
    saving = saving_of(update, folder, world)
    stepped(update, 1)
    saving.save(Counters(step=1, best_step=1), {})
    found = ended(update, 2)
    saving.wait()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # past the limit a write then fails, as on a full disk
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    if world.rank == world.size - 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, unlimited[1]))
    try:
        saving.save(Counters(step=3, best_step=1), {})
        saving.wait()
    except Exception as error:
        found["refusal"] = message_of(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    return found


def gone_on(model: dict[str, Any], settings: dict[str, Any], folder: Path, world: World = ALONE) -> dict[str, Any]:
    """The same updates from the checkpoint of step 1."""
    update = update_of(model, settings, world, seed=1)
    saving_of(update, folder, world).restore()
    return ended(update, 2)


def killed(model: dict[str, Any], settings: dict[str, Any], folder: Path) -> None:
    """A checkpoint, and another one, of which the last process has begun to write its file when it is killed."""
    torch.set_num_threads(1)
    with joined(*processes()) as world:
        update = update_of(model, settings, world)
        saving = saving_of(update, folder / "checkpoints", world)
        stepped(update, 1)
        saving.save(Counters(step=1, best_step=1), {})
        saving.wait()
        if world.rank == world.size - 1:
            writer = torch.distributed.checkpoint.HuggingFaceStorageWriter
            writer.write_data = lambda *given: os.kill(os.getpid(), signal.SIGKILL)
        saving.save(Counters(step=2, best_step=2), {})
        saving.wait()


def in_each_way(model: dict[str, Any], settings: dict[str, Any], folder: Path, world: World) -> dict[str, Any]:
    """``gone_on`` with weights shared out and whole."""
    return {way: gone_on(model, settings | {"parallel": way}, folder, world) for way in ("fsdp", "ddp")}


def go_on(model: dict[str, Any], settings: dict[str, Any], checkpoints: Path, folder: Path) -> None:
    """``in_each_way``; ``folder`` gets results."""
    torch.set_num_threads(1)
    with joined(*processes()) as world:
        torch.save(in_each_way(model, settings, checkpoints, world), folder / f"{world.rank}.pt")


def train_all(kept_one: tuple[dict[str, Any], dict[str, Any]], folder: Path) -> None:
    """``trained`` for every case, a model and settings, and ``resumed`` from what is given; ``folder`` gets results.

    And ``kept`` for a model and settings, and the updates once more from its checkpoint. The folder has the cases in
    ``cases.pt``, since a process that starts is handed no more than 250 tensors.
    """
    torch.set_num_threads(1)
    cases = torch.load(folder / "cases.pt", weights_only=False)
    with joined(*processes()) as world:
        found = {}
        for name, (model, settings, saved) in cases.items():
            found[name] = trained(model, settings, world)
            found[name]["resumed"] = resumed(model, settings, saved, world) if saved else None
        if "soap" in optimizers():
            found["soap"] = by_soap(kept_one[0], world)
        found["kept"] = kept(*kept_one, folder / "checkpoints", world)
        found["gone on"] = in_each_way(*kept_one, folder / "checkpoints", world)
        torch.save(found, folder / f"{world.rank}.pt")
