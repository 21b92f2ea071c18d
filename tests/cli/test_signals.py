"""Signals: a checkpoint is written first, and the message says how to go on."""

import json
import os
import re
import shlex
import signal
import sys
import time

import pytest

import forks
from seqlab.training import checkpoint, signals
from seqlab.training.signals import StopRequest


def stopped(arguments, metrics, number, screen):
    """Exit status and messages of a run that gets a signal once it has recorded its first steps."""
    process = forks.start(screen, forks.train, *arguments)
    try:
        deadline = time.monotonic() + 120
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(process.pid, number)
        process.join(60)
    finally:
        process.kill()
    return process.exitcode, screen.read_text()


ENDLESS = ("trainer.steps=100000", "trainer.log_every=1")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_signals(train, tmp_path, number, status):
    """A checkpoint first, then how to go on, then the status that shells expect."""
    folder = tmp_path / "run"
    arguments = [*train.small, *ENDLESS, f"hydra.run.dir={folder}"]
    code, error = stopped(arguments, folder / "metrics.jsonl", number, tmp_path / "screen")
    assert code == status, error
    step = int(re.search(r"Stopped at step (\d+)", error).group(1))
    assert f"python train.py 'resume=\"{folder}\"'" in error
    assert checkpoint.latest(folder / "checkpoints") == checkpoint.path_of(folder / "checkpoints", step)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("interrupted", step)


def test_signals_of_one_moment_are_one(monkeypatch):
    """As ``timeout`` sends them; a later one has its usual effect."""
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert stop.signal == signal.SIGTERM
        monkeypatch.setattr(signals, "MOMENT", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_signal_ends_the_whole_sweep(train, tmp_path):
    arguments = ["-m", *train.small, *ENDLESS, "seed=1,2", f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=${seed}"]
    code, error = stopped(arguments, tmp_path / "1" / "metrics.jsonl", signal.SIGINT, tmp_path / "screen")
    assert code == 130, error
    assert "Stopped at step" in error
    assert not (tmp_path / "2").exists()


def test_a_signal_while_an_object_is_freed_stops_the_sweep(sweep, monkeypatch):
    class Freed:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    dropped = []
    monkeypatch.setattr(sys, "unraisablehook", lambda error: dropped.append(error.exc_type))
    monkeypatch.setattr("seqlab.runs.process.free_memory", lambda: Freed() and None)
    status, out, _ = sweep("model=linear", "trainer.steps=1", "seed=2,3")
    assert (status, dropped) == (130, [SystemExit])
    assert "1 completed, 1 not begun" in out


def test_a_stopped_sweep_goes_on_with_the_command_that_was_printed(train, tmp_path):
    arguments = [
        "-m",
        *train.small,
        *ENDLESS,
        "seed=1,2",
        f"hydra.sweep.dir={tmp_path}",
        "hydra.sweep.subdir='s=${seed}'",
    ]
    folder = tmp_path / "s=1"
    code, error = stopped(arguments, folder / "metrics.jsonl", signal.SIGTERM, tmp_path / "screen")
    assert code == 143, error
    before = json.loads((folder / "summary.json").read_text())
    printed = shlex.split(re.search(r"python \S*train.py (.*)", error).group(1))
    (folder / "metrics.jsonl").rename(tmp_path / "seen")
    assert stopped(printed, folder / "metrics.jsonl", signal.SIGTERM, tmp_path / "screen")[0] == 143
    after = json.loads((folder / "summary.json").read_text())
    assert before["status"] == after["status"] == "interrupted"
    assert after["steps"] > before["steps"]
    assert "Continuing from" in (folder / "train.log").read_text()
