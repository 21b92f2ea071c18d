"""Losses of the first 20 steps of five models in float32 on a CPU, against those that were written down.

A change that is meant to leave results alone leaves these; one that is meant to change them writes them anew:

    PYTHONPATH=src:tests python tests/test_golden_losses.py > tests/golden_losses.json

The tolerance is measured: these losses were compared with those under two threads instead of one, under the kernels of
torch, oneDNN and MKL for AVX2 and for SSE in place of AVX-512, and from weights perturbed by float32's rounding (1.2e-7
of each). LARGEST_SEEN is the largest relative difference; the tolerance is twenty times as much, for CPUs and libraries
that were not at hand. Models with experts are not among the five: where two experts are nearly as likely, rounding
decides between them, and hybrid_jamba's losses then differ by 1e-4, as much as by a change worth finding.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from seqlab.runs.build import build_model
from seqlab.training.signals import StopRequest
from seqlab.training.trainer import Trainer
from support import compose_config, depth

GOLDEN = Path(__file__).with_suffix("").parent / "golden_losses.json"
MODELS = ("mamba", "mamba2", "transformer", "lstm", "hybrid")
CPU, STEPS, LARGEST_SEEN = torch.device("cpu"), 20, 3.1e-7
TOLERANCE = 20 * LARGEST_SEEN
SETTINGS = (
    *("size=tiny", "optimizer=adamw", "optimizer.lr=3e-3", "schedule=cosine", "data=mqar", "data.vocab_size=64"),
    *("data.tests=[]", "data.n_train=256", "data.n_validation=8", "data.n_test=8", "trainer.log_every=1"),
    *(f"trainer.steps={STEPS}", "trainer.epochs=null", "trainer.batch_size=8"),
)


def losses(name: str, perturbation: float = 0.0, seed: int = 2) -> list[float]:
    """Of each step's batch before the step; at the start each weight is off by ``perturbation`` times a normal draw."""
    cfg = compose_config(f"model={name}", f"size.n_layers={depth(name)}", *SETTINGS)
    torch.manual_seed(1)
    data = instantiate(cfg.data, _convert_="all")
    model = build_model(cfg, data, CPU)
    with torch.no_grad():
        for p in model.parameters() if perturbation else ():
            p *= 1 + perturbation * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
    records = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = instantiate(cfg.trainer, _convert_="all")
        Trainer(trainer, model, data, device=CPU, seed=1, folder=Path(folder)).run(records.append, StopRequest())
    return [record["loss"] for record in records if record["split"] == "train"]


def differences(a: list[float], b: list[float]) -> Iterator[float]:
    return (abs(x - y) / abs(x) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_losses_are_those_written_down(name):
    assert losses(name) == pytest.approx(json.loads(GOLDEN.read_text())[name], rel=TOLERANCE)


@pytest.mark.parametrize("name", MODELS)
def test_a_small_change_is_found_out(name):
    golden = json.loads(GOLDEN.read_text())[name]
    assert len(golden) == STEPS and golden[-1] < 0.99 * golden[0]
    assert max(differences(golden, losses(name, 1e-3))) > TOLERANCE


if __name__ == "__main__":
    json.dump({name: losses(name, *map(float, sys.argv[1:2])) for name in MODELS}, sys.stdout, indent=1)
    print()
