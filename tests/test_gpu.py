"""On a CUDA device: every model trains in every precision, and agrees with the CPU."""

import pytest
import torch

from support import architectures, depth

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
@pytest.mark.parametrize("model", architectures())
def test_every_model_trains_in_every_precision(train, model, precision):
    job = train(
        "device=cuda",
        f"model={model}",
        f"size.n_layers={depth(model)}",
        f"trainer.precision={precision}",
        "trainer.steps=12",
    )
    assert job.status == 0
    assert job.summary["device"] == "cuda"
    # The loss scale comes down from 2^16 by halves until gradients fit: five times for Mamba-3, whose angles act on all
    # that follows. Below 2^8 small gradients would be lost.
    assert job.summary["skipped_steps"] <= (8 if precision == "fp16" else 0)
    assert job.summary["peak_memory_bytes"] > 0


@pytest.mark.parametrize("model", ["mamba", "transformer", "lstm"])
def test_the_losses_are_those_of_the_cpu(train, model):
    on_cpu, on_gpu = (train(f"device={device}", f"model={model}", folder=device) for device in ("cpu", "cuda"))
    for a, b in zip(on_cpu.records, on_gpu.records, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's, at a graph break
@pytest.mark.parametrize("model", ["mamba", "transformer"])
def test_compiled_training(train, model):
    """Also that no part of the compiler stumbles over how the precision of float32 was set."""
    plain, compiled = (
        train("device=cuda", f"model={model}", f"trainer.compile={value}", folder=value) for value in ("false", "true")
    )
    assert compiled.status == 0
    for a, b in zip(plain.records, compiled.records, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)


def test_a_run_continues(train):
    job = train("device=cuda", "trainer.steps=4", "schedule=constant")
    assert train(f"resume={job.folder}", "device=cuda", "trainer.steps=6").status == 0
    assert job.summary["steps"] == 6
