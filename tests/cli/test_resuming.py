"""Going on with a run by ``resume=``, through the real entry point."""

import re
import signal

import pytest
import torch
import yaml

import forks
from seqlab.training import checkpoint
from support import Job, assert_same_run, final_weights


class TestResume:
    LONG = (
        "trainer.steps=12",
        "trainer.evaluate_every=4",
        "trainer.checkpoint_every=3",
        "model=transformer",
        "model.dropout=0.1",
    )

    def test_a_killed_run_continues_to_the_same_end(self, train, tmp_path):
        """kill -9 in the middle, then ``resume=``: bitwise the weights and metrics of a run never touched."""
        whole = train(*self.LONG, folder="whole")
        folder = tmp_path / "killed"
        arguments = [*train.small, *self.LONG, f"hydra.run.dir={folder}"]
        status, said = forks.finish(tmp_path / "screen", forks.train_until, "killed", 8, *arguments)
        assert status == -signal.SIGKILL, said
        records = Job(folder, 0).records
        assert records[-1]["step"] == 8
        assert train(f"resume={folder}").status == 0
        assert_same_run(Job(folder, 0), whole)

    def test_from_the_checkpoint_before_a_damaged_one(self, train, capsys):
        whole = train(*self.LONG, folder="whole")
        job = train(*self.LONG)
        last = checkpoint.existing(job.folder / "checkpoints")[-1]
        (last / checkpoint.WEIGHTS).write_bytes(b"damaged")
        assert train(f"resume={job.folder}").status == 0
        assert f"{last} cannot be used" in capsys.readouterr().err
        assert_same_run(job, whole)

    def test_with_a_larger_budget(self, train):
        job = train("schedule=constant", "trainer.steps=4")
        assert "earlier_budgets" not in job.summary
        assert train(f"resume={job.folder}", "trainer.steps=6").status == 0
        assert job.summary["steps"] == 6
        log = (job.folder / "train.log").read_text()
        assert "The budget was 4 steps and is 6 now; the test split was read after 4 steps and is read again" in log

    def test_with_a_larger_budget_and_a_schedule_that_ends(self, train):
        """What is stretched and read again is said, and kept over a further change."""
        job = train("schedule=cosine", "trainer.steps=3", "model=linear")
        assert train(f"resume={job.folder}", "trainer.steps=5").status == 0
        log = (job.folder / "train.log").read_text()
        assert "is 5 now; the schedule spans all of them, from 0.1 of the full learning rate to 0.23 now; the" in log
        assert train(f"resume={job.folder}", "trainer.steps=6").status == 0
        first = {"total_steps": 3, "steps": 3, "test_read": True}
        assert job.summary["earlier_budgets"] == [first, {"total_steps": 5, "steps": 5, "test_read": True}]

    def test_keeps_what_hydra_composed_first(self, train):
        job = train("model=mlp")
        before = (job.folder / ".hydra" / "config.yaml").read_text()
        train(f"resume={job.folder}")
        assert (job.folder / ".hydra" / "config.yaml").read_text() == before
        assert job.summary["model"] == "mlp"

    def test_refuses_to_change_the_model(self, train, capsys):
        job = train()
        assert train(f"resume={job.folder}", "model=lstm").status == 2
        assert "a resumed run keeps its model" in capsys.readouterr().err

    def test_of_no_run_folder(self, train, capsys, caplog, tmp_path):
        assert train(f"resume={tmp_path / 'nothing'}").status == 2
        error = capsys.readouterr().err or caplog.messages[-1]  # before Hydra sets up its own log, or after
        assert re.search(r"resume=.*nothing: is no run folder.*\nName a folder", error)
        assert not (tmp_path / "nothing").exists()

    @pytest.mark.parametrize(
        ("left", "why"),
        [
            ({"config.yaml": "defaults: [size]\nname: x\n"}, "its config.yaml describes no run"),
            ({"config.yaml": "a: [\n"}, "config.yaml cannot be read"),
            ({"sweep.json": "{}"}, "it is a whole sweep's"),
            ({"notes.txt": ""}, "there is no config.yaml in it"),
        ],
    )
    def test_of_a_folder_that_is_no_runs(self, left, why, train, capsys, caplog, tmp_path):
        folder = tmp_path / "folder"
        folder.mkdir()
        for name, text in left.items():
            (folder / name).write_text(text)
        assert train(f"resume={folder}").status == 2
        error = capsys.readouterr().err or caplog.messages[-1]
        assert f"resume={folder}: is no run folder: {why}" in error
        assert {path.name for path in folder.iterdir()} == set(left)  # nothing is written into it

    @pytest.mark.parametrize(
        "override", ["trainer=default", "trainer.batch_size=4", "trainer.precision=bf16", "seed=9"]
    )
    def test_refuses_what_would_make_it_another_run(self, train, capsys, override):
        job = train()
        assert train(f"resume={job.folder}", override).status == 2
        assert "a resumed run keeps" in capsys.readouterr().err

    def test_of_a_run_before_settings_that_came_later(self, train):
        job = train("model=linear")
        path = job.folder / "config.yaml"
        saved = yaml.safe_load(path.read_text())
        for key in ("threads", "debug", "sweep", "target"):
            del saved[key]
        path.write_text(yaml.safe_dump(saved))
        assert train(f"resume={job.folder}", "trainer.steps=3").status == 0

    def test_with_a_change_that_its_part_refuses(self, train, capsys):
        job = train("model=linear")
        for override, message in {
            "trainer.steps=soon": "trainer.steps=soon: input should be a valid integer",
            "device=tpu": "device=tpu: input should be 'auto', 'cpu' or 'cuda'",
            "+data.tests=[]": "data.tests=[]: seqlab.data.synthetic.Regression has no setting 'tests'",
        }.items():
            assert train(f"resume={job.folder}", override).status == 2
            assert message in capsys.readouterr().err

    def test_that_is_refused_leaves_the_run_as_it_was(self, train):
        job = train("trainer.steps=2")
        before = (job.folder / "config.yaml").read_text()
        assert train(f"resume={job.folder}", "trainer.epochs=1").status == 2
        assert (job.folder / "config.yaml").read_text() == before
        assert job.summary["status"] == "completed"
        assert train(f"resume={job.folder}", "trainer.steps=3").status == 0

    def test_a_fresh_run_leaves_another_alone(self, train, capsys):
        job = train("seed=1")
        before = final_weights(job.folder)
        assert train("seed=2").status == 2
        assert "holds a run already" in capsys.readouterr().err
        after = final_weights(job.folder)
        assert all(torch.equal(before[name], after[name]) for name in before)
