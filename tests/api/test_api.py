"""``seqlab`` from Python: the command line's runs, and nothing else changed in the process."""

import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
import numpy as np
import pandas as pd
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

import seqlab
from seqlab.api import train as module
from seqlab.commands import generate
from seqlab.errors import Interrupted
from support import CONF, SMALL, Job, assert_same_run

OWN_MODEL = """
defaults: [mamba]
pattern: [doubling]
mixers:
  doubling: {_target_: own_mixer.Doubling, _partial_: true}
"""
OWN_CODE = """
from torch import nn

class Doubling(nn.Module):
    def __init__(self, d_model: int):
        super().__init__()
        self.linear = nn.Linear(d_model, d_model)

    def forward(self, x):
        return 2 * self.linear(x)

    def initial_state(self, batch_size):
        return None

    def step(self, x, state):
        return self(x), state
"""


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def state_of_the_process() -> list:
    return [
        *(random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),
        *(torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_anomaly_enabled()),
        *(torch.get_float32_matmul_precision(), torch.backends.cudnn.conv.fp32_precision),
        *(GlobalHydra.instance().hydra, list(sys.argv), dict(os.environ), Path.cwd()),
        *(signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)),
        *(logging.getLogger("seqlab").level, logging.getLogger("seqlab").handlers[:], logging.root.handlers[:]),
    ]


@contextmanager
def odd_process() -> Iterator[None]:
    """A process whose user has set what a run sets too, and uses Hydra."""
    threads, level = torch.get_num_threads(), logging.root.level
    precision = [(part, part.fp32_precision) for part in (torch.backends, torch.backends.cudnn.conv)]
    random.seed(3), np.random.seed(4), torch.manual_seed(5)
    logging.root.setLevel(logging.WARNING)
    torch.set_num_threads(3)
    torch.set_default_dtype(torch.float64)
    torch.set_float32_matmul_precision("high")
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"), torch.no_grad():
            yield
    finally:
        logging.root.setLevel(level)
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
        for part, value in precision:
            part.fp32_precision = value


def test_the_import_is_light_and_has_eight_names_at_most():
    heavy = ["torch", "hydra", "pandas", "pydantic", "importlib.metadata"]
    program = f"import seqlab, sys; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"
    assert len(seqlab.__all__) <= 8
    assert all(getattr(seqlab, name) for name in seqlab.__all__)
    assert set(seqlab.__all__) <= set(dir(seqlab))
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = seqlab.trian


def test_a_run_is_that_of_the_command_line_and_the_process_is_as_before(train, monkeypatch):
    there = train("model=lstm", "seed=2")
    heard, handler = [], logging.Handler()
    handler.emit = heard.append
    monkeypatch.setattr(logging.root, "handlers", [handler])
    with odd_process():
        before = state_of_the_process()
        run = seqlab.train(model="lstm", overrides=[*SMALL, "hydra.run.dir=from_python"], seed=2)
        assert state_of_the_process() == before
    here = Job(run.folder, 0)
    assert_same_run(here, there)
    assert {path.name for path in here.folder.iterdir()} == {path.name for path in there.folder.iterdir()}
    assert here.summary["command"].startswith("seqlab train model=lstm seed=2 trainer=smoke")
    assert "Step 2 of 2: validation loss" in (run.folder / "train.log").read_text()
    assert heard == []  # the process's own log gets warnings alone, as it asks


def test_what_a_run_has(train):
    run = seqlab.load(train("model=linear").folder)
    assert run.summary == json.loads((run.folder / "summary.json").read_text())
    metrics = run.metrics
    assert isinstance(metrics, pd.DataFrame)
    assert metrics["split"].tolist() == ["train", "train", "validation", "test"]
    assert metrics["loss"].iloc[-1] == run.summary["test"]["loss"]
    batch = next(run.data.evaluation_batches("test", 8))
    loss = run.data.loss(run.model(batch.inputs), batch.targets).mean().item()
    assert loss == pytest.approx(run.summary["test"]["loss"], rel=1e-6)
    assert repr(run) == f"Run('run'): linear on synthetic, completed, test loss {loss:.4f}"
    assert f"{loss:.4f} test" in run._repr_mimebundle_()["text/html"]
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "sp')  # as a run writes it at this moment
    assert len(run.metrics) == 4
    with pytest.raises(seqlab.UserError, match="was trained on regression"):
        run.generate("a")


def test_resume_goes_on_and_a_stop_writes_a_checkpoint(monkeypatch):
    from seqlab.training.trainer import Trainer

    step = Trainer._train_step

    def stopped(self, bar):
        step(self, bar)
        os.kill(os.getpid(), signal.SIGINT)

    whole = seqlab.train("linear", overrides=[*SMALL, "hydra.run.dir=whole", "trainer.steps=3"])
    with (
        monkeypatch.context() as patch,
        pytest.raises(Interrupted, match=r"Stopped at step 1;.*\nseqlab train .*resume=") as ending,
    ):
        patch.setattr(Trainer, "_train_step", stopped)
        seqlab.train("linear", overrides=[*SMALL, "hydra.run.dir=cut", "trainer.steps=3"])
    assert ending.value.__context__ is None  # no frame keeps what the run held
    assert ending.value._render_traceback_() == [str(ending.value)]
    resumed = seqlab.train(resume=Path("cut").absolute())
    assert_same_run(Job(resumed.folder, 0), Job(whole.folder, 0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "mambo"}, r"model=mambo: is no option of model\.\nDid you mean 'mamba'\?"),
        ({"overrides": {"trainer.stepz": 3}}, r"trainer.stepz=3: is no setting\.\nDid you mean 'trainer.steps'\?"),
        ({"overrides": ["model=mamba,lstm"]}, r"model=mamba,lstm: is several values, and a run takes one"),
        ({"search": "rates"}, r"overrides=search=rates: asks for a sweep, and train makes one run"),
        ({"overrides": ["-m"]}, r"overrides=-m: is a flag of the command line"),
        ({"config_dir": "mine"}, r"config_dir=mine: there is no such folder"),
        ({"resume": "nowhere"}, r"resume=nowhere: is no run folder: there is no such folder"),
        ({"overrides": {"optimizer.lr": -1}}, r"optimizer.lr=-1: input should be greater than 0"),
        ({"data": "tiny_shakespeare", "overrides": {"data.dir": "a=b, c"}}, r"data.dir=a=b, c: "),
    ],
)
def test_a_mistake_is_two_lines_and_leaves_nothing(arguments, message, tmp_path):
    with pytest.raises(seqlab.UserError, match=f"^{message}") as refusal:
        seqlab.train(**arguments)
    assert len(str(refusal.value).splitlines()) == 2
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_folders_that_hold_no_run(tmp_path):
    with pytest.raises(seqlab.UserError, match="run=nowhere: is no run folder"):
        seqlab.load("nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(seqlab.UserError, match="no completed run is there"):
        seqlab.compare("empty")


def test_one_run_at_a_time_in_any_thread():
    runs = []
    thread = threading.Thread(target=lambda: runs.append(seqlab.train("linear", overrides=SMALL)))
    with module._training, pytest.raises(seqlab.UserError, match="another run trains in this process"):
        seqlab.train("linear", overrides=SMALL)
    thread.start()
    thread.join()
    assert runs[0].summary["status"] == "completed"


def test_a_model_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "own.yaml").write_text(OWN_MODEL)
    (tmp_path / "own_mixer.py").write_text(OWN_CODE)
    monkeypatch.syspath_prepend(tmp_path)
    run = seqlab.train("own", overrides=SMALL, config_dir="mine")
    kinds = {type(part).__name__ for part in run.model.modules()}  # what was composed here needs no trust
    assert "Doubling" in kinds
    with pytest.raises(seqlab.UserError, match="trust=own_mixer"):
        _ = seqlab.load(run.folder).model
    assert seqlab.load(run.folder, trust="own_mixer").model is not None


def test_text_is_that_of_the_command(trained, capsys):
    run = seqlab.load(trained("tiny_shakespeare", "linear").folder)
    settings = {"temperature": 0.7, "top_k": 5, "max_new_tokens": 12, "seed": 3}
    before = torch.get_rng_state()
    text = run.generate("the cat", **settings)
    assert torch.equal(torch.get_rng_state(), before)
    capsys.readouterr()
    assert generate.main([f"run={run.folder}", "prompt=the cat", *(f"{k}={v}" for k, v in settings.items())]) == 0
    assert capsys.readouterr().out == text + "\n"
    with pytest.raises(seqlab.UserError, match="max_new_tokens=0: input should be greater than 0"):
        run.generate("the cat", max_new_tokens=0)


def test_a_comparison_is_that_of_the_command(train, tmp_path):
    runs = [seqlab.load(train(f"model={name}", folder=name).folder) for name in ("linear", "mlp")]
    comparison = seqlab.compare(*runs)
    losses = {run.summary["model"]: run.summary["test"]["loss"] for run in runs}
    assert dict(zip(comparison.table["label"], comparison.table["test_loss_mean"], strict=True)) == losses
    assert seqlab.compare(tmp_path, at="tokens").differences["difference_mean"].abs().iloc[0] == pytest.approx(
        abs(losses["mlp"] - losses["linear"])
    )
    assert comparison.warnings == []
    assert comparison.skipped.empty
    pictures = comparison.pictures  # the page of a notebook has those of losses: see test_notebook.py
    assert {"synthetic_loss", "synthetic_cost"} <= pictures.keys()
    assert pictures["synthetic_loss"]._repr_png_().startswith(b"\x89PNG")
