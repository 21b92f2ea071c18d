"""kill -9 at random moments of a sweep, the same command again and again, and in the end the results of one that was
never touched."""

import os
import random
import signal
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch

import forks
from seqlab.training import checkpoint
from support import SMALL, Job, final_weights, timeless

KILLS = 12
SWEEP = (
    *("model=transformer,lstm", "model.dropout=0.1"),
    *("trainer.steps=24", "trainer.evaluate_every=6", "trainer.checkpoint_every=3", "trainer.log_every=1"),
)
ON_DISK = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}
"""Audit events of files; a kill at one of these falls between two that must hold together, or into the writing."""


def attempt(folder: Path, fatal_event: int | None) -> None:
    """The sweep in a process of its own, which kills itself at its ``fatal_event``-th file event in the folder."""
    events = 0

    def count(event: str, arguments: tuple) -> None:
        nonlocal events
        if event in ON_DISK and str(folder) in str(arguments[0]):
            events += 1
            if events == fatal_event:
                os.kill(os.getpid(), signal.SIGKILL)

    if fatal_event is not None:
        sys.addaudithook(count)
    forks.train("-m", *SMALL, *SWEEP, f"hydra.sweep.dir={folder}", "hydra.sweep.subdir='${name}'")


def start(folder: Path, fatal_event: int | None = None) -> ForkServerProcess:
    return forks.start(folder.with_suffix(".log"), attempt, folder, fatal_event)


def jobs(folder: Path) -> dict[str, Job]:
    return {path.parent.name: Job(path.parent, 0) for path in folder.glob("*/summary.json")}


def assert_same_sweep(folder: Path, whole: Path) -> None:
    ours, theirs = jobs(folder), jobs(whole)
    assert ours.keys() == theirs.keys()
    for name, job in ours.items():
        assert job.summary["status"] == "completed"
        assert timeless(job.records) == timeless(theirs[name].records), name
        for key in ("test", "best_validation", "best_step", "test_loss_by_position", "steps"):
            assert job.summary[key] == theirs[name].summary[key], (name, key)
        weights, others = final_weights(job.folder), final_weights(theirs[name].folder)
        assert all(torch.equal(weights[key], others[key]) for key in weights), name
        assert not list((job.folder / "checkpoints").glob(".*")), "half-written"
        assert len(checkpoint.existing(job.folder / "checkpoints")) <= 4


@pytest.mark.slow
def test_killed_again_and_again(tmp_path):
    forks.server()  # which takes no part of the sweep's time
    began = time.monotonic()
    process = start(tmp_path / "whole")
    process.join()
    duration = time.monotonic() - began
    assert process.exitcode == 0, (tmp_path / "whole.log").read_text()

    chance = random.Random(20)
    killed, sweeps = 0, 0
    while killed < KILLS:
        sweeps += 1
        folder = tmp_path / f"killed_{sweeps}"
        ended = False
        while not ended:
            if killed == KILLS:
                process = start(folder)
            elif killed % 2:
                process = start(folder, fatal_event=chance.randrange(1, 200))
            else:
                process = start(folder)
                process.join(chance.uniform(0.1, 0.8) * duration)
                process.kill()
            process.join()
            ended = process.exitcode != -signal.SIGKILL
            killed += not ended
        assert process.exitcode == 0, folder.with_suffix(".log").read_text()
        assert_same_sweep(folder, tmp_path / "whole")
    logs = [path.read_text() for path in tmp_path.glob("killed_*/*/train.log")]
    assert any("Continuing from" in log for log in logs), "no kill fell between a checkpoint and the end of its job"
