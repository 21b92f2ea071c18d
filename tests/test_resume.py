"""What going on with an earlier run does to its folder, and what it refuses."""

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

    @pytest.mark.parametrize(("steps", "part"), [("3", "Fit._train_step"), ("2", "evaluate")])
    def test_by_a_failure_before_the_first_new_step(self, train, monkeypatch, steps, part):
        def fail(*_, **__):
            raise RuntimeError("no")

        job = train(MODEL)
        monkeypatch.setattr(f"seqlab.training.trainer.{part}", fail)
        self.refused(train, job, f"trainer.steps={steps}")
