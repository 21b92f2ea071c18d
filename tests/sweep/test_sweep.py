"""Sweeps through the real entry point: failures, going on, and jobs that leave no trace in the next one."""

import gc
import json
import random
import re
import shutil
import threading
import weakref
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import rich
import torch

from seqlab import experiment
from seqlab.runs.lock import only_process_in
from seqlab.sweep.entries import RUNNING
from seqlab.sweep.naming import sweep_folder
from seqlab.sweep.watch import Watch
from seqlab.training.loggers import NoLogger
from seqlab.training.trainer import Trainer
from support import SMALL, Job, assert_same_run, run_sweep

BY_SEED = "hydra.sweep.subdir='${seed}'"


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("once") / "sweep"
    assert run_sweep(folder, *DONE) == 0
    return folder


@pytest.fixture
def done(once, tmp_path):
    """A sweep that completed, in the folder that ``sweep`` goes on with."""
    return shutil.copytree(once, tmp_path / "sweep")


DONE = ("model=lstm", "seed=1,2,3", BY_SEED)


def test_jobs_may_differ_in_the_mixers_that_they_use(sweep, tmp_path):
    """A setting of one that a job leaves out is said in its log, where a single run is refused."""
    patterns = "model.pattern=[attention],[mamba]"
    status, _, error = sweep("model=hybrid", "size=tiny", patterns, "model.mixers.mamba.d_state=8", "trainer.steps=1")
    assert status == 0, error
    told = [("changes nothing" in log.read_text()) for log in tmp_path.glob("sweep/*/train.log")]
    assert sorted(told) == [False, True]


class TestFailures:
    def test_a_failing_job_is_listed_and_does_not_stop_the_others(self, sweep, tmp_path):
        """Neither those beside it nor, with some launchers' batches, the ones after."""
        settings = ("hydra.sweep.subdir='${name}_${trainer.batch_size}'", "hydra.sweeper.max_batch_size=2")
        status, out, error = sweep("model=mlp,linear", "trainer.batch_size=64,8", *settings)
        assert status == 1
        summaries = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("sweep/*/summary.json")}
        ended = {name: summary["status"] for name, summary in summaries.items()}
        assert ended == {"mlp_64": "failed", "mlp_8": "completed", "linear_64": "failed", "linear_8": "completed"}
        assert re.search(r"linear +│ 8 +│ completed +│ 2 of 2 ", out)
        assert re.search(r"linear +│ 64 +│ failed", out)
        assert "model=linear trainer.batch_size=64: failed\n  trainer.batch_size=64: must lie between" in out
        assert "2 failed, 2 completed" in out
        for line in ("[1 of 4] model=mlp trainer.batch_size=64: failed", "[4 of 4] model=linear trainer.batch_size=8"):
            assert line in error
        assert "Traceback" not in error
        assert summaries["mlp_64"]["error"].startswith("trainer.batch_size=64: must lie between")

    def test_a_job_whose_settings_are_refused_says_why_in_its_folder(self, sweep, tmp_path):
        assert sweep("model=linear", "optimizer.lr=-1,1e-3", "hydra.sweep.subdir='${optimizer.lr}'")[0] == 1
        summary = json.loads((tmp_path / "sweep" / "-1" / "summary.json").read_text())
        assert summary["status"] == "failed"
        assert summary["error"].startswith("optimizer.lr=-1: ")

    def test_a_fault_of_ours(self, sweep, monkeypatch):
        monkeypatch.setattr(Trainer, "_train_step", lambda self, bar: 1 / 0)
        status, out, error = sweep("model=linear")
        assert status == 1
        assert "ZeroDivisionError" in out
        assert "Traceback" in error

    def test_all_well(self, done):
        written = json.loads((done / "sweep.json").read_text())
        assert written["overrides"] == [*SMALL, "model=lstm", "seed=1,2,3"]
        assert [job["folder"] for job in written["jobs"]] == ["1", "2", "3"]
        assert [job["overrides"][-1] for job in written["jobs"]] == ["seed=1", "seed=2", "seed=3"]

    def test_a_mistake_in_the_command_is_none_of_a_job(self, sweep):
        status, _, error = sweep("model=linear,mambo")
        assert status == 2
        assert "model=mambo: is no option" in error


class TestGoingOn:
    def test_what_completed_is_kept_without_loading_data(self, sweep, done, monkeypatch):
        before = {path: path.stat().st_mtime_ns for path in done.glob("[123]/*") if path.name != ".lock"}
        monkeypatch.setattr(experiment, "prepare", None)  # no data, no model
        status, out, error = sweep(*DONE)
        assert status == 0, error
        assert "3 kept" in out
        for seed in (1, 2, 3):
            summary = Job(done / str(seed), 0).summary
            validation, test = summary["best_validation_loss"], summary["test"]["loss"]
            assert re.search(rf"│ {seed} +│ kept +│ 2 of 2 │ +{validation:.4f} │ {test:.4f} │", out)
        after = {path: path.stat().st_mtime_ns for path in before}
        assert {path.name for path in before if before[path] != after[path]} <= {".hydra", "train.log"}

    def test_a_job_cut_off_ends_as_one_never_touched(self, sweep, train, tmp_path, monkeypatch):
        long = ("model=transformer", "model.dropout=0.1", "trainer.steps=12", "trainer.checkpoint_every=3")
        whole = train(*long, "seed=2")
        step = Trainer._train_step

        def stop_at_8(self, bar):
            step(self, bar)
            if self.counters.step == 8:
                raise KeyboardInterrupt

        monkeypatch.setattr(Trainer, "_train_step", stop_at_8)
        status, out, error = sweep(*long, "seed=2,3", BY_SEED)
        assert status == 130
        assert "1 interrupted, 1 not begun" in out
        assert "The same command goes on" in error
        monkeypatch.undo()
        status, out, error = sweep(*long, "seed=2,3", BY_SEED)
        assert status == 0, error
        assert "2 completed" in out
        log = (tmp_path / "sweep/2/train.log").read_text()
        assert re.search(r"Continuing from .*step-00000006", log)
        assert_same_run(Job(tmp_path / "sweep/2", 0), whole)

    def test_a_job_without_a_whole_checkpoint_begins_anew(self, sweep, done, once):
        """Killed before there was anything, before the first checkpoint, and with a disk that damaged the rest."""
        for seed in ("1", "2"):
            shutil.rmtree(done / seed / "checkpoints")
        (done / "1" / "config.yaml").unlink()
        (done / "1" / "summary.json").unlink()
        for seed in ("2", "3"):
            (done / seed / "summary.json").write_text('{"status": "running"}')
        for path in done.glob("3/checkpoints/*/*"):
            path.write_text("damaged")
        status, _, error = sweep(*DONE)
        assert status == 0, error
        for seed in ("1", "2", "3"):
            assert_same_run(Job(done / seed, 0), Job(once / seed, 0))

    def test_a_failed_job_is_tried_again(self, sweep, monkeypatch):
        monkeypatch.setattr(Trainer, "test", lambda self: 1 / 0)
        assert sweep("model=linear")[0] == 1
        monkeypatch.undo()
        status, out, error = sweep("model=linear")
        assert status == 0, error
        assert "1 completed" in out

    def test_a_diverged_job_stays_so(self, sweep, tmp_path, monkeypatch):
        wild = ("optimizer=sgd", "optimizer.lr=1.0e+30", "trainer.steps=40", "trainer.clip_norm=null", BY_SEED)
        status, out, _ = sweep(*wild, "schedule.warmup=0", "model=linear")
        assert status == 1
        assert "not finite" in out
        said = json.loads((tmp_path / "sweep/1/summary.json").read_text())["error"]
        monkeypatch.setattr(experiment, "prepare", None)  # no data, no model
        status, out, _ = sweep(*wild, "schedule.warmup=0", "model=linear")
        assert status == 1
        assert "1 diverged" in out
        assert said.splitlines()[0] in out

    def test_another_configuration_is_refused_by_its_key(self, sweep, done):
        before = (done / "1/summary.json").read_bytes()
        status, out, _ = sweep("model=lstm", "seed=1,9", "trainer.steps=3", BY_SEED)
        assert status == 1
        assert "trainer.steps=3: the run in" in out
        assert "was started with 2" in out
        assert "1 failed, 1 completed" in out
        assert (done / "1/summary.json").read_bytes() == before

    def test_a_setting_that_came_later_is_as_it_was_unless_it_is_asked_for(self, sweep, done):
        for seed in ("1", "2"):
            config = done / seed / "config.yaml"
            lines = config.read_text().splitlines(keepends=True)
            config.write_text("".join(line for line in lines if not line.startswith("  cuda_graph:")))
        status, out, error = sweep("model=lstm", "seed=1", BY_SEED)
        assert status == 0, error
        assert "1 kept" in out
        status, out, _ = sweep("model=lstm", "seed=2", "trainer.cuda_graph=auto", BY_SEED)
        assert status == 1
        assert re.search(r"trainer\.cuda_graph=auto: the run in \S+ was started without it", out)

    def test_what_belongs_to_the_machine_may_differ(self, sweep, done):
        status, out, error = sweep("model=lstm", "seed=1", BY_SEED, "device=cpu", "debug=true", "threads=1")
        assert status == 0, error
        assert "1 kept" in out

    def test_unless_it_is_not_wanted(self, sweep, done):
        status, out, _ = sweep("model=lstm", "seed=1", BY_SEED, "sweep.resume=false")
        assert status == 1
        assert "holds a run already" in out

    def test_a_folder_in_use_is_refused(self, sweep, done, train, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(experiment, "PATIENCE", 0.3)
        with only_process_in(done / "1"):
            status, out, _ = sweep("model=lstm", "seed=1,2", BY_SEED)
        assert status == 1
        assert re.search(r"run folder=.*/1: another process runs it at this moment \(process \d+ on .*\)", out)
        assert "1 failed, 1 kept" in out
        with only_process_in(tmp_path / "run"):
            assert train().status == 2
        assert "another process runs it" in capsys.readouterr().err
        assert train().status == 0

    def test_a_job_waits_for_one_that_is_about_to_end(self, sweep, done):
        """The workers of a sweep that was killed hold their folders for some seconds more."""
        with ExitStack() as held:
            held.enter_context(only_process_in(done / "1"))
            threading.Timer(0.5, held.close).start()
            status, out, error = sweep("model=lstm", "seed=1,2", BY_SEED)
        assert status == 0, error
        assert "2 kept" in out


def test_the_default_folder_is_found_again(sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, _, error = sweep("model=linear", "seed=1,2", default=True)
    assert "A new sweep in outputs/sweep_" in error
    _, out, error = sweep("seed=1,2", "model=linear", "debug=true", default=True)
    assert "sweep.resume=false starts anew" in error
    assert "2 kept" in out
    (folder,) = (tmp_path / "outputs").iterdir()
    _, _, error = sweep("model=linear", "seed=1,2", "sweep.resume=false", default=True)
    assert "A new sweep in outputs/sweep_" in error
    assert len(list((tmp_path / "outputs").iterdir())) == 2
    assert re.fullmatch(r"sweep_[-\d]{10}_[-\d]{15}_(\w{8})", folder.name)


def test_which_overrides_make_a_default_folder(tmp_path):
    typed = {"task": ["model=mamba,lstm", "seed=1,2"], "hydra": ["hydra.launcher.n_jobs=2"]}

    def chosen(*task: str, hydra: tuple[str, ...] = (), resume: bool = True, time: str = "3") -> str:
        given = {"task": list(task), "hydra": list(hydra)}
        return Path(sweep_folder(resume, given, str(tmp_path / f"sweep_{time}"))).name

    older, newer = (Path(sweep_folder(False, typed, str(tmp_path / f"sweep_{time}"))) for time in "12")
    older.mkdir()
    newer.mkdir()
    for same in (("seed=1,2", "model=mamba,lstm"), (*typed["task"], "+data.dir=x", "debug=true", "sweep.resume=true")):
        assert chosen(*same) == newer.name
    assert chosen(*typed["task"], resume=False).startswith("sweep_3_")
    for other in (("model=mamba,lstm", "seed=1,2,3"), ("model=mamba,lstm",), (*typed["task"], "device=cpu")):
        assert chosen(*other).startswith("sweep_3_")
    assert chosen(*typed["task"], hydra=("hydra/sweeper=other",)).startswith("sweep_3_")


def test_on_a_terminal_a_live_table_is_all(sweep, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes what it has for a terminal,
    monkeypatch.setenv("TERM", "xterm")  # whose cursor it can move
    monkeypatch.setattr(rich.get_console(), "is_interactive", True)
    shown, screen, test = threading.Event(), Watch.screen, Trainer.test

    def draw(self):
        if any(job.status == RUNNING for job in self.jobs):
            shown.set()
        return screen(self)

    def test_when_shown(self):
        assert shown.wait(60)  # however fast the job and slow the screen
        return test(self)

    monkeypatch.setattr(Watch, "screen", draw)
    monkeypatch.setattr(Trainer, "test", test_when_shown)
    status, out, error = sweep("model=linear", "seed=1,2")
    assert status == 0
    assert "2 completed" in re.sub(r"\x1b\[[\d;?]*\w", "", out)
    screen = re.sub(r"\x1b\[[\d;?]*\w", "", error)
    assert re.search(r"│ 1 +│ running", screen)
    assert re.search(r"[01] of 2 done, 1 running, 0 failed", screen)
    assert "[1 of 2]" not in screen
    assert "training" not in screen  # the job's own bar
    assert "validation loss" not in screen


def can_reset_peak_memory() -> bool:
    """Whether the kernel lets a process begin its peak anew."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


class LeavesAMess(NoLogger):
    """A job that changes all that is the process's."""

    def log(self, record):
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        torch.set_float32_matmul_precision("medium")
        torch.set_num_threads(torch.get_num_threads() + 1)
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = True
        torch.set_grad_enabled(False)
        for seed in (torch.manual_seed, random.seed, np.random.seed):
            seed(123)


class Fails(NoLogger):
    def log(self, record):
        torch.ones(2**26, device="cpu", dtype=torch.float32)  # 256 MiB
        torch.set_default_dtype(torch.bfloat16)
        raise RuntimeError("no more")


class TestIsolation:
    def test_the_third_job_is_bitwise_the_job_alone(self, sweep, train, tmp_path):
        job = ("model=transformer", "model.dropout=0.1", "trainer.steps=4")
        alone = train(*job)
        loggers = "test_sweep.LeavesAMess,test_sweep.Fails,seqlab.training.loggers.NoLogger"
        threads = torch.get_num_threads()
        subdir = "hydra.sweep.subdir='${hydra:job.num}'"
        status, out, error = sweep(*job, f"logger._target_={loggers}", subdir)
        assert status == 1
        assert "2 failed, 1 completed" in out, error
        assert torch.get_num_threads() == threads
        assert torch.get_default_dtype() == torch.float32
        assert not torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
        assert_same_run(Job(tmp_path / "sweep/2", 0), alone)
        peak = [Job(tmp_path / "sweep" / str(number), 0).summary["peak_memory_bytes"] for number in (1, 2)]
        if can_reset_peak_memory():
            assert peak[1] < peak[0] - 2**27

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_a_full_gpu_is_clean_for_the_next_job(self, sweep, monkeypatch, tmp_path):
        before, step = [], Trainer._train_step

        def overflow(self, bar):
            if not before:
                before.append(torch.cuda.memory_allocated())
                self.update.hoard = []
                while True:
                    self.update.hoard.append(torch.empty(2**30, dtype=torch.uint8, device="cuda"))
            if len(before) == 1:
                before.append(torch.cuda.memory_allocated())
            step(self, bar)

        monkeypatch.setattr(Trainer, "_train_step", overflow)
        status, out, error = sweep("model=linear", "seed=1,2", BY_SEED, "device=cuda")
        assert status == 1
        assert "1 failed, 1 completed" in out, error
        assert "trainer.accumulate" in out
        assert before[1] <= before[0] + 2**20
        assert Job(tmp_path / "sweep/2", 0).summary["peak_memory_bytes"] < 2**30

    @pytest.mark.parametrize("place", ["step", "building"])
    def test_out_of_memory_frees_all_of_the_job(self, sweep, monkeypatch, tmp_path, place):
        """The exception is PyTorch's; what shows the freeing is that the first job's model is gone in the second."""
        models, alive = [], []
        init, step = Trainer.__init__, Trainer._train_step
        full = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB"

        def build(self, trainer, model, *arguments, **settings):
            alive.append([reference() is not None for reference in models])
            models.append(weakref.ref(model))
            init(self, trainer, model, *arguments, **settings)
            if place == "building" and len(models) == 1:
                raise torch.OutOfMemoryError(full)

        def overflow(self, bar):
            if place == "step" and len(models) == 1:
                raise torch.OutOfMemoryError(full)
            step(self, bar)

        monkeypatch.setattr(Trainer, "__init__", build)
        monkeypatch.setattr(Trainer, "_train_step", overflow)
        gc.disable()  # nothing but the sweep itself may free
        try:
            status, out, error = sweep("model=linear", "seed=1,2", BY_SEED)
        finally:
            gc.enable()
        assert status == 1
        assert "1 failed, 1 completed" in out
        assert alive == [[], [False]]
        for said in (out, error, json.loads((tmp_path / "sweep/1/summary.json").read_text())["error"]):
            assert "there is not enough for another 20.00 GiB" in said
            assert "trainer.accumulate" in said
        assert "Traceback" not in error
