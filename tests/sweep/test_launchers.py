"""Other launchers than Hydra's own: the same jobs, the same results, wherever they run."""

import os
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from quick_composition import REPLACED
from seqlab.cli import resolvers
from seqlab.runs import process
from support import CONF, Job

pytest.importorskip("joblib")
pytest.importorskip("submitit")

SWEEP = ("hydra.mode=MULTIRUN", "model=mamba", "trainer.batch_size=64,8", "threads=1")  # 64 is more than there is


def timeless(job: Job) -> list[dict]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in job.records]


def jobs_of(sweep: Job) -> dict[str, Job]:
    """By folder, which does not depend on the launcher."""
    return {path.parent.name: Job(path.parent, 0) for path in sweep.folder.glob("*/summary.json")}


@pytest.mark.parametrize("launcher", ["joblib", "local_processes"])
def test_a_sweep_is_that_of_the_basic_launcher(train, capfd, tmp_path, launcher):
    """The same metrics bit for bit, the same failure told, the same status; a job knows what was typed."""
    basic = train(*SWEEP, f"hydra.sweep.dir={tmp_path / 'basic'}", folder="basic")
    capfd.readouterr()
    ours = train(*SWEEP, f"launcher={launcher}", f"hydra.sweep.dir={tmp_path / 'ours'}", folder="ours")
    out, err = capfd.readouterr()
    assert ours.status == basic.status == 1
    jobs, expected = jobs_of(ours), jobs_of(basic)
    assert set(expected) == {"trainer.batch_size=64", "trainer.batch_size=8"}
    assert {name: job.summary["status"] for name, job in jobs.items()} == {
        name: job.summary["status"] for name, job in expected.items()
    }
    (name,) = (name for name, job in expected.items() if job.summary["status"] == "completed")
    assert timeless(jobs[name]) == timeless(expected[name])
    assert jobs[name].summary["test"] == expected[name].summary["test"]
    assert f"launcher={launcher}" in jobs[name].summary["command"]
    assert "trainer.batch_size=64: " in out
    assert "Traceback" not in out + err
    assert "Warning" not in err


def test_one_run_has_no_launcher(train, capsys):
    assert train("launcher=joblib").status == 2
    assert "launcher=joblib: starts the jobs of a sweep, and this is one run.\nAdd -m" in capsys.readouterr().err
    assert train("sweep.processes=2").status == 2
    assert "sweep.processes=2: is for the jobs of a sweep, and this is one run.\nStart" in capsys.readouterr().err


def test_workers_share_the_cores(monkeypatch):
    monkeypatch.setattr(process, "DEFAULT_THREADS", 8)
    assert [resolvers.share_of_cores(workers) for workers in (None, 1, 3, 8, 99)] == [8, 8, 2, 1, 1]


def test_threads_are_a_jobs_own(train, monkeypatch):
    """Set for one job, and back at what the process began with for the next."""
    monkeypatch.setattr(os, "cpu_count", lambda: 4)  # a job has no more threads than the machine has cores
    train("threads=3", "model=linear", folder="three")
    assert torch.get_num_threads() == 3
    train("model=linear", folder="default")
    assert torch.get_num_threads() == process.DEFAULT_THREADS


def test_the_jobs_of_a_sweep_take_the_gpus_in_turn(monkeypatch):
    from hydra.types import RunMode

    taken = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    for number, mode, launcher in [
        (7, "MULTIRUN", "other"),
        (7, "RUN", "other"),
        (7, "MULTIRUN", process.SEQUENTIAL),
    ]:
        hydra = OmegaConf.create({"mode": RunMode[mode], "job": {"num": number}, "launcher": {"_target_": launcher}})
        monkeypatch.setattr(process.HydraConfig, "get", lambda hydra=hydra: hydra)
        process.take_share(torch.device("cuda"), None)
        process.take_share(torch.device("cpu"), None)
    assert taken == [1]  # job 7 of a sweep side by side, and nothing else


def plugin_of(path: Path) -> str:
    return yaml.safe_load(path.read_text())["defaults"][0]["override /hydra/launcher"]


OURS = {path.stem for path in (CONF / "hydra" / "launcher").glob("*.yaml")}
OTHERS = [path for path in sorted((CONF / "launcher").glob("*.yaml")) if plugin_of(path) not in OURS]


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
def test_a_launcher_that_is_not_installed(train, capsys, caplog, monkeypatch, path):
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    Plugins.instance()
    name = plugin_of(path)
    monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["launcher"], f"{name}.yaml")
    with REPLACED.not_now():  # which knows it from the tests before
        assert train(f"launcher={path.stem}").status == 2
    error = capsys.readouterr().err or caplog.messages[-1]
    assert f"pip install 'seqlab[{name.split('_')[0]}]'" in error
    assert len(error.strip().splitlines()) == 2
