"""What going on with an earlier run does to its folder, and what it refuses."""

import json
import shutil

import pytest

from seqlab.training import checkpoint
from support import Job

MODEL = "model=linear"


def flip_a_bit_everywhere(job: Job) -> None:
    for path in checkpoint.existing(job.folder / "checkpoints"):
        weights = bytearray((path / checkpoint.WEIGHTS).read_bytes())
        weights[-1] ^= 1
        (path / checkpoint.WEIGHTS).write_bytes(weights)


class TestACompletedRunStaysAsItWas:
    def refused(self, train, job: Job, *overrides: str) -> None:
        before = job.summary
        assert before["status"] == "completed"
        assert train(f"resume={job.folder}", *overrides).status != 0
        assert job.summary == before

    def test_without_checkpoints(self, train):
        job = train(MODEL)
        shutil.rmtree(job.folder / "checkpoints")
        self.refused(train, job)

    def test_with_every_checkpoint_damaged(self, train):
        job = train(MODEL)
        flip_a_bit_everywhere(job)
        self.refused(train, job)

    def test_on_a_device_that_is_not_there(self, train, monkeypatch):
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        job = train(MODEL)
        shutil.rmtree(job.folder / "checkpoints")
        self.refused(train, job, "device=cuda")

    @pytest.mark.parametrize(("steps", "part"), [("3", "Trainer._train_step"), ("2", "evaluate")])
    def test_by_a_failure_before_the_first_new_step(self, train, monkeypatch, steps, part):
        def fail(*_, **__):
            raise RuntimeError("no")

        job = train(MODEL)
        monkeypatch.setattr(f"seqlab.training.trainer.{part}", fail)
        self.refused(train, job, f"trainer.steps={steps}")


def test_before_the_first_checkpoint(train, monkeypatch, capsys):
    """A run that was stopped before it goes on from step 0, to the end of a run that was not."""

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    whole = train(MODEL, folder="whole")
    with monkeypatch.context() as patched:
        patched.setattr("seqlab.training.checkpoint.save", full)
        job = train(MODEL)
    assert job.status == 2
    assert not checkpoint.existing(job.folder / "checkpoints")
    assert train(f"resume={job.folder}").status == 0
    assert "has no checkpoint yet; it begins at step 0" in (job.folder / "train.log").read_text()
    assert job.summary["test"] == whole.summary["test"]


class TestNoLabelsForWhatWasNotDone:
    def test_a_budget_below_what_was_done(self, train, capsys):
        job = train(MODEL, "trainer.steps=4")
        before = job.summary, (job.folder / "config.yaml").read_text()
        assert train(f"resume={job.folder}", "trainer.steps=3").status == 2
        assert "trainer.steps=3: the run has made 4 steps already.\nLeave it" in capsys.readouterr().err
        assert before == (job.summary, (job.folder / "config.yaml").read_text())

    @pytest.mark.parametrize(
        "change",
        [
            *("patience=7", "stop_above={metric:mae,value:99}", "max_skipped=7", "cuda_graph=false"),
            *("evaluate_every=7", "checkpoint_every=7", "log_every=7"),
        ],
    )
    def test_how_steps_are_made_when_none_is_left(self, completed, train, capsys, change):
        assert train(f"resume={completed.folder}", f"trainer.{change}").status == 2
        error = capsys.readouterr().err
        assert f"trainer.{change.partition('=')[0]}=" in error
        assert "no step is left" in error
        assert train(f"resume={completed.folder}", f"trainer.{change}", "trainer.steps=3").status == 0

    @pytest.fixture
    def completed(self, train) -> Job:
        return train(MODEL)

    def test_the_machine_that_made_the_steps(self, train, monkeypatch):
        job = train(MODEL)
        before = job.summary
        monkeypatch.setattr("seqlab.runs.environment.device_name", lambda _: "another")
        monkeypatch.setattr("seqlab.runs.summary.peak_memory", lambda _: 1)
        assert train(f"resume={job.folder}").status == 0
        kept = ("command", "device_name", "peak_memory_bytes", "versions")
        assert {key: job.summary[key] for key in kept} == {key: before[key] for key in kept}
        assert train(f"resume={job.folder}", "trainer.steps=3").status == 0
        assert job.summary["device_name"] == "another"


class TestNoResult:
    """A run of which most updates were skipped is no completed one."""

    FAILS = (MODEL, "optimizer.lr=1e38", "trainer.max_skipped=1000", "trainer.steps=12", "schedule=constant")

    def test_says_what_was_reached(self, train, capsys):
        job = train(*self.FAILS)
        assert job.status == 1
        assert job.summary["status"] == "diverged"
        assert job.summary["error"].startswith(f"{job.summary['skipped_steps']} of 12 updates were skipped")
        assert job.summary["skipped_steps"] > 6
        assert "this run has no result" in capsys.readouterr().err

    def test_in_a_sweep_that_goes_on(self, train, tmp_path, capsys):
        sweep = ("-m", *self.FAILS, "seed=1", f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=${seed}")
        train(*sweep)
        first = Job(tmp_path / "1", 1).summary
        capsys.readouterr()
        train(*sweep)
        assert Job(tmp_path / "1", 1).summary == first
        assert first["status"] == "diverged"
        (record,) = (tmp_path / ".jobs").glob("*.json")
        assert json.loads(record.read_text())["error"] == first["error"]


class TestOfWhatItWas:
    """Settings and data of a resumed run are those that its steps were made with."""

    def test_a_configuration_edited_by_hand(self, train, capsys):
        job = train(MODEL, "optimizer.lr=0.002")
        path, before = job.folder / "config.yaml", job.summary
        text = path.read_text()
        assert "lr: 0.002" in text
        path.write_text(text.replace("lr: 0.002", "lr: 0.001"))
        assert train(f"resume={job.folder}", "trainer.steps=3").status == 2
        assert "lr=0.001: config.yaml was edited: the run's steps were made with 0.002." in capsys.readouterr().err
        assert job.summary == before
        path.write_text(text)
        assert train(f"resume={job.folder}", "trainer.steps=3").status == 0

    @pytest.mark.parametrize("older", [False, True])
    def test_a_text_that_was_reversed(self, train, tmp_path, capsys, older):
        text = tmp_path / "data" / "own" / "all.txt"
        text.parent.mkdir(parents=True)
        text.write_text("to be or not to be " * 99)
        settings = (
            "data.folder=own",
            "data.files.all.file=all.txt",
            "data.files.all.sha256=null",
            "data.files.all.tokens=null",
            "data.vocab_size=null",
            "data.length=8",
        )
        small = ("trainer=smoke", "trainer.steps=2", "~data.download", f"data.dir={tmp_path / 'data'}")
        job = train("data=tiny_shakespeare", MODEL, *settings, *small, small=False)
        if older:  # a folder of a version that kept no origin
            for path in (job.folder / "checkpoints").glob("*/manifest.json"):
                manifest = json.loads(path.read_text())
                del manifest["origin"]
                path.write_text(json.dumps(manifest))
        before, whole = job.summary, text.read_text()
        text.write_text(whole[::-1])
        assert train(f"resume={job.folder}", "trainer.steps=3").status == 2
        assert "the data have changed" in capsys.readouterr().err
        assert job.summary == before
        text.write_text(whole)
        assert train(f"resume={job.folder}", "trainer.steps=3").status == 0
