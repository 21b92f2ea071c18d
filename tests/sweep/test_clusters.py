"""Launchers for GPUs, Ray and SLURM. What needs a cluster makes one on this machine (``cluster``)."""

import getpass
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from seqlab.errors import UserError
from seqlab.sweep.launchers import local_gpus, on_slurm, packed
from support import ROOT, SMALL, Job

GPUS = "0, GPU-aaaa, 40960, 81920\n1, GPU-bbbb, 61440, 81920\n2, GPU-cccc, 1024, 81920\n"


def tool(folder: Path, name: str, says: str, status: int = 0) -> None:
    """A command of this name that prints a text."""
    path = folder / name
    path.write_text(f"#!/bin/sh\nprintf '%s' '{says}'\nexit {status}\n")
    path.chmod(0o755)


@pytest.fixture
def tools(tmp_path, monkeypatch) -> Path:
    """A folder for commands in front of the machine's own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return folder


def test_jobs_go_to_the_gpu_with_the_fewest_and_then_to_the_most_free_memory(tools):
    tool(tools, "nvidia-smi", GPUS)
    table = local_gpus.Table(jobs_per_gpu=2, memory_gb=25)
    assert [table.deal(1) for _ in range(4)] == [["GPU-bbbb"], ["GPU-aaaa"], ["GPU-bbbb"], []]  # 40 is not twice 25
    table.busy.subtract(["GPU-aaaa"])
    assert table.deal(2) == []  # bbbb has two already
    assert table.deal(1) == ["GPU-aaaa"]
    assert local_gpus.chosen({"a": 3, "b": 2, "c": 1}, Counter(a=1), 2, 2, 0) == ["b", "c"]


@pytest.mark.parametrize(("visible", "expected"), [("0", ["GPU-aaaa"]), ("GPU-bb,2", ["GPU-bbbb", "GPU-cccc"])])
def test_gpus_that_this_process_may_not_use_are_left_alone(tools, monkeypatch, visible, expected):
    tool(tools, "nvidia-smi", GPUS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert list(local_gpus.memory()) == expected


@pytest.mark.parametrize(
    ("settings", "processes", "message"),
    [
        ({"memory_gb": 100}, 1, r"memory_gb=100: a job would wait for ever: the GPUs here have 80, 80, 80 GiB"),
        ({}, 4, r"sweep\.processes=4: .* this machine has 3 GPUs for it\.\nGive it 3 or fewer"),
        ({"jobs_per_gpu": 0}, 1, r"hydra\.launcher\.jobs_per_gpu=0: is a number, 1 or more"),
    ],
)
def test_jobs_that_would_wait_for_ever_are_refused(tools, settings, processes, message):
    tool(tools, "nvidia-smi", GPUS)
    with pytest.raises(UserError, match=message):
        local_gpus.Table(**({"jobs_per_gpu": 1, "memory_gb": 0} | settings)).refuse_what_never_fits(processes)


def test_a_sweep_over_two_gpus(sweep, tools, tmp_path, monkeypatch):
    """With processes that train nothing: each sees the GPU that it was dealt, and one that dies stops no other."""
    tool(tools, "nvidia-smi", GPUS)
    told = "import os, sys; print(os.environ['CUDA_VISIBLE_DEVICES'], len(sys.stdin.buffer.read()) > 1000); sys.exit(3)"
    monkeypatch.setattr(local_gpus, "COMMAND", ("-S", "-c", told))
    monkeypatch.setattr(local_gpus, "INTERVAL", 0.01)
    arguments = ("launcher=local_gpus", "hydra.launcher.memory_gb=30", "model=linear", "seed=1,2,3")
    status, out, error = sweep(*arguments)
    logs = [path.read_text().split() for path in sorted((tmp_path / "sweep" / ".jobs").glob("*.log"))]
    assert {log[0] for log in logs} == {"GPU-aaaa", "GPU-bbbb"}
    assert [log[1] for log in logs] == ["True"] * 3
    assert status == 1
    assert out.count("ended before the job began; what it said is in") == 3
    assert "Traceback" not in out + error


@pytest.mark.parametrize(("patience", "status"), [(math.inf, 5), (0.0, -signal.SIGKILL)])
def test_a_job_has_time_for_its_checkpoint(patience, status):
    job = "trap 'sleep 0.2; exit 5' TERM; echo; while :; do sleep 0.02; done"
    with subprocess.Popen(["sh", "-c", job], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        local_gpus.stop([process], patience)
        assert process.wait() == status


def test_a_packed_job_is_the_launchers_own(sweep, tools, tmp_path, monkeypatch):
    """Its folder keeps the name that it was given, and what comes out of the pickle runs under Hydra."""
    tool(tools, "nvidia-smi", GPUS)
    jobs = []
    monkeypatch.setattr(local_gpus, "start", lambda job, gpus, threads: jobs.append(job) or subprocess.Popen(["true"]))
    monkeypatch.setattr(local_gpus, "INTERVAL", 0.01)
    sweep("launcher=local_gpus", "model=linear", "seed=1")
    seen = []
    try:
        packed.run(jobs[0].pack(), lambda cfg: seen.append((cfg.seed, HydraConfig.get().runtime.output_dir)))
    finally:
        GlobalHydra.instance().clear()
    assert seen == [(1, str(tmp_path / "sweep" / jobs[0].entry.folder))]


@pytest.mark.parametrize(
    ("launcher", "message"),
    [
        ("local_gpus", "launcher=local_gpus: this machine has no GPU.\nTake launcher=joblib for its cores"),
        ("slurm", "launcher=slurm: there is no SLURM here (sbatch and squeue).\nStart the sweep where sbatch works"),
        ("ray", "launcher=ray: Ray is not installed.\nInstall it with pip install 'seqlab[ray]'"),
    ],
)
def test_a_machine_without_what_a_launcher_needs(sweep, tmp_path, monkeypatch, launcher, message):
    if launcher == "slurm":
        pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "ray", None)
    status, _, error = sweep(f"launcher={launcher}", "model=linear", "seed=1,2")
    assert status == 2
    assert message in error
    assert not list((tmp_path / "sweep").glob("seed*"))


def test_slurm_is_asked_which_jobs_it_has(tools):
    tool(tools, "squeue", "7_0\n7_1\n9\n")
    assert on_slurm.listed() == {"7_0", "7_1", "9"}
    tool(tools, "squeue", "", status=1)
    assert on_slurm.listed() is None  # it does not answer: nothing is known


def test_slurm_tells_that_a_job_has_to_make_place(tools, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert not on_slurm.preempted()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for said, expected in (("PreemptTime=None", False), ("PreemptTime=2026-01-02T03:04:05", True)):
        tool(tools, "scontrol", f"JobId=7 PreemptEligibleTime=2026-01-02T03:00:00 {said} X=1")
        assert on_slurm.preempted() is expected


def test_a_job_that_slurm_lists_no_more_is_over(tools, tmp_path, monkeypatch):
    tool(tools, "squeue", "1_2\n")
    monkeypatch.setattr(on_slurm, "PATIENCE", 0.0)
    monkeypatch.setattr(on_slurm, "INTERVAL", 0.01)
    for number in ("1_0", "1_2"):
        on_slurm.result(tmp_path, number).parent.mkdir()
    on_slurm.result(tmp_path, "1_0").touch()
    monkeypatch.setattr(on_slurm.time, "sleep", lambda seconds: on_slurm.result(tmp_path, "1_2").touch())
    on_slurm.wait(["1_0", "1_1", "1_2"], tmp_path)  # 1_1 has died


LONG = ("model=mamba", "trainer.steps=6000", "trainer.evaluate_every=6000", "trainer.checkpoint_every=6000")


def started(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.Popen:
    """``python train.py -m``, which writes to the file ``said`` in the folder."""
    command = [sys.executable, ROOT / "train.py", "-m", *SMALL, "device=cpu", "hydra.sweep.dir=sweep", *arguments]
    with (folder / "said").open("a") as said:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=said)


def until(true, seconds: float = 120.0):
    """Wait for what is not false, and return it."""
    end = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < end
        time.sleep(0.5)
    return value


def steps(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture
def slurm(tmp_path, environment, monkeypatch):
    """A cluster of this machine; the settings with which it takes jobs."""
    if shutil.which("slurmctld") is None or getpass.getuser() != "root":
        pytest.skip("SLURM is not installed, or this account may not start it")
    folder = tmp_path / "slurm"
    script = [ROOT / "scripts" / "local_slurm.sh"]
    subprocess.run([*script, "start", folder], check=True)
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    environment["SLURM_CONF"] = str(folder / "slurm.conf")
    yield [f"hydra.launcher.{setting}" for setting in ("cpus_per_task=1", "mem_gb=2", "timeout_min=60")]
    subprocess.run(["scancel", f"--user={getpass.getuser()}"], check=False)
    subprocess.run([*script, "stop", folder], check=True)


def queue() -> dict[str, str]:
    """The state of each job that SLURM has."""
    listed = subprocess.run(["squeue", "--noheader", "--array", "--format=%i %T"], capture_output=True, text=True)
    return dict(line.split() for line in listed.stdout.splitlines())


@pytest.mark.cluster
@pytest.mark.slow
def test_a_job_of_slurm_is_preempted_queued_again_and_ends_as_if_it_never_was(slurm, tmp_path, environment):
    """The sweep is stopped meanwhile, and the same command waits for the jobs that SLURM still has."""
    arguments = ["launcher=slurm", *slurm, *LONG, "trainer.batch_size=8,64"]
    first = started(tmp_path, environment, *arguments)
    good, bad = (tmp_path / "sweep" / f"trainer.batch_size={size}" for size in (8, 64))
    until(lambda: steps(good) > 300)
    subprocess.run(["sbatch", "-p", "high", "-N", "2", "--exclusive", "--wrap", "sleep 3"], check=True, cwd=tmp_path)
    (number,) = until(lambda: [job for job, state in queue().items() if state == "PENDING" and "_" in job])
    until(lambda: json.loads((good / "summary.json").read_text())["status"] == "interrupted")
    before = steps(good)
    first.send_signal(signal.SIGTERM)
    assert first.wait(30) == 128 + signal.SIGTERM
    again = started(tmp_path, environment, *arguments)
    until(lambda: "not submitted again: 1 job" in (tmp_path / "said").read_text())
    subprocess.run(["scontrol", "update", f"JobId={number}", "StartTime=now"], check=True)  # not in two minutes
    assert again.wait(500) == 1  # the other job is refused
    job = Job(good, 0)
    assert (job.summary["status"], job.summary["steps"]) == ("completed", 6000)
    assert [record["step"] for record in job.records if record["split"] == "train"] == list(range(1, 6001))
    assert 300 < before < 6000
    assert f"Continuing from {good}" in (good / "train.log").read_text()
    assert json.loads((bad / "summary.json").read_text())["status"] == "failed"
    assert "trainer.batch_size=64: must lie between" in (tmp_path / "said").read_text()


@pytest.mark.cluster
@pytest.mark.slow
def test_a_job_of_slurm_that_is_killed_stops_no_other(slurm, tmp_path, environment):
    sweep = started(tmp_path, environment, "launcher=slurm", *slurm, *LONG, "trainer.steps=3000", "seed=1,2")
    one, two = (tmp_path / "sweep" / f"seed={seed}" for seed in (1, 2))
    until(lambda: steps(one) > 100 and steps(two) > 100)
    holder = int((one / ".lock").read_text().split()[1])
    os.kill(holder, signal.SIGKILL)
    assert sweep.wait(200) == 1
    assert Job(two, 0).summary["status"] == "completed"
    assert "seed=1: cut off" in (tmp_path / "said").read_text()
    assert (
        started(tmp_path, environment, "launcher=slurm", *slurm, *LONG, "trainer.steps=3000", "seed=1,2").wait(200) == 0
    )
    assert Job(one, 0).summary["status"] == "completed"


@pytest.mark.cluster
@pytest.mark.slow
def test_a_job_of_slurm_on_two_nodes(slurm, train, tmp_path, environment):
    """torchrun starts a process on each; they make the run of one."""
    few = ("model=linear", "trainer.batch_size=4")
    over = ("hydra.launcher.nodes=2", "hydra.launcher.gpus_per_node=1", "hydra.sweep.subdir=job")
    assert started(tmp_path, environment, "launcher=slurm", *slurm, *few, *over).wait(200) == 0
    job, one = Job(tmp_path / "sweep" / "job", 0), train(*SMALL, *few, folder="one", small=False)
    assert (job.summary["processes"], job.summary["status"]) == (2, "completed")
    assert job.summary["test"] == pytest.approx(one.summary["test"], rel=2e-5)


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray")
def test_a_sweep_over_two_machines_of_ray(tmp_path, environment):
    """A job that fails and one that is killed stop no other; stopped jobs write checkpoints, and go on from them."""
    program = (
        "from ray.cluster_utils import Cluster\n"
        "c = Cluster(initialize_head=True, head_node_args={'num_cpus': 1})\n"
        "c.add_node(num_cpus=1)\n"
        "print(c.address, flush=True)\n"
        "input()\n"
    )
    ours = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/"
    )
    try:
        address = ours.stdout.readline().strip()
        arguments = ["launcher=ray", f"hydra.launcher.address={address}", *LONG, "trainer.steps=3000", "seed=1,2,3"]
        sweep = started(tmp_path, environment, *arguments)
        one, two, three = (tmp_path / "sweep" / f"seed={seed}" for seed in (1, 2, 3))
        until(lambda: steps(one) > 100 and steps(two) > 100)  # on a machine each
        os.kill(int((one / ".lock").read_text().split()[1]), signal.SIGKILL)
        until(lambda: steps(three) > 100)
        sweep.send_signal(signal.SIGTERM)
        assert sweep.wait(60) == 128 + signal.SIGTERM
        assert json.loads((three / "summary.json").read_text())["status"] == "interrupted"
        assert started(tmp_path, environment, *arguments).wait(300) == 0
        assert all(Job(folder, 0).summary["status"] == "completed" for folder in (one, two, three))
        assert "Continuing from" in (three / "train.log").read_text()
    finally:
        ours.communicate("\n", timeout=60)
