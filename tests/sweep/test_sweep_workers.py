"""How many threads and processes a machine is asked for."""

import os

import pytest
from omegaconf import OmegaConf

from seqlab.config.schema import refuse_more_than_cores
from seqlab.errors import UserError
from seqlab.sweep import workers
from seqlab.sweep.workers import check_workers


@pytest.fixture(autouse=True)
def _four_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)


def config(launcher, size=None, **settings):
    hydra = {"launcher": {"_target_": launcher, **settings}, "sweeper": {"max_batch_size": size}}
    return OmegaConf.create({"hydra": hydra})


def test_a_job_has_at_most_the_machines_cores():
    for threads in (None, 1, 4):
        refuse_more_than_cores(threads)
    with pytest.raises(UserError, match=r"threads=5: this machine has 4 cores\.\nGive it 4 or fewer"):
        refuse_more_than_cores(5)


def test_workers_side_by_side():
    for number in (-1, 1, 32):
        check_workers(config("joblib", n_jobs=number))
    check_workers(config("slurm", array_parallelism=5000), 5000)
    with pytest.raises(UserError, match=r"hydra\.launcher\.n_jobs=5000: .* 4 cores, .*\nGive it 32 or fewer"):
        check_workers(config("joblib", n_jobs=5000))
    with pytest.raises(UserError, match=r"hydra\.launcher\.n_jobs=0: "):
        check_workers(config("joblib", n_jobs=0))


def test_local_processes_start_as_many_as_a_batch_has():
    check_workers(config(workers.LOCAL_PROCESSES, size=32), 32)
    check_workers(config(workers.LOCAL_PROCESSES), 32)
    with pytest.raises(UserError, match=r"hydra\.sweeper\.max_batch_size=33: 33 processes"):
        check_workers(config(workers.LOCAL_PROCESSES, size=33))
    with pytest.raises(UserError, match=r"hydra\.sweeper\.max_batch_size=None: 33 processes"):
        check_workers(config(workers.LOCAL_PROCESSES), 33)
    check_workers(config("basic"), 5000)


@pytest.mark.parametrize("size", [0, -2, "x", 1.5, True])
def test_a_batch_has_a_size(size):
    with pytest.raises(UserError, match=r"hydra\.sweeper\.max_batch_size=.*: is how many jobs"):
        check_workers(config("basic", size=size))


def test_the_local_launcher_is_called_so():
    launcher = pytest.importorskip("hydra_plugins.hydra_submitit_launcher.submitit_launcher").LocalLauncher
    assert f"{launcher.__module__}.{launcher.__name__}" == workers.LOCAL_PROCESSES


def test_a_sweep_is_refused_before_its_first_job(sweep, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    monkeypatch.setattr("seqlab.cli.main.swept_job", lambda task, cfg: pytest.fail("a job began"))
    for typed, said in {
        ("launcher=joblib", "hydra.launcher.n_jobs=5000"): "hydra.launcher.n_jobs=5000: 5000 processes",
        ("hydra.sweeper.max_batch_size=0",): "hydra.sweeper.max_batch_size=0: is how many",
    }.items():
        status, _, error = sweep("model=linear", "seed=1,2", *typed)
        assert status == 2, error
        assert said in error
        assert "Traceback" not in error
