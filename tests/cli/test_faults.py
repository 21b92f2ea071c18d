"""Processes that die, hang or are asked to stop while they train together, and are started again."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

import forks
from seqlab.invocation import processes
from seqlab.training import checkpoint
from seqlab.training.trainer import Trainer
from support import SMALL, Job, assert_same_run

RUN = (
    *(*SMALL, "model=linear", "trainer.batch_size=4", "trainer.steps=8"),
    *("trainer.log_every=1", "trainer.checkpoint_every=2", "trainer.evaluate_every=4"),
)


def train_with(faults: list[tuple[int, int, signal.Signals]], *arguments: str) -> None:
    """``train``; in start number i of torchrun a rank sends itself a signal behind a step, as ``faults[i]`` says."""
    faulty, last, number = faults[int(os.environ["TORCHELASTIC_RESTART_COUNT"])]
    whole = Trainer._train_step

    def mortal(self: Trainer, bar: object) -> None:
        whole(self, bar)
        if (processes()[0], self.counters.step) == (faulty, last):
            os.kill(os.getpid(), number)

    Trainer._train_step = mortal
    forks.train(*arguments)


def test_a_run_that_torchrun_starts_again_goes_on(train, tmp_path, monkeypatch):
    """After one process was killed and one hung, until one is asked to stop; its folder has the time in its name."""
    monkeypatch.chdir(tmp_path)
    launch = forks.Torchrun(tmp_path / "screens")
    faults = [(1, 3, signal.SIGKILL), (1, 5, signal.SIGSTOP), (1, 7, signal.SIGTERM)]
    starts = (launch.start(train_with, faults, *RUN, "trainer.timeout=0.5") for _ in faults)
    assert [forks.wait(processes, patience=1) for processes in starts] == [[2, -9], [2, -9], [143, 143]]
    (folder,) = (tmp_path / "outputs").iterdir()
    said, of_second = launch.screen(0), launch.screen(1)
    assert of_second == ""
    assert "torchrun=rank 1: did not come to the others within 0.5 seconds, and the run" in said
    assert [f"Continuing from {folder / 'checkpoints'}/step-0000000{n}" in said for n in (2, 4)] == [True, True]
    assert "Stopped at step 7; the checkpoint is written" in said
    whole = [record for record in train(*RUN, folder="whole", small=False).records if record["step"] < 8]
    for ours, theirs in zip(Job(folder, 0).records, whole, strict=True):
        for key in ("split", "step", "loss"):
            assert ours[key] == (pytest.approx(theirs[key], rel=2e-5) if key == "loss" else theirs[key])


KILLS = 30
DISTURBED = (
    *(*SMALL, "model=transformer", "model.dropout=0.1", "size.d_model=16", "size.n_heads=2", "size.d_ff=32"),
    *("trainer.batch_size=4", "trainer.steps=60", "trainer.log_every=1", "trainer.checkpoint_every=3"),
    "trainer.evaluate_every=6",
)
ON_DISK = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}
"""Audit events of files; a kill at one of these falls between two that must hold together, or into the writing."""


def mortal(folder: Path, fatal_event: int | None, *overrides: str) -> None:
    """``train``; the first rank kills itself at its ``fatal_event``-th file event in the folder."""
    events = 0

    def count(event: str, arguments: tuple) -> None:
        nonlocal events
        if event in ON_DISK and str(folder) in str(arguments[0]):
            events += 1
            if events == fatal_event:
                os.kill(os.getpid(), signal.SIGKILL)

    if fatal_event is not None and processes()[0] == 0:
        sys.addaudithook(count)
    forks.train(*DISTURBED, *overrides, f"hydra.run.dir={folder}")


@pytest.mark.long
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_no_run_is_lost_to_kills(tmp_path, parallel):
    """kill -9 of a random process at random moments, in file events too: in the end the run that nobody touched."""
    how = f"trainer.parallel={parallel}"
    whole, launch = tmp_path / "whole", forks.Torchrun(tmp_path / "screens")
    forks.server()  # which takes no part of the run's time
    began = time.monotonic()
    assert forks.wait(launch.start(mortal, whole, None, how)) == [0, 0], launch.screen(0) + launch.screen(1)
    duration = time.monotonic() - began

    chance = random.Random(19)
    killed, runs = 0, 0
    while killed < KILLS:
        runs += 1
        launch, folder = forks.Torchrun(tmp_path / f"screens_{runs}"), tmp_path / f"killed_{runs}"
        ended = []
        while ended != [0, 0]:
            at_event = killed < KILLS and killed % 2
            started = launch.start(mortal, folder, chance.randrange(1, 200) if at_event else None, how)
            if killed < KILLS and not at_event:
                time.sleep(chance.uniform(0.1, 0.9) * duration)
                chance.choice(started).kill()
            ended = forks.wait(started)
            assert ended == [0, 0] or -signal.SIGKILL in ended, launch.screen(0) + launch.screen(1)
            killed += ended != [0, 0]
        assert_same_run(Job(folder, 0), Job(whole, 0))
        assert Job(folder, 0).summary["status"] == "completed"
        assert not list((folder / "checkpoints").glob(".*")), "half-written"
        assert len(checkpoint.existing(folder / "checkpoints")) <= 4
    logs = [path.read_text() for path in tmp_path.glob("killed_*/train.log")]
    assert any("Continuing from" in log for log in logs), "no kill fell between a checkpoint and the end of its run"
