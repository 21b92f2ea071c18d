"""A refused command leaves no folder; one that began, a fault of ours, and whatever was there before, stay."""

import errno
from contextlib import contextmanager

import pytest
import torch

from seqlab.runs import leftovers
from seqlab.runs.leftovers import Leftovers
from seqlab.runs.lock import only_process_in
from seqlab.training.trainer import Trainer
from support import run_sweep

REFUSED = {
    "by the check of settings": ("trainer.steps=soon",),
    "by the choice of a model": ("model=transformer", "size.n_heads=5"),
    "by the fit": ("schedule.warmup=9",),
    "by the match": ("match=params",),
}


@pytest.mark.parametrize("overrides", REFUSED.values(), ids=REFUSED)
def test_a_refused_run_leaves_no_folder(overrides, train, tmp_path):
    assert train("model=linear", *overrides, folder="outputs/mine/run").status == 2
    assert [path.name for path in tmp_path.rglob("*")] == ["outputs"]


def test_nor_does_one_whose_folder_is_named_by_its_settings(train, tmp_path):
    """As the default one is."""
    assert train("model=linear", "trainer.steps=soon", folder="outputs/${name}_${seed}").status == 2
    assert [path.name for path in tmp_path.rglob("*")] == ["outputs"]


def test_a_run_stopped_while_it_is_built_leaves_none_either(train, monkeypatch):
    def stop(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("seqlab.experiment.build_model", stop)
    job = train("model=linear")
    assert job.status == 130
    assert not job.folder.exists()


def test_what_a_person_has_stays(train, tmp_path):
    """With an earlier log among it, which the run that is refused adds to."""
    folder = tmp_path / "run"
    (folder / "notes").mkdir(parents=True)
    (folder / "notes" / "mine.txt").write_text("mine")
    (folder / "train.log").write_text("of before\n")
    assert train("model=linear", "schedule.warmup=9").status == 2
    assert {path.name for path in folder.iterdir()} == {"notes", "train.log"}
    assert (folder / "notes" / "mine.txt").read_text() == "mine"
    assert (folder / "train.log").read_text().startswith("of before\n")


def test_an_empty_folder_of_a_person_stays(train, tmp_path):
    folder = tmp_path / "mine" / "run"
    folder.mkdir(parents=True)
    assert train("model=linear", "schedule.warmup=9", folder="mine/run").status == 2
    assert list(tmp_path.rglob("*")) == [folder.parent, folder]


def test_a_run_in_that_folder_stays(train):
    job = train("model=linear")
    before = sorted(job.folder.rglob("*"))
    assert train("model=linear").status == 2
    assert train("model=linear", "trainer.steps=soon").status == 2
    assert sorted(job.folder.rglob("*")) == before


def test_a_run_that_began_stays(train, monkeypatch):
    def refuse(self, bar):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(Trainer, "_train_step", refuse)
    job = train("model=linear")
    assert (job.status, job.summary["status"]) == (2, "failed")


def test_a_fault_of_ours_stays_with_its_log(train, monkeypatch):
    monkeypatch.setattr("seqlab.experiment.build_model", lambda *arguments: 1 / 0)
    job = train("model=linear")
    assert (job.status, job.summary["status"]) == (1, "failed")
    assert "ZeroDivisionError" in (job.folder / "train.log").read_text()


@pytest.mark.parametrize("overrides", [("trainer.stepz=1,2",), ("model=linear,mambo",)])
def test_a_refused_sweep_leaves_no_folder(overrides, tmp_path):
    assert run_sweep(tmp_path / "mine" / "sweep", "model=linear", *overrides) == 2
    assert not list(tmp_path.iterdir())


def test_a_refused_sweep_leaves_an_earlier_one_alone(tmp_path):
    folder = tmp_path / "sweep"
    assert run_sweep(folder, "model=linear", "schedule.warmup=9", "seed=1,2") == 1
    before, written = sorted(folder.rglob("*")), (folder / "sweep.json").read_text()
    assert any(folder.rglob("summary.json"))
    assert run_sweep(folder, "model=linear,mambo") == 2
    assert sorted(folder.rglob("*")) == before
    assert (folder / "sweep.json").read_text() == written


def test_a_refused_resume_leaves_nothing_of_its_own(train):
    job = train("model=linear")
    before = sorted(job.folder.rglob("*"))
    assert train(f"resume={job.folder}", "model=lstm").status == 2
    assert sorted(job.folder.rglob("*")) == before
    assert train(f"resume={job.folder}", "trainer.steps=3").status == 0
    assert list(job.folder.glob(".hydra/resumed_*/overrides.yaml"))


def test_a_resumed_run_that_began_keeps_its_command(train, monkeypatch):
    def refuse(self, bar):
        raise torch.OutOfMemoryError("no memory")

    job = train("model=linear")
    monkeypatch.setattr(Trainer, "_train_step", refuse)
    assert train(f"resume={job.folder}", "trainer.steps=3").status == 2
    assert list(job.folder.glob(".hydra/resumed_*/overrides.yaml"))


def test_a_folder_that_another_process_has_taken_up_stays(tmp_path):
    left = Leftovers(tmp_path / "run")
    with only_process_in(tmp_path / "run"):
        left.remove()
        assert (tmp_path / "run" / ".lock").exists()
    left.remove()
    assert not (tmp_path / "run").exists()


def test_a_folder_that_another_command_has_begun_in_stays(tmp_path):
    """It holds the folder only once torch is imported."""
    left = Leftovers(tmp_path / "run", ["seed=1"])
    written = tmp_path / "run" / ".hydra" / "overrides.yaml"
    written.parent.mkdir(parents=True)
    written.write_text("- seed=2\n")
    left.remove()
    assert written.exists()
    written.write_text("- seed=1\n")
    left.remove()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl"])
def test_a_file_of_somebody_elses_is_not_written_to(train, tmp_path, capsys, name):
    own = tmp_path / "run" / name
    own.parent.mkdir()
    own.write_text('{"a": 1}\n')
    assert train("device=cuda").status == 2
    assert f"holds a {name} of something else.\nMove it away" in capsys.readouterr().err
    assert own.read_text() == '{"a": 1}\n'


def test_a_full_disk_is_no_reason_to_leave_it(tmp_path, monkeypatch):
    @contextmanager
    def refuse(folder):
        raise OSError(errno.ENOSPC, "No space left on device")
        yield

    left = Leftovers(tmp_path / "run")
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    monkeypatch.setattr(leftovers, "only_process_in", refuse)
    left.remove()
    assert not (tmp_path / "run").exists()


def test_it_raises_nothing(tmp_path, monkeypatch):
    def refuse(path, *arguments):
        raise PermissionError(13, "Permission denied")

    left = Leftovers(tmp_path / "run")
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    monkeypatch.setattr(leftovers.shutil, "rmtree", refuse)
    left.remove()
    assert (tmp_path / "run" / ".hydra").exists()
    Leftovers(tmp_path / "never made").remove()
