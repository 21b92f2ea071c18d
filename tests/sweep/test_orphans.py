"""What a sweep or a comparison started ends with it, also where it was killed and could end nothing itself."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
from test_sweep_kills import assert_same_sweep

import forks
from seqlab.sweep.entries import read
from seqlab.training import checkpoint
from support import SMALL, Job, run_sweep

pytest.importorskip("joblib")
pytest.importorskip("submitit")

JOB = """
import os, signal, sys, time
from pathlib import Path

folder, launcher, how = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
os.environ["SEQLAB_SWEEP"] = str(os.getpid())

def job(folder, launcher, how):
    from seqlab.sweep import orphans
    orphans.GRACE = 1
    with orphans.ends_with_sweep(launcher):
        if how == "stuck":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (folder / f"{how}_{os.getpid()}").touch()
        time.sleep(0.5 if how == "idle" else 600)

if launcher == "joblib":
    from joblib import Parallel, delayed
    from seqlab.sweep.orphans import JOBLIB
    Parallel(2, backend="loky", batch_size=1)(delayed(job)(folder, JOBLIB, how) for _ in range(2))
else:
    import submitit
    from seqlab.sweep.orphans import LOCAL_PROCESSES
    executor = submitit.LocalExecutor(folder / "submitit")
    executor.update_parameters(timeout_min=10, setup=["true"] if how == "stuck" else [])
    kept = [executor.submit(job, folder, LOCAL_PROCESSES, how) for _ in range(2)]
time.sleep(600)
"""
"""Two jobs as the launchers start them, without all that a job imports."""


def processes() -> dict[int, int]:
    """The parent of every process that has not ended."""
    lines = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = (line.split() for line in lines.splitlines())
    return {int(pid): int(parent) for pid, parent, state in rows if not state.startswith("Z")}


def descendants(pid: int) -> set[int]:
    found, parents = {pid}, processes()
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def until(reached, seconds: float):
    """What ``reached`` returns once that is true, or whatever it returns in the end."""
    end = time.monotonic() + seconds
    while not (value := reached()) and time.monotonic() < end:
        time.sleep(0.1)
    return value


def assert_killed_with_all(process: subprocess.Popen | ForkServerProcess, seconds: float) -> None:
    """Kill -9; whatever it started ends within some seconds."""
    family = descendants(process.pid)
    process.kill()
    try:
        assert until(lambda: not family & processes().keys(), seconds), f"still there: {family & processes().keys()}"
    finally:
        for pid in family & processes().keys():
            os.kill(pid, 9)


@pytest.mark.parametrize(
    ("launcher", "how"),
    [("joblib", "training"), ("joblib", "stuck"), ("joblib", "idle"), ("local", "training"), ("local", "stuck")],
)
def test_a_killed_sweep_leaves_no_process(tmp_path, environment, launcher, how):
    arguments = [sys.executable, "-c", JOB, str(tmp_path), launcher, how]
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            assert until(lambda: len(list(tmp_path.glob(f"{how}_*"))) == 2, 120)
            time.sleep(1 if how == "idle" else 0)
            assert_killed_with_all(process, 20)
        finally:
            process.kill()


STOPPED = """
import os, signal, sys, time
from pathlib import Path

folder = Path(sys.argv[1])
os.environ["SEQLAB_SWEEP"] = str(os.getpid())

def job(folder, i):
    from seqlab.sweep import stopping
    from seqlab.sweep.entries import Entry
    from seqlab.sweep.orphans import JOBLIB
    entry = Entry(i, str(i), [], process=os.getpid())
    with stopping.noted(JOBLIB, folder, entry):
        entry.write(folder)
        if i == 3:
            (folder / "training_3").touch()
            time.sleep(600)  # what no run handles, as imports
        heard = []
        stopping.handle(lambda number, frame: heard.append(number))  # as a run does
        (folder / f"training_{i}").touch()
        while not heard:
            time.sleep(0.05)
        time.sleep(i)  # the end of a step
        (folder / f"checkpoint_{i}").touch()
        sys.exit(143)

from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher
from joblib import Parallel, delayed
from seqlab.sweep import stopping, watch
workers = 5 if sys.argv[2] == "idle" else 4
launcher = JoblibLauncher(n_jobs=workers, backend="loky", batch_size=1)
stopping.shield(launcher)
begin = launcher.joblib["initializer"]

def begun():
    begin()
    (folder / f"begun_{os.getpid()}").touch()

launcher.joblib["initializer"] = begun
watch.Watch(folder, [], []).start()
Parallel(**launcher.joblib)(delayed(job)(folder, i) for i in range(4 if sys.argv[2] == "idle" else 6))
"""


@pytest.mark.parametrize(("who", "number"), [("sweep", 15), ("idle", 2), ("job", 15)])
def test_a_stopped_sweep_waits_for_the_checkpoints(tmp_path, environment, who, number):
    """Also where the workers have heard the signal themselves, as from a terminal, and one of them has no job; where
    one job alone is stopped; where the signal comes twice at once. No job is begun any more."""
    arguments = [sys.executable, "-c", STOPPED, str(tmp_path), who]
    process = subprocess.Popen(arguments, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        begun = {"training": 4, "begun": 5 if who == "idle" else 4}
        assert until(lambda: all(len(list(tmp_path.glob(f"{what}_*"))) == n for what, n in begun.items()), 60)
        for _ in range(2):
            if who == "job":
                os.kill(read(tmp_path)[0].process, number)
            else:
                (os.kill if who == "sweep" else os.killpg)(process.pid, number)
            time.sleep(0.01)
        assert process.wait(30) == 128 + number
        assert {path.name for path in tmp_path.glob("checkpoint_*")} == {f"checkpoint_{i}" for i in range(3)}
        assert [(entry.number, entry.outcome) for entry in read(tmp_path)] == [(i, "interrupted") for i in range(4)]
        assert until(lambda: not descendants(process.pid), 10)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


SWEEP = (
    *("model=transformer", "seed=1,2", "model.dropout=0.1", "threads=1", "trainer.steps=300"),  # equally fast
    *("trainer.evaluate_every=100", "trainer.checkpoint_every=20", "trainer.log_every=1"),
)


def start(folder: Path) -> ForkServerProcess:
    sweep = ("-m", *SMALL, *SWEEP, "launcher=joblib", f"hydra.sweep.dir={folder}")
    return forks.start(folder.with_suffix(".log"), forks.train, *sweep)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["killed", "stopped"])
def test_the_same_command_at_once_goes_on(tmp_path, end):
    """The workers end where they are, and leave what the next sweep ends with the results of one without a break."""
    folder, whole = tmp_path / "broken", tmp_path / "whole"
    assert run_sweep(whole, *SWEEP) == 0
    sweep = start(folder)
    try:
        assert until(lambda: len(steps_in(folder)) == 2 and min(steps_in(folder)) > 50, 240)
        if end == "killed":
            assert_killed_with_all(sweep, 20)
        else:
            sweep.terminate()
            sweep.join(60)
            assert sweep.exitcode == 143
            states = [(Job(path.parent, 0).summary, path.parent) for path in folder.glob("*/summary.json")]
            assert [summary["status"] for summary, _ in states] == ["interrupted"] * 2
            for summary, run in states:
                latest = checkpoint.latest(run / "checkpoints")
                assert latest == checkpoint.path_of(run / "checkpoints", summary["steps"])
    finally:
        sweep.kill()
    assert run_sweep(folder, *SWEEP, "launcher=joblib") == 0
    assert_same_sweep(folder, whole)
    for log in folder.glob("*/train.log"):
        assert "Continuing from" in log.read_text(), "the kill fell behind the end of a job"


def steps_in(folder: Path) -> list[int]:
    """Lines of metrics of each job."""
    return [path.read_bytes().count(b"\n") for path in folder.glob("*/metrics.jsonl")]
