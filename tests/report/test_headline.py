"""Data that are judged by accuracy: it stands first with its interval, it orders the rows, and chance is named."""

import csv

import pytest
from made_runs import first_comparison, grid_sweep, made_run

from seqlab.report import write_tables
from seqlab.report.compare import compare
from seqlab.report.page.payload import payload
from seqlab.report.rows import chance_of
from seqlab.report.tables import tables_of

ACCURACIES = {"mamba": (0.90, 0.95, 0.94), "transformer": (0.999, 0.999, 0.990), "lstm": (0.5, 0.5, 0.5)}
"""On test; validation has a tenth less. Losses are the other way round."""


@pytest.fixture
def comparison():
    runs = []
    for model, values in ACCURACIES.items():
        for seed, value in enumerate(values, 1):
            run = made_run(model, "mqar", seed, loss_change=1.0 - value)
            run.summary["test"] = {"loss": value, "accuracy": value}
            run.summary["best_validation"] = {"loss": 5.0 + value, "accuracy": value - 0.1}
            run.summary["data_description"] = "mqar: 9 examples, seed 0, chance 0.00024"
            runs.append(run)
    return compare(runs)


def test_accuracy_stands_first_with_its_interval_and_the_best_on_top(comparison):
    results = tables_of(comparison)[0]
    assert results.headings[3:] == ["best validation accuracy", "test accuracy", "95 % interval", "test loss"]
    assert [line[0] for line in results.lines] == ["transformer", "mamba", "lstm"]
    half = 4.30265 * 0.0264575 / 3**0.5  # Student's for three seeds, and the deviation of 0.90, 0.95, 0.94
    assert results.lines[1][3:6] == ["0.830", "0.930 ± 0.026", f"[{0.93 - half:.3f}, {0.93 + half:.3f}]"]


def test_the_interval_of_a_share_ends_at_one(comparison, tmp_path):
    results = tables_of(comparison)[0]
    assert results.lines[0][5] == "[0.9831, 1.0000]"
    write_tables.write(comparison, tmp_path)
    lines = (tmp_path / "comparison.csv").read_text(encoding="utf-8").splitlines()
    rows = {row["model"]: row for row in csv.DictReader(lines)}
    assert float(rows["transformer"]["test_accuracy_high"]) == 1.0
    assert float(rows["transformer"]["test_loss_high"]) > 1.0


def test_differences_are_of_accuracy_and_more_is_better(comparison):
    found = {(one.first.label, one.second.label): one for one in comparison.differences}
    one = found["transformer", "lstm"]
    assert one.metric == "test accuracy"
    assert one.estimate.mean == pytest.approx(0.5 - 0.996)
    assert one.verdict == "transformer is better"
    assert found["transformer", "mamba"].verdict == "no difference shown"


def test_rows_and_differences_stand_with_those_of_the_same_examples():
    runs = grid_sweep()
    for run in runs:
        run.summary["data_fingerprint"] = f"{-run.config['data']['length']}"
    comparison = compare(runs)
    settings = [(row.group.settings["data.length"], -row.validation["accuracy"].mean) for row in comparison.rows]
    assert settings == sorted(settings)
    lengths = [one.first.settings["data.length"] for one in comparison.differences]
    assert lengths == sorted(lengths)


def test_chance_is_named_once(comparison):
    text = write_tables.markdown(comparison)
    assert text.count("(chance): 0.00024.") == 1
    assert "(chance): 0.00024." in write_tables.latex(comparison)
    assert "(chance): 0.00024." in payload(comparison)["note"]
    assert "chance)" not in write_tables.markdown(compare(first_comparison((1,))))


@pytest.mark.parametrize(
    ("summary", "chance"),
    [
        ({"chance": 0.5, "data_description": "mqar: seed 0, chance 0.1"}, 0.5),
        ({"data_description": "mqar: seed 0, chance 1.5e-05"}, 1.5e-05),
        ({"data_description": "regression: seed 0", "chance": None}, None),
        ({}, None),
    ],
)
def test_chance_is_the_summary_s_figure_or_what_an_older_one_says_in_words(summary, chance):
    assert chance_of(summary) == chance


def test_the_page_has_the_same_columns(comparison):
    table = payload(comparison)["table"]
    assert table["headings"][3:9] == [
        *("best validation accuracy", "test accuracy", "95 % interval"),
        *("best validation loss", "test loss", "95 % interval"),
    ]
    assert table["headings"].count("test accuracy") == 1
    assert table["lines"][0][5] == ("[0.9831, 1.0000]", pytest.approx(0.9831, abs=1e-4))
