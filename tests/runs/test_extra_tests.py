"""Test sets beyond training, from the command line to the table; and what became of targets."""

import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from hydra.utils import instantiate

from seqlab.errors import Interrupted
from seqlab.models.counting import count_parameters
from seqlab.runs import extra_tests
from seqlab.runs.targets import check_names
from seqlab.training import progress
from support import CONF, Echo, compose_config

SMALL = [
    "data=induction_heads",
    "trainer=smoke",
    "trainer.further_tests=true",
    "trainer.steps=2",
    "data.length=16",
    "data.n_validation=8",
    "data.n_test=8",
    "data.n_further=4",
    "data.tests=[{length: 8},{length: 64},{length: 9000}]",
    "size.d_model=16",
    "size.d_ff=16",
    "size.n_heads=2",
]


@pytest.fixture
def targets(tmp_path):
    """The arguments that bring targets, whose keys no command line can hold."""

    def write(target):
        folder = tmp_path / "conf" / "experiment"
        folder.mkdir(parents=True)
        text = f"# @package _global_\n# For a test\n{yaml.safe_dump({'target': target}, sort_keys=False)}"
        (folder / "with_targets.yaml").write_text(text)
        return [f"--config-dir={tmp_path / 'conf'}", "experiment=with_targets"]

    return write


def test_each_is_measured_or_says_why_not(train, targets, capsys):
    asked = {
        "further_tests.length=8.accuracy": {"at_least": 0.0},
        "further_tests.length=64.accuracy": {"at_least": 0.0},
        "test.accuracy": {"at_most": -1.0, "published": 1.0},
    }
    job = train(*targets(asked), "model=transformer_vanilla", *SMALL, small=False)
    assert job.status == 0
    found = job.summary["further_tests"]
    assert list(found) == ["length=8", "length=64", "length=9000"]
    assert 0 <= found["length=8"]["accuracy"] <= 1
    assert "a sequence of 64 is past the 16 positions that this model has" in found["length=64"]["error"]
    assert [(one["metric"], one["reached"]) for one in job.summary["targets"]] == [
        ("further_tests.length=8.accuracy", True),
        ("further_tests.length=64.accuracy", None),
        ("test.accuracy", False),
    ]
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "accuracy at length" in text
    assert "64: – 9000: –" in text  # noqa: RUF001
    assert "test.accuracy <= -1: missed" in text
    assert job.summary["further_seconds"] > 0
    assert re.search(r"s in training steps\), then [\d.]+ s in further tests", text)


def test_a_recurrent_model_is_measured_at_any_length(train):
    job = train("model=mamba", *SMALL, small=False)
    found = job.summary["further_tests"]
    assert {name: list(row) for name, row in found.items()} == {name: ["loss", "accuracy"] for name in found}
    distances = job.summary["test_slices"]["distance"]
    assert sum(row["count"] for row in distances.values()) == 8
    mean = sum(row["count"] * row["accuracy"] for row in distances.values()) / 8
    assert mean == pytest.approx(job.summary["test"]["accuracy"])
    assert {record["split"] for record in job.records} == {"train", "validation", "test"}
    assert 0 <= job.summary["data_wait_share"] <= 1
    assert job.summary["data_description"].endswith(f"chance {job.summary['chance']:.2g}")


def test_a_completed_run_is_measured_on_further_tests_that_come_later(train, targets, capsys, caplog):
    """Resumed with other tests, more examples and another target: the same weights, and what else was measured."""
    job = train(*targets({"further_tests.length=8.loss": {"at_least": 0.0}}), "model=linear", *SMALL, small=False)
    before = job.summary
    again = train(f"resume={job.folder}", "+data.tests=[{length: 8},{length: 24}]", "+data.n_further=6").summary
    assert list(again["further_tests"]) == ["length=8", "length=24"]
    assert again["further_tests"]["length=8"]["loss"] != before["further_tests"]["length=8"]["loss"]
    assert (again["test"], again["best_validation"]) == (before["test"], before["best_validation"])
    assert (again["steps"], again["data_fingerprint"]) == (before["steps"], before["data_fingerprint"])
    assert again["targets"][0]["reached"] is True
    capsys.readouterr()
    assert train(f"resume={job.folder}", "+data.tests=[{length: 24}]").status == 2
    assert "this data has no further test 'length=8'.\nDid you mean 'length=24'?" in capsys.readouterr().err
    last = train(f"resume={job.folder}", "+data.tests=[{length: 24}]", "target=null").summary
    assert list(last["further_tests"]) == ["length=24"] and last["targets"] == []
    assert len(yaml.safe_load((job.folder / "config.yaml").read_text())["data"]["tests"]) == 1
    assert train(f"resume={job.folder}", "data.tests=[{length: 24}]").status == 2
    error = capsys.readouterr().err or caplog.messages[-1]  # before Hydra sets up its own log, or after
    assert "Write '+data.tests=[{length: 24}]'." in error


def test_a_smoke_test_reads_little_and_says_what_it_leaves_out(train, capsys, caplog):
    job = train("trainer=smoke", "data=induction_heads", small=False)
    names = [f"length={2**i}" for i in range(6, 15)]
    assert job.summary["further_tests_left_out"] == names and job.summary["further_tests"] == {}
    assert sum(row["count"] for row in job.summary["test_slices"]["distance"].values()) == 2 * 8  # of 2,048
    assert job.summary["evaluation_batches"] == 2
    said = (job.folder / "train.log").read_text()
    assert f"Left out (trainer.further_tests=false): further tests {', '.join(names)}." in said
    table = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "left out (trainer.further_tests=false): length=64, length=128" in table
    assert "at most 2 batches of validation and test (trainer.evaluation_batches)" in table
    asked = ["trainer.further_tests=true", "+data.tests=[{length: 32}]"]
    again = train(f"resume={job.folder}", *asked).summary
    assert list(again["further_tests"]) == ["length=32"] and again["further_tests_left_out"] == []
    assert "Further test 1 of 1: length=32." in (job.folder / "train.log").read_text()


def test_a_run_says_how_far_it_is_where_there_is_no_terminal(train, monkeypatch):
    """Without waiting; the next pause is twice as long, and so on."""
    monkeypatch.setattr(progress, "FIRST_LINE", 0.0)
    job = train("model=linear", *SMALL, "data.tests=[{length: 8}]", small=False)
    said = (job.folder / "train.log").read_text()
    for line in ("validation: batch 1 of 1", "training: step 1 of 2, loss ", "test: batch 1 of 1", "length=8: batch 1"):
        assert line in said
    monkeypatch.setattr(progress, "FIRST_LINE", 1000.0)
    assert (
        "step 1 of 2" not in (train("model=linear", *SMALL, small=False, folder="b").folder / "train.log").read_text()
    )


def test_their_time_is_no_part_of_the_wall_time(train, monkeypatch, capsys):
    before = []

    def slow(trainer):
        before.append(trainer.wall_seconds)
        time.sleep(0.1)
        return {}

    monkeypatch.setattr(extra_tests, "measure", slow)
    assert train("model=linear", *SMALL, small=False).summary["further_seconds"] == 0
    assert "further tests" not in capsys.readouterr().out
    monkeypatch.setattr(extra_tests, "measure", lambda trainer: slow(trainer) or {"length=8": {"loss": 1.0}})
    summary = train("model=linear", *SMALL, small=False, folder="measured").summary
    assert summary["further_seconds"] >= 0.1
    assert summary["wall_seconds"] <= before[1]


def test_one_that_ends_the_run_leaves_the_results_of_the_test_split(train, monkeypatch):
    def stopped(trainer):
        raise Interrupted(signal.SIGTERM, 2, trainer.folder)

    monkeypatch.setattr(extra_tests, "measure", stopped)
    summary = train("model=mamba", *SMALL, small=False).summary
    assert summary["status"] == "interrupted"
    assert summary["test"]["loss"] > 0 and summary["further_tests"] == {} and summary["further_seconds"] == 0


@pytest.mark.parametrize(
    ("path", "rule", "message"),
    [
        ("test.acuracy", {}, "this data has no metric 'acuracy'.\nDid you mean 'accuracy'?"),
        ("further_tests.length=46.loss", {}, "no further test 'length=46'.\nDid you mean 'length=64'?"),
        ("test_slices.pairs.4.loss", {}, "no difficulty among its slices 'pairs'.\nThere are: distance."),
        ("test.loss", {"models": ["mambo"]}, "target.test.loss.models=mambo: is no option of model.\nDid you mean 'm"),
    ],
)
def test_a_mistyped_target_is_refused_before_anything_is_trained(train, targets, capsys, path, rule, message):
    job = train(*targets({path: {"at_least": 1.0} | rule}), *SMALL, small=False)
    assert job.status == 2
    assert message in capsys.readouterr().err
    assert not (job.folder / "metrics.jsonl").exists()


def test_targets_for_models_whose_names_a_person_gave(train, targets):
    rule = {"at_least": 0.0, "models": ["the wide one"]}
    job = train(*targets({"test.loss": rule}), "name='the wide one'", *SMALL, small=False)
    assert job.summary["targets"][0]["reached"] is True


def test_the_points_of_an_experiment_may_have_tests_of_their_own():
    with (CONF / "experiment" / "induction_heads.yaml").open() as file:
        experiment = yaml.safe_load(file)
    points = [point.split() for point in experiment["hydra"]["sweeper"]["points"]]
    composed = [compose_config("experiment=induction_heads", *point) for point in points]
    assert len({len(cfg.data.tests) for cfg in composed}) == 2
    for cfg in composed:
        check_names(experiment["target"], instantiate(cfg.data, _convert_="all"), cfg.name)


class OneTest:
    """A trainer whose further tests end as they are told."""

    def __init__(self, endings):
        self.endings, self.device, self.world = endings, torch.device("cpu"), SimpleNamespace(size=1)
        self.config = SimpleNamespace(further_tests=True)
        self.data = type("Data", (), {"further_tests": tuple(endings)})()

    def progress(self, description):
        from contextlib import nullcontext

        return nullcontext()

    def evaluate(self, name, bar):
        ending = self.endings[name]
        if isinstance(ending, BaseException):
            raise ending
        return type("Evaluation", (), {"metrics": ending})()


def test_one_too_large_for_the_memory_costs_the_others_nothing(caplog):
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    refused = RuntimeError("a kernel that takes no more")
    endings = {"length=8": {"loss": 1.0}, "length=64": full, "length=32": refused, "length=16": {"loss": 2.0}}
    found = extra_tests.measure(OneTest(endings))
    assert found["length=32"] == {"error": "a kernel that takes no more"}
    assert found["length=8"] == {"loss": 1.0}
    assert found["length=16"] == {"loss": 2.0}
    assert found["length=64"]["error"].startswith("memory=the GPU's: there is not enough for another 20.00 GiB")
    assert "Further test length=64 cannot be measured" in caplog.text


@pytest.mark.parametrize("ending", [Interrupted(signal.SIGTERM, 3, Path("run")), ZeroDivisionError("a bug")])
def test_any_other_error_is_raised(ending):
    with pytest.raises(type(ending)):
        extra_tests.measure(OneTest({"length=8": ending}))


def test_data_without_further_tests():
    trainer = OneTest({})
    trainer.data = Echo()
    assert extra_tests.measure(trainer) == {}


class Experts(torch.nn.Linear):
    def inactive_parameters(self):
        return 5


def test_active_parameters():
    model = torch.nn.Sequential(torch.nn.Embedding(3, 4), Experts(4, 4), Experts(4, 4))
    found = count_parameters(model)
    assert found["parameters"] == 12 + 2 * 20
    assert found["active_parameters"] == found["parameters"] - 10
    assert found["parameters_without_embeddings"] == 40
