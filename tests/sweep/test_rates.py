"""A search of learning rates: equal budgets, a grid that widens for all, and its outcome from the command line."""

import json
import re

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from seqlab.config.overrides import compose
from seqlab.errors import UserError
from seqlab.jsonio import dump
from seqlab.sweep.display import rates_table
from seqlab.sweep.entries import Entry
from seqlab.sweep.rates import RateSearch, check, first_round, name_of
from support import run_sweep


def settings(job):
    return {key: value for key, _, value in (override.partition("=") for override in job)}


def end(sweep, jobs, loss_of):
    """Let jobs end as ``loss_of(model, rate)`` says, a status or a loss."""
    for job in jobs:
        name = ",".join(job)
        ending = loss_of(settings(job)["model"], float(settings(job)["optimizer.lr"]))
        Entry(0, name, job).end(sweep, ending if isinstance(ending, str) else "completed")
        if not isinstance(ending, str):
            dump(sweep / name / "summary.json", {"best_validation_loss": ending, "test": {"loss": -ending}})


def searched(sweep, loss_of, rates, most=9, seeds=(), models=("a", "b")):
    """A search: its jobs by round, and its outcome."""
    jobs = [[f"model={m}", f"optimizer.lr={rate}", *seeds[:1]] for m in models for rate in rates]
    search, rounds = RateSearch(sweep, jobs, seeds, most), []
    while jobs:
        rounds.append(jobs)
        end(sweep, jobs, loss_of)
        jobs, _ = search.next_round()
    search.write()
    return rounds, json.loads((sweep / "rates.json").read_text())


def parabola(best):
    """A loss with its least value at a rate of each model."""
    return lambda model, rate: abs(rate / best[model] - 1) if rate >= best[model] else abs(best[model] / rate - 1)


def test_a_best_rate_within_the_grid_needs_no_more(tmp_path):
    rounds, found = searched(tmp_path, parabola({"a": 0.1, "b": 0.01}), [0.001, 0.01, 0.1, 1.0])
    assert [len(jobs) for jobs in rounds] == [8]
    assert [(m["name"], m["rate"], m["below"], m["above"]) for m in found["models"]] == [
        ("a", 0.1, 2, 1),
        ("b", 0.01, 1, 2),
    ]
    assert [run["test"] for model in found["models"] for run in model["chosen"]] == [0, 0]


def test_a_best_rate_at_an_end_widens_the_grid_for_every_model(tmp_path):
    rounds, found = searched(tmp_path, parabola({"a": 1e-4, "b": 0.1}), [0.01, 0.1, 1.0])
    added = [sorted({float(settings(job)["optimizer.lr"]) for job in jobs}) for jobs in rounds[1:]]
    assert added == [[0.001], [0.0001], [1e-05]]
    assert all(len(jobs) == 2 for jobs in rounds[1:])
    assert [(m["rate"], m["below"]) for m in found["models"]] == [(1e-4, 1), (0.1, 4)]
    assert [len(m["on_grid"]) for m in found["models"]] == [6, 6]


def test_the_grid_is_never_wider_than_its_limit(tmp_path):
    rounds, found = searched(tmp_path, lambda model, rate: rate if model == "a" else 1 / rate, [0.1, 1.0], most=3)
    assert sum(map(len, rounds)) == 2 * 3
    assert found["rates"] == [0.01, 0.1, 1.0]
    assert [(m["below"], m["above"]) for m in found["models"]] == [(0, 2), (2, 0)]


def test_what_diverged_is_the_worst_and_lower_rates_are_tried(tmp_path):
    _, found = searched(tmp_path, lambda model, rate: "diverged" if rate > 0.01 else 1 / rate, [0.1, 1.0])
    assert found["rates"] == [0.001, 0.01, 0.1, 1.0]
    assert {m["rate"] for m in found["models"]} == {0.01}
    assert [run["status"] for run in found["models"][0]["on_grid"]] == ["completed"] * 2 + ["diverged"] * 2


def test_a_failed_job_leaves_the_rest_alone_and_none_is_chosen_for_its_model(tmp_path):
    loss = parabola({"b": 0.1})
    rounds, found = searched(tmp_path, lambda m, rate: "failed" if m == "a" else loss(m, rate), [0.01, 0.1, 1.0])
    assert len(rounds) == 1
    assert [(m["rate"], m["chosen"] != []) for m in found["models"]] == [(None, False), (0.1, True)]


def test_a_models_name_begins_with_the_model():
    assert name_of(["size.n_heads=2", "model.pattern=[gru,mamba]", "model=hybrid"], ["model.pattern", "model"]) == (
        "hybrid model.pattern=[gru,mamba]"
    )


def test_nothing_is_decided_while_a_job_has_not_ended(tmp_path):
    rounds, _ = searched(tmp_path, lambda m, rate: "interrupted" if rate == 1 else rate, [0.1, 1.0])
    assert len(rounds) == 1


def test_further_seeds_at_the_chosen_rate_alone(tmp_path):
    best = {"a": 0.1, "b": 0.01}
    seeds = ["seed=1", "seed=2", "seed=3"]
    rounds, found = searched(tmp_path, parabola(best), [0.001, 0.01, 0.1, 1.0], seeds=seeds)
    assert {settings(job)["seed"] for job in rounds[0]} == {"1"}
    further = [settings(job) for job in rounds[1]]
    assert [(s["model"], s["seed"]) for s in further] == [("a", "2"), ("b", "2"), ("a", "3"), ("b", "3")]
    assert all(float(s["optimizer.lr"]) == best[s["model"]] for s in further)
    assert [len(m["chosen"]) for m in found["models"]] == [3, 3]


def test_each_model_has_a_grid_around_its_own_rate():
    """Which in this experiment follows from the names of the model and of the size."""
    given = OverridesParser.create().parse_overrides(
        ["experiment=equal_compute", "rung=w64", "model=mamba,transformer", "seed=1,2"]
    )
    jobs, seeds = first_round(None, given, lambda job: compose(*job, with_hydra=True), rates=3, ratio=2)
    found = {}
    for job in map(settings, jobs):
        found.setdefault(job["model"], []).append((float(job["optimizer.lr"]), job["seed"]))
    assert found == {
        "mamba": [(0.005, "1"), (0.01, "1"), (0.02, "1")],
        "transformer": [(0.0025, "1"), (0.005, "1"), (0.01, "1")],
    }
    assert seeds == ["seed=1", "seed=2"]


def test_grids_of_their_own_widen_together(tmp_path):
    grids = {"a": [0.01, 0.1, 1.0], "b": [0.02, 0.2, 2.0]}
    jobs = [[f"model={model}", f"optimizer.lr={rate}"] for model, grid in grids.items() for rate in grid]
    search, loss_of = RateSearch(tmp_path, jobs, [], most=9), parabola({"a": 10.0, "b": 0.2})
    ended, notes = [], []
    while jobs:
        end(tmp_path, jobs, loss_of)
        ended += [(settings(job)["model"], float(settings(job)["optimizer.lr"])) for job in jobs]
        jobs, said = search.next_round()
        notes += said
    assert ended[6:] == [("a", 10.0), ("b", 20.0), ("a", 100.0), ("b", 200.0)]
    assert len(notes) == 2 and all(note.endswith(": a rate more there, for every model.") for note in notes)
    search.write()
    found = json.loads((tmp_path / "rates.json").read_text())
    assert found["rates"] is None
    assert [(one["rate"], one["below"], one["above"]) for one in found["models"]] == [(10.0, 3, 1), (0.2, 1, 3)]
    table = rates_table(found)
    assert table.title == "The best of 5 learning rates each, around its own, by validation loss"
    assert list(table.columns[2].cells) == ["1 below 100.0", "1 above 0.02"]


def test_from_the_command_line(tmp_path, capsys):
    """A diverged run is no failure; the grid goes below it; the same command again trains nothing."""
    command = "search=rates", "model=linear", "seed=1,2", "schedule=constant", "optimizer.lr=1,1e30"
    command = *command, "trainer.max_skipped=1", "hydra.sweeper.most=3"
    assert run_sweep(tmp_path, *command) == 0
    out, err = capsys.readouterr()
    found = json.loads((tmp_path / "rates.json").read_text())
    (model,) = found["models"]
    assert found["rates"] == [1e-30, 1.0, 1e30]
    assert "1e-30 too, for every model." in err
    assert [run["status"] for run in model["on_grid"]] == ["completed", "completed", "diverged"]
    assert model["rate"] == 1e-30
    assert len(model["chosen"]) == 2
    for run in model["chosen"]:
        link = tmp_path / "chosen" / run["folder"]
        assert link.resolve() == tmp_path / run["folder"]
        summary = json.loads((link / "summary.json").read_text())
        assert (summary["best_validation_loss"], summary["test"]["loss"]) == (run["validation"], run["test"])
    assert re.search(r"linear │ 1e-30 │ at 1e-30 +│ 0.\d+ ± 0.\d+ │ 0.\d+ ± 0.\d+ │", out)
    assert "failed" not in out
    weights = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/checkpoints/*/*.safetensors")}
    assert weights and run_sweep(tmp_path, *command) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/checkpoints/*/*.safetensors")} == weights
    assert json.loads((tmp_path / "rates.json").read_text()) == found


@pytest.mark.parametrize("ratio", [1, 1.0001, "wide", None])
def test_a_ratio_that_makes_no_grid(ratio):
    with pytest.raises(UserError, match=rf"hydra\.sweeper\.ratio={ratio}: must be a number from 1.01 to 1000"):
        check(rates=5, ratio=ratio, most=9)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.lr=1e-3,abc"], r"optimizer\.lr=1e-3,abc: is no grid"),
        (["hydra.sweeper.points=['optimizer.lr=1e-4','optimizer.lr=1']"], r"optimizer\.lr=0\.0001, 1\.0: .*\nList"),
        (["optimizer.lr=null"], r"optimizer\.lr=null: must be a number above 0\.\nGive it one"),
        (["hydra.sweeper.points=['seed=1,2']"], r"hydra\.sweeper\.points=seed=1,2: .*\nSay seed=1,2 on the command"),
        (["experiment=mqar", "search=optuna"], r"search=optuna: .*hydra\.sweeper\.points.*\nTake search=rates"),
    ],
)
def test_what_is_no_grid_is_refused(tmp_path, capsys, overrides, message):
    assert run_sweep(tmp_path / "sweep", "search=rates", "model=linear", *overrides) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "sweep").exists()
