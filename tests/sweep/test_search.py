"""Hyper-parameter search, through the real entry point: what it found is read from the files it left."""

import json
import re
import signal
import statistics
import sys
from pathlib import Path

import pytest

import forks
from support import Job, compose_config, options

optuna = pytest.importorskip("optuna")

from hydra.core.override_parser.overrides_parser import OverridesParser  # noqa: E402
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution  # noqa: E402

from seqlab.errors import UserError  # noqa: E402
from seqlab.sweep.search.pruning import storage_in  # noqa: E402
from seqlab.sweep.search.space import Arm, dimension  # noqa: E402
from seqlab.sweep.search.studies import Study  # noqa: E402

RATES = "optimizer.lr=tag(log,interval(1e-4,1e-1))"
LONG = ("trainer.steps=8", "trainer.evaluate_every=2", "schedule=constant", "schedule.warmup=0")


class Search:
    """A finished search."""

    def __init__(self, job: Job):
        self.folder, self.status = job.folder, job.status

    @property
    def found(self) -> dict:
        return json.loads((self.folder / "search.json").read_text())

    @property
    def studies(self) -> dict[str, dict]:
        return {study["name"]: study for study in self.found["studies"]}

    def job(self, trial: dict) -> Job:
        return Job(self.folder / trial["folder"], 0)


@pytest.fixture
def search(train, tmp_path):
    """Run ``python train.py -m search=optuna`` in this process; trials and overrides."""

    def run(*overrides: str, trials: int, folder: str = "search") -> Search:
        target = tmp_path / folder
        job = train(
            "hydra.mode=MULTIRUN",
            "search=optuna",
            f"hydra.sweeper.trials={trials}",
            f"hydra.sweep.dir={target}",
            *overrides,
            folder=folder,
        )
        return Search(job)

    return run


def arguments_of(train, folder: Path, *overrides: str, trials: int) -> list[str]:
    return [
        "-m",
        *train.small,
        "search=optuna",
        f"hydra.sweeper.trials={trials}",
        f"hydra.sweep.dir={folder}",
        *overrides,
    ]


def test_every_architecture_has_the_same_trials_and_validation_selects(search):
    found = search(
        "model=linear,transformer", "model.mixers.attention.bias=true,false", "optimizer.lr=1e-2,1e-3", trials=2
    )
    assert found.status == 0
    assert list(found.studies) == ["linear", "transformer"]
    for name, study in found.studies.items():
        assert [trial["status"] for trial in study["trials"]] == ["completed"] * 2
        for trial in study["trials"]:
            summary = found.job(trial).summary
            assert (summary["model"], summary["best_validation_loss"]) == (name, trial["validation"])
            part = {"model.mixers.attention.bias"} if name == "transformer" else set()  # searched only where it is
            assert trial["settings"].keys() == {"optimizer.lr"} | part
        best = min(study["trials"], key=lambda trial: found.job(trial).summary["best_validation_loss"])
        assert study["best"]["folder"] == best["folder"]
        assert study["best"]["test"] == found.job(best).summary["test"]
    began = {path.parent.name: path.stat().st_mtime_ns for path in found.folder.glob("*/config.yaml")}
    assert sorted(began, key=began.get) == ["linear_0", "transformer_0", "linear_1", "transformer_1"]


def test_a_trial_that_is_behind_is_pruned(search, capsys):
    """Exactly where its validation loss is above the median of those that came as far, and never before it may be."""
    found = search("model=linear", RATES, *LONG, trials=9)
    assert found.status == 0
    trials = found.studies["linear"]["trials"]
    pruned = [trial for trial in trials if trial["status"] == "pruned"]
    assert pruned
    assert len(pruned) + sum(trial["status"] == "completed" for trial in trials) == 9
    for trial in pruned:
        job = found.job(trial)
        losses = {r["step"] // 2: r["loss"] for r in job.records if r["split"] == "validation"}
        assert losses == {int(number): loss for number, loss in trial["validations"].items()}
        last = max(losses)
        others = [
            other["validations"][str(last)] for other in trials[: trial["number"]] if other["status"] == "completed"
        ]
        assert trial["number"] >= 4
        assert last >= 2
        assert min(losses.values()) > statistics.median(others)
        assert (job.summary["status"], job.summary["steps"]) == ("pruned", 2 * last)
        assert "test" not in job.summary
    out = capsys.readouterr().out
    assert "pruned" in out
    assert "The best of 9 trials each" in out


def test_the_same_command_goes_on_after_a_kill(train, search, tmp_path):
    """kill -9 within a trial, then the same command: the settings and losses of a search that nobody touched."""
    overrides = ("model=linear,mlp", RATES, *LONG)
    whole = search(*overrides, trials=3, folder="whole")
    folder = tmp_path / "killed"
    arguments = arguments_of(train, folder, *overrides, trials=3)
    status, said = forks.finish(tmp_path / "screen", forks.train_until, "mlp_1", 5, *arguments)
    assert status == -signal.SIGKILL, said
    before = {path: path.stat().st_mtime_ns for path in folder.glob("linear_*/summary.json")}
    assert len(before) == 2
    again = search(*overrides, trials=3, folder="killed")
    assert again.status == 0
    assert again.found == whole.found
    assert {path: path.stat().st_mtime_ns for path in before} == before  # what was finished is left alone


def test_more_trials_take_a_search_further(search):
    first = search("model=linear", RATES, trials=2).studies["linear"]["trials"]
    further = search("model=linear", RATES, trials=3)
    trials = further.studies["linear"]["trials"]
    assert trials[:2] == first
    assert len(trials) == 3
    assert trials == search("model=linear", RATES, trials=3, folder="at once").studies["linear"]["trials"]


def test_a_trial_that_fails_counts_once(search, capsys):
    """It leaves the others alone and is said; the same command tries another in its place."""
    found = search("model=linear", "trainer.batch_size=choice(8,64)", trials=4)
    count = [trial["status"] for trial in found.studies["linear"]["trials"]]
    assert found.status == 1
    assert len(count) == 4
    assert set(count) == {"completed", "failed"}
    assert "trainer.batch_size=64: " in capsys.readouterr().out
    again = search("model=linear", "trainer.batch_size=choice(8,64)", trials=4)
    assert len(again.studies["linear"]["trials"]) == 4 + count.count("failed")


def test_workers_share_a_search(search):
    """Two processes at a time report to one file, and every architecture has its trials."""
    found = search("model=linear,mlp", RATES, *LONG, "launcher=joblib", trials=2)
    assert found.status == 0
    for study in found.studies.values():
        assert [trial["status"] for trial in study["trials"]] == ["completed"] * 2
        assert all(len(trial["validations"]) == 4 for trial in study["trials"])


def test_two_searches_share_a_study_by_a_journal(search, tmp_path):
    """Each has its folder and the trials that it made; the number of trials is that of both, and both know the best."""
    shared = ("model=linear", RATES, f"hydra.sweeper.storage={tmp_path / 'journal'}")
    first = search(*shared, trials=1, folder="one")
    second = search(*shared, trials=2, folder="two")
    assert (first.status, second.status) == (0, 0)
    trials = second.studies["linear"]["trials"]
    assert [Path(trial["folder"]).parent for trial in trials] == [first.folder, second.folder]
    assert trials[0] == first.studies["linear"]["trials"][0]
    assert trials[0]["settings"] != trials[1]["settings"]
    losses = [Job(Path(trial["folder"]), 0).summary["best_validation_loss"] for trial in trials]
    best = second.studies["linear"]["best"]
    assert best["validation"] == min(losses)
    assert best["test"] == Job(Path(best["folder"]), 0).summary["test"]
    assert [len(list(found.folder.glob("*/summary.json"))) for found in (first, second)] == [1, 1]


def test_a_search_leaves_the_running_trials_of_another_alone(tmp_path):
    arm = Arm("linear", ["model=linear"], {"optimizer.lr": FloatDistribution(1e-4, 1e-1)})
    settings = {"trials": 3, "seed": 1, "sampler": {"_target_": "optuna.samplers.RandomSampler"}}
    storage = storage_in(tmp_path, str(tmp_path / "journal"))
    ours, theirs = (Study(arm, storage, settings, search) for search in ("a", "b"))
    begun = [ours.next(), theirs.next()]
    assert [number for _, number, _ in begun] == [0, 1]
    assert (ours.left, theirs.left) == (1, 1)
    again = Study(arm, storage_in(tmp_path, str(tmp_path / "journal")), settings, "b")  # after a kill
    assert [trial.number for trial in again.cut_off] == [1]
    assert again.next()[2] == begun[1][2]
    ours.optuna.ask()  # where a search was killed, or is at this moment: no values yet, and nobody's trial
    assert (ours.left, Study(arm, storage, settings, "a").left, len(Study(arm, storage, settings, None).cut_off)) == (
        1,
        2,
        0,
    )
    assert ours.results(tmp_path)["trials"][-1]["settings"] == {}


REFUSED = {
    "no such database": (
        [RATES, "hydra.sweeper.storage=mysql://me:secret@nowhere/x"],
        r"storage=mysql://me:\*\*\*@nowhere",
    ),
    "several seeds": (["seed=1,2", RATES], r"seed=.*no setting to search"),
    "nothing to search": (["model=mlp,linear"], r"search=mlp: nothing is left to search"),
    "no trials": ([RATES, "hydra.sweeper.trials=0"], r"hydra\.sweeper\.trials=0: must be a whole number, 1 or more"),
    "unknown setting": (["optimizer.lrr=interval(0,1)"], r"optimizer\.lrr=.*'optimizer\.lr'"),
    "upside down": (["optimizer.lr=interval(1,0)"], r"optimizer\.lr=interval\(1,0\): "),
    "log of zero": (["optimizer.lr=tag(log,interval(0,1))"], r"optimizer\.lr=.*log"),
}


@pytest.mark.parametrize(("overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_mistakes_get_a_message(search, capsys, caplog, overrides, message):
    found = search(*overrides, trials=2)
    error = capsys.readouterr().err or caplog.messages[-1]
    assert found.status == 2, error
    assert re.search(message, error, re.DOTALL)
    assert "Traceback" not in error
    assert not list(found.folder.glob("*_0"))


def test_another_search_in_the_same_folder_is_refused(search, capsys):
    search("model=linear", RATES, trials=1)
    assert search("model=linear", "optimizer.lr=1e-3,1e-2", trials=1).status == 2
    assert "over other settings" in capsys.readouterr().err


def test_optuna_is_not_installed(search, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert search(RATES, trials=1).status == 2
    assert "pip install 'seqlab[search]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        ("interval(0.1,0.5)", FloatDistribution(0.1, 0.5)),
        ("interval(1,8)", FloatDistribution(1, 8)),
        ("int(interval(1,8))", IntDistribution(1, 8)),
        ("tag(log,interval(1e-4,1))", FloatDistribution(1e-4, 1, log=True)),
        ("tag(log,int(interval(8,64)))", IntDistribution(8, 64, log=True)),
        ("range(1,10,3)", IntDistribution(1, 7, step=3)),
        ("range(4)", IntDistribution(0, 3)),
        ("range(0,1,0.25)", CategoricalDistribution(["0.0", "0.25", "0.5", "0.75"])),
        ("choice(8,16)", CategoricalDistribution(["8", "16"])),
        ("[0.9,0.95],[0.8,0.9]", CategoricalDistribution(["[0.9,0.95]", "[0.8,0.9]"])),
    ],
)
def test_hydras_sweeps_as_distributions(sweep, expected):
    assert dimension(OverridesParser.create().parse_override(f"key={sweep}")) == expected


def test_a_range_that_runs_backwards_is_refused():
    with pytest.raises(UserError, match="interval"):
        dimension(OverridesParser.create().parse_override("key=interval(2,1)"))


@pytest.mark.parametrize("name", [name for name in options("search") if name.startswith("optuna")])
def test_every_search_has_parts_that_optuna_builds(name):
    from hydra.core.hydra_config import HydraConfig
    from hydra.utils import instantiate

    compose_config(f"search={name}")
    sweeper = HydraConfig.get().sweeper
    assert isinstance(instantiate(sweeper.sampler, seed=1), optuna.samplers.BaseSampler)
    assert isinstance(instantiate(sweeper.pruner), optuna.pruners.BasePruner)
