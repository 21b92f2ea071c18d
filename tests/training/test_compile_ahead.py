"""Compiling ahead leaves the run as it is, and nothing to compile for its steps."""

import contextlib
import os
import subprocess
import sys
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
import torch
from fits import build, run

from seqlab.ops import compiling
from seqlab.training import compile_ahead as module
from seqlab.training.compile_ahead import compile_ahead, rehearse
from support import built_model

MODELS = ("mamba", "transformer_moe", "lstm")


def small(name, *more):
    return built_model(f"model={name}", "size.d_model=16", "size.n_layers=2", "model.dropout=0.2", *more)


def records_of(tmp_path, model, *, rehearsed, **settings):
    trainer = build(tmp_path, model=model, **settings)
    records = []
    if rehearsed:
        rehearse(trainer.update, trainer.data.train_batch(0, 4, 1), trainer.config)
    run(trainer, records.append)
    timeless = [{k: v for k, v in record.items() if k != "seconds"} for record in records]
    return timeless, {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_a_run_is_the_same_after_a_rehearsal(tmp_path, name, accumulate):
    """Its numbers, weights and buffers to the last bit, with random numbers in dropout."""
    results = []
    for rehearsed in (False, True):
        model = small(name)
        torch.manual_seed(3)
        results.append(records_of(tmp_path / str(rehearsed), model, rehearsed=rehearsed, accumulate=accumulate))
    (records, weights), (again, after) = results
    assert records == again
    assert weights.keys() == after.keys()
    assert all(torch.equal(weights[key], after[key]) for key in weights)


@pytest.mark.parametrize("name", MODELS)
def test_a_rehearsal_leaves_no_gradient_mode_or_state(tmp_path, name):
    model = small(name)
    trainer = build(tmp_path, model=model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    cpu = torch.get_rng_state()
    rehearse(trainer.update, trainer.data.train_batch(0, 4, 1), trainer.config)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert torch.equal(cpu, torch.get_rng_state())
    assert all(not optimizer.state for optimizer in trainer.update.optimizers)


@pytest.mark.parametrize(("found", "capability"), [(None, (9, 0)), ("here", (7, 5)), ("here", (8, 0))])
def test_only_where_the_kernels_run(monkeypatch, found, capability):
    """A GPU without Triton, or an old one, trains by other backends."""
    monkeypatch.setattr("seqlab.ops.triton_support.find_spec", lambda name: found)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert module.can_compile(torch.device("cuda")) == (found is not None and capability >= (8, 0))
    assert not module.can_compile(torch.device("cpu"))


class Kernel:
    """What a launch uses of one of Triton's."""

    def __init__(self):
        self.calls = []

    def warmup(self, *arguments, grid, **named):
        self.calls.append(("warmup", grid, arguments, named))

    def __getitem__(self, grid):
        return lambda *arguments, **named: self.calls.append(("launch", grid, arguments, named)) or "compiled"


def test_a_launch_is_held_back_in_that_context_and_thread_alone(monkeypatch):
    monkeypatch.setattr(compiling, "_Threads", lambda: contextlib.nullcontext(SimpleNamespace(kernels=["k"])))
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(AsyncCompileMode=contextlib.nullcontext))
    kernel = Kernel()
    assert compiling.launch(kernel, (2,), 1, W=3) == "compiled"
    with compiling.only_compiled() as kernels:
        assert kernels == ["k"]
        assert compiling.launch(kernel, (2,), 1, W=3) is None
    assert compiling.launch(kernel, (2,), 1, W=3) == "compiled"
    assert [call[0] for call in kernel.calls] == ["launch", "warmup", "launch"]
    assert {call[1:3] for call in kernel.calls} == {((2,), (1,))}


def test_a_kernel_that_cannot_be_compiled_is_left_to_its_launch():
    def compile():
        raise RuntimeError("no room")

    assert compiling._compiled(compile) is None


def test_a_compiled_kernel_has_a_launcher_in_the_cache_and_none_of_its_own(monkeypatch):
    """One that a thread loaded could be another kernel's."""
    made, kernel = [], SimpleNamespace(src="src", metadata="metadata")
    runtime = SimpleNamespace(driver=SimpleNamespace(active=SimpleNamespace(launcher_cls=lambda *of: made.append(of))))
    monkeypatch.setitem(sys.modules, "triton.runtime", runtime)
    assert compiling._compiled(lambda: kernel) is kernel
    assert made == [("src", "metadata")]
    assert vars(kernel) == {"src": "src", "metadata": "metadata"}


def test_the_user_is_told_of_a_long_wait(monkeypatch):
    said, waiting = [], Future()

    @contextlib.contextmanager
    def compiled():
        yield [waiting]

    monkeypatch.setattr(module, "PATIENCE", 0.01)
    monkeypatch.setattr(module, "only_compiled", compiled)
    monkeypatch.setattr(module, "rehearse", lambda *arguments: None)
    bar = SimpleNamespace(say=lambda note: said.append(note) or waiting.set_result(None))
    compile_ahead(None, None, None, bar)
    assert said == ["compiling 1 kernels"]
    compile_ahead(None, None, None, bar)
    assert len(said) == 1


COUNT = """
import sys
sys.path.insert(0, "tests"), sys.path.insert(0, "tests/training")
import tempfile, torch, triton
from pathlib import Path
from fits import config_of
from support import Echo, built_model
from seqlab.training import compile_ahead, trainer as module
from seqlab.training.signals import StopRequest

made, late = [], []
triton.knobs.compilation.listener = lambda **facts: made.append((facts["src"].name, facts["cache_hit"]))
if {ahead}:
    ahead = module.compile_ahead
    module.compile_ahead = lambda *arguments: ahead(*arguments) or late.append(len(made))
else:
    module.compile_ahead = lambda *arguments: late.append(0)
torch.use_deterministic_algorithms(True, warn_only=True)  # sums of gradients in one order
model = built_model("model={model}", "size.d_model=64", "size.n_layers=2", "model.dropout=0.1").cuda()
torch.manual_seed(5)
trainer = module.Trainer(config_of(steps=8, evaluate_every=4, log_every=1, batch_size=8, precision="bf16"), model,
    Echo(), device=torch.device("cuda"), seed=1, folder=Path(tempfile.mkdtemp()))
records = []
trainer.run(records.append, StopRequest())
print([kernel for kernel in made[late[0]:] if not kernel[1]])
print(sorted(set(made[:late[0]]))[:1] != [])
print([(r["step"], r["split"], r["loss"], r.get("grad_norm")) for r in records])
print(sum(p.double().sum().item() for p in model.parameters()))
"""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["mamba", "mamba2", "transformer_moe"])
def test_no_step_compiles_what_was_compiled_ahead(tmp_path, name):
    """And on a GPU too, the run is the one without. Each in a new process, with an empty cache of Triton's."""
    outputs = []
    for ahead in (True, False):
        environment = os.environ | {
            "TRITON_CACHE_DIR": str(tmp_path / str(ahead)),
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        }
        command = [sys.executable, "-c", COUNT.format(ahead=ahead, model=name)]
        ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert ended.returncode == 0, ended.stderr
        outputs.append(ended.stdout.splitlines()[-4:])
    (left, any_ahead, *result), (_, _, *expected) = outputs
    assert left == "[]"
    assert any_ahead == "True"
    assert result == expected
