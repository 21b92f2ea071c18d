"""Accuracy against what makes a probe hard: gathered over seeds, in tables, in the picture and on the page."""

import csv

import pytest
from made_runs import first_comparison, made_run, probe_comparison

from seqlab.report import plots, write_tables
from seqlab.report.compare import compare
from seqlab.report.curves import Damaged
from seqlab.report.difficulty import accuracies, in_order, numbers_of, titles
from seqlab.report.page.payload import payload
from seqlab.report.plots.panels import short_power
from seqlab.report.runs import Completed, check, parse_json
from seqlab.report.tables import tables_of
from seqlab.runs.targets import changes_of


def test_the_mean_over_the_seeds_at_each_difficulty():
    summaries = [run.summary for run in probe_comparison()[:3]]
    found = accuracies(summaries)
    assert list(found) == ["by distance", "by pairs", "at length", "at length, pairs"]
    assert list(found["by distance"]) == ["8", "64", "256"]
    assert list(found["at length, pairs"]) == ["128, 8", "1024, 64"]
    expected = [summary["test_slices"]["distance"]["64"]["accuracy"] for summary in summaries]
    assert found["by distance"]["64"].mean == pytest.approx(sum(expected) / 3)
    assert found["by distance"]["64"].n == 3


def test_what_was_not_measured_is_left_out():
    transformer = accuracies([run.summary for run in probe_comparison()[3:6]])
    assert list(transformer["at length"]) == ["512", "4096"]
    assert accuracies([{"further_tests": {"length=8": {"error": "memory"}}, "test_slices": {}}]) == {}
    assert accuracies([{}]) == {}


def test_a_difficulty_of_one_value_has_no_curve():
    curves = [accuracies([run.summary]) for run in probe_comparison()]
    assert list(titles(curves)) == ["by distance", "at length", "at length, pairs"]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("length=512", ("length", "512")),
        ("length=512,pairs=64", ("length, pairs", "512, 64")),
        ("shuffled", ("shuffled", "shuffled")),
    ],
)
def test_what_a_further_test_changes(name, change):
    assert changes_of(name) == change


def test_values_are_in_the_order_of_their_numbers():
    assert in_order(["1024, 8", "64, 16", "none", "64, 4"]) == ["64, 4", "64, 16", "1024, 8", "none"]


@pytest.mark.parametrize(("value", "text"), [(2**20, "1Mi"), (16384, "16Ki"), (512, "512"), (1000, "1k")])
def test_lengths_in_short(value, text):
    assert short_power(value) == text


class TestTables:
    def test_a_sheet_for_each_kind_and_one_for_the_targets(self):
        tables = {table.title: table for table in tables_of(compare(probe_comparison()))}
        by_length = tables["mqar: accuracy at length"]
        assert by_length.headings == ["model", "512", "4096", "1048576"]
        lines = {line[0]: line[1:] for line in by_length.lines}
        assert lines["mamba"][0] == "0.8320 ± 0.0040"
        assert lines["transformer"][-1] == "–"  # noqa: RUF001
        targets = {line[0]: line[1:] for line in tables["mqar: targets"].lines}
        asked = "further_tests.length=512.accuracy >= 0.8"
        assert targets["mamba"] == [asked, "0.8320 ± 0.0040", "1", "reached"]
        assert targets["self_attention"][-1] == "missed"

    def test_a_single_further_test_has_a_sheet_and_a_single_slice_has_none(self):
        runs = probe_comparison()
        for run in runs:
            run.summary["further_tests"] = {"length=512": run.summary["further_tests"]["length=512"]}
            run.summary["test_slices"] = {"pairs": run.summary["test_slices"]["pairs"]}
        comparison = compare(runs)
        tables = {table.title: table for table in tables_of(comparison)}
        assert [title for title in tables if "accuracy" in title] == ["mqar: accuracy at length"]
        assert tables["mqar: accuracy at length"].headings == ["model", "512"]
        assert ["mamba", "0.8320 ± 0.0040"] in tables["mqar: accuracy at length"].lines
        titles = [one["title"] for one in payload(comparison)["charts"]["mqar"]]
        assert [title for title in titles if "Accuracy" in title] == ["Accuracy at length"]

    def test_slices_that_are_each_group_s_whole_test_split_have_no_sheet(self):
        runs = [made_run("mamba", "mqar", **{"data.pairs": pairs}) for pairs in (4, 8)]
        for run in runs:
            pairs = str(run.config["data"]["pairs"])
            run.summary["test_slices"] = {"pairs": {pairs: {"loss": 0.1, "accuracy": 0.9, "count": 9}}}
        assert not [table.title for table in tables_of(compare(runs)) if "accuracy" in table.title]

    def test_a_mean_over_fewer_seeds_than_there_are_says_so(self):
        runs = probe_comparison()
        second, third = (run.summary for run in runs[1:3])
        second["further_tests"]["length=512"] = {"error": "memory"}
        second["targets"][0] |= {"value": None, "reached": None}
        del third["test_slices"]["distance"]["64"], second["test_slices"]["distance"]["64"]
        tables = {table.title: table for table in tables_of(compare(runs))}
        by_length, by_distance = (tables[f"mqar: accuracy {title}"].lines for title in ("at length", "by distance"))
        mamba = next(line for line in by_length if line[0] == "mamba")
        assert mamba[1:3] == ["0.832 ± 0.006 (n = 2)", "0.7720 ± 0.0040"]  # of 0.836 and 0.828
        assert [line[2] for line in by_distance if line[0] == "mamba"] == ["0.8960 (n = 1)"]
        assert not any("n =" in cell for line in by_length for cell in line if line[0] != "mamba")
        (value,) = (line[2] for line in tables["mqar: targets"].lines if line[0] == "mamba")
        assert value == "0.832 ± 0.006 (n = 2)"

    def test_the_time_of_further_tests_stands_apart(self):
        runs = probe_comparison()
        notes = {table.title: table.notes for table in tables_of(compare(runs))}
        assert len(notes["mqar: costs"]) == 1
        runs[0].summary["further_seconds"] = 3.0
        notes = {table.title: table.notes for table in tables_of(compare(runs))}
        assert notes["mqar: costs"][1] == "Wall time is without that of the further tests."

    def test_runs_without_probes_have_none(self):
        titles = [table.title for table in tables_of(compare(first_comparison((1,))))]
        assert not any("accuracy" in title or "targets" in title for title in titles)

    def test_active_parameters_where_they_differ(self):
        results = tables_of(compare(probe_comparison()))[0]
        place = results.headings.index("active")
        assert {line[place] for line in results.lines} == {"100,000", "100,001", "100,002"}
        assert "active" not in tables_of(compare(first_comparison((1,))))[0].headings

    def test_trained_parameters_where_they_differ(self):
        runs = first_comparison((1,))
        runs[0].summary["trainable_parameters"] = 1234
        results = tables_of(compare(runs))[0]
        place = results.headings.index("trained")
        assert "1,234" in {line[place] for line in results.lines}
        assert "trained" not in tables_of(compare(first_comparison((1,))))[0].headings

    def test_the_csv_holds_all(self, tmp_path):
        write_tables.write(compare(probe_comparison()), tmp_path)
        lines = (tmp_path / "comparison.csv").read_text(encoding="utf-8").splitlines()
        rows = {row["model"]: row for row in csv.DictReader(lines)}
        assert float(rows["mamba"]["test_accuracy_at_length_1048576_mean"]) == pytest.approx(0.612)
        assert rows["transformer"]["test_accuracy_at_length_1048576_mean"] == ""
        assert rows["mamba"]["target further_tests.length=512.accuracy >= 0.8"] == "reached"


def test_the_picture(tmp_path):
    names = {path.name for path in plots.write(compare(probe_comparison((1, 2))), tmp_path)}
    assert {"mqar_difficulty.png", "mqar_difficulty.svg"} <= names
    assert "further_tests" not in (tmp_path / "mqar_difficulty.svg").read_text()


def test_no_picture_without_probes(tmp_path):
    names = {path.name for path in plots.write(compare([made_run()]), tmp_path)}
    assert not any("difficulty" in name for name in names)


def test_the_page():
    comparison = compare(probe_comparison())
    known = payload(comparison)
    panels = {one["title"]: one["panels"].get("") for one in known["charts"]["mqar"]}
    length = panels["Accuracy at length"]
    assert length.x.places == (512, 4096, 2**20) and length.x.names == ("512", "4Ki", "1Mi")
    bands = {known["groups"][line.groups[0]]["model"]: line.band for line in length.lines}
    assert bands["mamba"].mean[0] == pytest.approx(0.832)
    assert bands["mamba"].low[0] < bands["mamba"].mean[0] < bands["mamba"].high[0]
    assert (bands["mamba"].x.tolist(), bands["transformer"].x.tolist()) == ([512, 4096, 2**20], [512, 4096])
    assert panels["Accuracy at length, pairs"].x.names == ("128, 8", "1024, 64")
    assert "mqar: targets" in [table["title"] for table in known["extra"]]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("test_slices", {"distance": {"8": 0.5}}),
        ("test_slices", [1]),
        ("further_tests", {"length=8": {"accuracy": "high"}}),
        ("targets", 1),
        ("targets", ["x"]),
        ("targets", [{}]),
        ("targets", [{"metric": "test.accuracy"}]),
        ("targets", [{"metric": "a", "rule": {"x": 1}, "value": 1, "reached": True}]),
        ("targets", [{"metric": "a", "rule": {"at_least": 1, "published": "high"}, "value": 1, "reached": True}]),
        ("targets", [{"metric": "a", "rule": {"at_least": 1, "published": [1]}, "value": 1, "reached": True}]),
        ("active_parameters", "many"),
    ],
)
def test_a_damaged_summary_is_refused(name, value):
    (run, *_) = probe_comparison((1,))
    check(Completed, run.summary)
    with pytest.raises(Damaged, match=rf"summary\.json: {name}"):
        check(Completed, run.summary | {name: value})


def test_numbers_that_are_not_finite_are_none():
    assert parse_json('{"a": NaN, "b": -Infinity, "c": 1e999, "d": 1.5, "e": 2}') == {
        "a": None,
        "b": None,
        "c": None,
        "d": 1.5,
        "e": 2,
    }
    assert numbers_of("inf") is None and numbers_of("8, nan") is None and numbers_of("8, 4") == (8.0, 4.0)
