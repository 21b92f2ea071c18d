"""What processes compute together in the tests, and one alone."""

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fits import config_of
from omegaconf import OmegaConf
from torch import Tensor, nn

from seqlab.data import Batch, DataSet
from seqlab.invocation import processes
from seqlab.models import SequenceModel, expert_load
from seqlab.runs.build import build_model
from seqlab.runs.load import TokenWidths
from seqlab.training import checkpoint, evaluate, metrics
from seqlab.training.parallel import ALONE, World, joined
from seqlab.training.sharding import whole
from seqlab.training.update import Update

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


def built(model: dict[str, Any]) -> SequenceModel:
    """A model in float64, without dropout, whose masks are each process's own."""
    torch.manual_seed(0)
    built = build_model(OmegaConf.create({"model": model}), TokenWidths(VOCABULARY, VOCABULARY, LENGTH, True), CPU)
    for part in built.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return built.double()


def trained(model: dict[str, Any], settings: dict[str, Any], world: World = ALONE) -> dict[str, Any]:
    """The gradient of a batch, an evaluation in pieces, and two updates with clipping: all that processes share."""
    net, data = built(model), Words()
    config = config_of(batch_size=ROWS, clip_norm=0.1, **settings)
    config.check(data, world)
    update = Update(config, net, data, device=CPU, world=world)
    values = update._gradient(*world.share(data.train_batch(0, ROWS, 1)))
    found = {"values": values, "gradients": {name: whole(p.grad) for name, p in net.named_parameters()}}
    update.release()
    given = {"batch_size": 5, "device": CPU, "autocast": nullcontext, "world": world}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "LONG", LENGTH - 1)
        patch.setattr(evaluate, "PIECE_ON_CPU", 15)  # positions of three rows
        found["evaluation"] = evaluate.evaluate(net, data, "test", **given)
    found["losses"] = [update(world.share(data.train_batch(step, ROWS, 1)), 1.0).loss for step in (1, 2)]
    found["weights"] = checkpoint.weights_of(net)
    found["load"] = expert_load(net)
    return found


def train_all(cases: dict[str, tuple[dict[str, Any], dict[str, Any]]], folder: Path) -> None:
    """``trained`` for every case, a model and settings, by the processes of one world; results go to ``folder``."""
    torch.set_num_threads(1)
    with joined(*processes()) as world:
        torch.save({name: trained(*case, world) for name, case in cases.items()}, folder / f"{world.rank}.pt")
