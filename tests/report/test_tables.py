"""Tables on the screen and in files: every number is there, with as many digits as it deserves, and nothing escapes."""

import csv
import math
import re
from io import StringIO

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from rich.console import Console

from seqlab.benchmarks.run_trees import write_run
from seqlab.report import formats, print_tables, write_tables
from seqlab.report.compare import compare
from seqlab.report.page.payload import payload
from seqlab.report.runs import read
from seqlab.report.statistics import Estimate
from seqlab.report.tables import tables_of


@pytest.fixture
def comparison(tmp_path):
    """Three seeds of one model, one of another with an awkward name, a failed seed and a foreign folder."""
    for seed, loss in ((1, 2.01), (2, 2.04), (3, 2.02)):
        write_run(tmp_path / "runs" / f"a{seed}", seed=seed, loss=loss, state_bytes=4096)
    write_run(tmp_path / "runs" / "b", model="a|b_&%$#{x}~^\\*<i>", loss=3.123456, tokens=10**9)
    write_run(tmp_path / "runs" / "c", seed=4, status="failed", error="out of memory")
    (tmp_path / "runs" / "_d_").mkdir()
    return compare(*read([tmp_path / "runs"]), at=("tokens", None))


def shown(comparison, width=250):
    console = Console(width=width, file=StringIO())
    for part in print_tables.screen(comparison, width):
        console.print(part)
    return console.file.getvalue()


def test_the_screen_shows_every_column_and_what_is_not_alike_first(comparison):
    text = shown(comparison)
    assert text.startswith("The runs differ in tokens seen. 1,000,000,000: a|b_&%$#{x}~^\\*<i>; 25,600: mamba\n")
    for heading in (
        *("model", "seeds", "parameters", "best validation loss", "test loss", "95 % interval", "perplexity"),
        *("parameters without embeddings", "state of a sequence", "training FLOPs", "tokens", "wall time"),
        *("tokens/s", "peak memory", "scan backend", "precision", "device", "validation loss at 25.6 k tokens"),
    ):
        assert heading in text
    mamba = next(line for line in text.splitlines() if "2.023" in line)
    assert [cell.strip() for cell in mamba.strip("│").split("│")][:3] == ["mamba", "3 (seed 4 failed)", "8,770"]
    assert "2.023 ± 0.015" in mamba
    assert "[1.985, 2.061]" in mamba
    assert "4.00 KiB" in text
    assert "one seed" in next(line for line in text.splitlines() if "3.123" in line)
    assert "one seed: no interval" in text
    assert re.search(r"_d_ +│ empty", text)
    assert re.search(r"runs/c +│ failed: out of memory", text)


def test_of_many_differences_those_with_an_interval_are_on_the_screen(tmp_path, monkeypatch):
    monkeypatch.setattr(print_tables, "PRINTED_DIFFERENCES", 1)
    write_run(tmp_path / "best", model="best", loss=1.0)
    for name, seeds in (("one_seed", [1]), ("two_seeds", [1, 2]), ("best", [2])):
        for seed in seeds:
            loss = 2.0 + seed / 100 - 0.1 * (name == "best")
            write_run(tmp_path / f"{name}_{seed}", model=name, seed=seed, loss=loss)
    text = shown(compare(*read([tmp_path]))).split("Paired differences")[1]
    assert "two_seeds" in text and "one_seed" not in text
    assert "1 of 3, with intervals first; differences.csv has all." in " ".join(text.split())


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_table_wider_than_the_screen_goes_on_below_with_its_names(comparison, width):
    text = shown(comparison, width)
    assert max(map(len, text.splitlines())) <= width
    (costs,) = (table for table in tables_of(comparison) if table.title == "synthetic: costs")
    parts = print_tables.columns_that_fit(costs, width)
    assert [i for part in parts for i in part[1:]] == list(range(1, len(costs.headings)))
    assert all(part[0] == 0 for part in parts)
    for cell in ("45.9 M", "4.00 KiB", "446 MiB", "float32"):
        assert cell in text  # on one line


def test_a_narrow_table_does_not_break_its_title(tmp_path):
    write_run(tmp_path / "1", further_tests={"length=64": {"loss": 1.0, "accuracy": 0.5}})
    text = shown(compare(*read([tmp_path])))
    assert "\nsynthetic: accuracy at length\n" in text


def test_names_in_brackets_are_no_markup(tmp_path):
    write_run(tmp_path / "1", model="[bold]x[/bold]", status="failed", error="[red]no[/]")
    write_run(tmp_path / "2", model="[link=x]y")
    text = shown(compare(*read([tmp_path])))
    assert "[red]no[/]" in text
    assert "[link=x]y" in text


def csv_rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_csv_files_hold_every_number_in_full(comparison, tmp_path):
    write_tables.write(comparison, tmp_path)
    rows = {row["model"]: row for row in csv_rows(tmp_path / "comparison.csv")}
    assert set(rows) == {"mamba", "a|b_&%$#{x}~^\\*<i>"}
    mamba = rows["mamba"]
    assert float(mamba["test_loss_mean"]) == pytest.approx((2.01 + 2.04 + 2.02) / 3, rel=1e-15)
    assert float(mamba["test_perplexity_mean"]) == pytest.approx((math.exp(2.01) + math.exp(2.04) + math.exp(2.02)) / 3)
    assert (mamba["seeds"], mamba["test_loss_n"], mamba["left_out"]) == ("1 2 3", "3", "seed 4 failed")
    assert float(mamba["test_loss_low"]) < 2.01 < 2.04 < float(mamba["test_loss_high"])
    assert (mamba["state_bytes"], mamba["parameters"]) == ("4096", "8770")
    assert float(mamba["validation_loss_at_budget_mean"]) == pytest.approx(2.0333, abs=1e-4)
    other = rows["a|b_&%$#{x}~^\\*<i>"]
    assert (other["test_loss_std"], other["test_loss_low"], other["state_bytes"]) == ("", "", "")
    differences = csv_rows(tmp_path / "differences.csv")
    assert [one["metric"] for one in differences] == ["test loss", "validation loss at 25.6 k tokens"]
    assert float(differences[0]["difference_mean"]) == pytest.approx(3.123456 - 2.01)


def test_costs_have_a_spread_over_the_seeds_and_no_interval(tmp_path):
    for seed, (seconds, speed) in enumerate(((60.0, 1e5), (61.0, 2e5), (65.0, 3e5)), 1):
        cost = {"wall_seconds": seconds, "tokens_per_second": speed, "peak_memory_bytes": 2**30 + seed}
        write_run(tmp_path / "runs" / str(seed), seed=seed, **cost)
    write_run(tmp_path / "runs" / "alone", model="lstm", wall_seconds=30.0)
    comparison = compare(*read([tmp_path / "runs"]))
    (costs,) = (table for table in tables_of(comparison) if table.title == "synthetic: costs")
    lines = {line[0]: dict(zip(costs.headings, line, strict=True)) for line in costs.lines}
    assert lines["mamba"]["wall time"] == "62.0 ± 2.6 s"
    assert lines["mamba"]["tokens/s"] == "200 ± 100 k"
    assert lines["mamba"]["peak memory"] == "1.00 GiB"  # its spread is not seen at these digits
    assert lines["mamba"]["training FLOPs"] == "45.9 M"  # all alike
    assert lines["lstm"]["wall time"] == "30.0 s"
    table = payload(comparison)["table"]
    place = table["headings"].index("wall time")
    assert ("62.0 ± 2.6 s", 62.0) in [line[place] for line in table["lines"]]
    write_tables.write(comparison, tmp_path)
    row = next(row for row in csv_rows(tmp_path / "comparison.csv") if row["model"] == "mamba")
    assert {name for name in row if name.startswith("wall_seconds")} == {
        f"wall_seconds_{x}" for x in ("mean", "std", "n")
    }
    assert float(row["wall_seconds_std"]) == pytest.approx(7**0.5)
    assert not [name for name in row if name.endswith(("_low", "_high")) and not re.match("test_|validation_", name)]


def test_markdown_rows_have_as_many_cells_as_headings(comparison):
    text = write_tables.markdown(comparison)
    table = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            table.append(len(re.findall(r"(?<!\\)\|", line)))
        elif table:
            assert len(set(table)) == 1
            assert len(table) > 2
            table = []
    assert text.startswith("- **The runs differ in tokens seen")
    assert r"a\|b\_&amp;%$#{x}~^\\\*&lt;i&gt;" in text
    assert r"\_d\_: empty" in text


def test_latex_rows_have_as_many_cells_as_columns_and_nothing_is_left_unescaped(comparison):
    text = write_tables.latex(comparison)
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == text.count(r"\toprule") >= 3
    columns = None
    for line in text.splitlines():
        if found := re.match(r"\\begin\{tabular\}\{([lr]+)\}", line):
            columns = len(found[1])
        elif line.endswith(r"\\"):
            assert len(re.findall(r"(?<!\\)&", line)) + 1 == columns
            assert not line.startswith(("[", "*"))
        bare = re.sub(r"\\[&%$#_{}]", "", line)
        if not line.startswith(("%", r"\begin", r"\end")):
            assert not re.search(r"[%#_~^]", bare.replace(r"\textasciitilde", "").replace(r"\textasciicircum", ""))
            assert bare.count("{") == bare.count("}")
            assert bare.count("$") % 2 == 0
    assert r"a\textbar{}b\_\&\%\$\#\{x\}\textasciitilde{}\textasciicircum{}\textbackslash{}*" in text
    assert r"The runs differ in tokens seen" in text
    assert r"2.023 $\pm$ 0.015" in text


@pytest.mark.parametrize(
    ("mean", "half_width", "text", "interval"),
    [
        (1.754321, 0.0317, "1.754", "[1.723, 1.786]"),
        (1.754321, 0.000317, "1.75432", "[1.75400, 1.75464]"),
        (1.754321, 3.17, "1.8", "[-1.4, 4.9]"),
        (175.4321, 31.7, "175", "[144, 207]"),
        (12345.6, 999.0, "12346", "[11347, 13345]"),
        (0.25, 0.0, "0.2500", "[0.2500, 0.2500]"),
    ],
)
def test_digits_are_those_that_the_interval_supports(mean, half_width, text, interval):
    found = Estimate(mean, half_width / 2, mean - half_width, mean + half_width, 3)
    assert formats.mean(found) == text
    assert formats.interval(found) == interval


@pytest.mark.parametrize(
    ("mean", "text"), [(1.754321, "1.754"), (0.0012345, "0.001234"), (123.456, "123.5"), (0.0, "0.000")]
)
def test_one_seed_has_four_digits_and_no_interval(mean, text):
    found = Estimate(mean, None, None, None, 1)
    assert formats.mean_and_std(found) == text
    assert formats.interval(found) == "one seed"


def test_what_is_not_known_is_a_dash():
    for text in (formats.mean(None), formats.interval(None), formats.scaled(None), formats.scaled_bytes(None)):
        assert text == formats.NONE
    assert formats.in_unit(None, formats.time_of) == formats.NONE


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (5, "5"),
        (999, "999"),
        (1000, "1.00 k"),
        (999_999, "1.00 M"),
        (1_234_567, "1.23 M"),
        (4.5e25, "45000000 E"),
    ],
)
def test_large_numbers_have_prefixes(number, text):
    assert formats.scaled(number) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (512, "512 B"), (1536, "1.50 KiB"), (2**20, "1.00 MiB"), (3 * 2**40, "3.00 TiB")]
)
def test_bytes_have_binary_prefixes(number, text):
    assert formats.scaled_bytes(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.05, "0.0500 s"), (1.5, "1.50 s"), (119, "119 s"), (120, "2.00 min"), (7200, "2.00 h")]
)
def test_durations(seconds, text):
    assert formats.in_unit(seconds, formats.time_of) == text


@pytest.mark.parametrize(
    ("mean", "std", "unit_of", "text"),
    [
        (42.71, 1.26, formats.time_of, "42.7 ± 1.3 s"),
        (42.71, 0.04, formats.time_of, "42.7 s"),
        (170.0, 12.0, formats.time_of, "2.83 ± 0.20 min"),
        (115_000, 3_210, formats.prefix_of, "115 ± 3 k"),
        (5.0, 0.0, formats.prefix_of, "5"),
        (2.5 * 2**30, 0.125 * 2**30, formats.bytes_of, "2.50 ± 0.12 GiB"),
        (42.71, None, formats.time_of, "42.7 s"),
    ],
)
def test_a_cost_s_spread_is_in_the_unit_and_digits_of_its_mean(mean, std, unit_of, text):
    assert formats.cost(Estimate(mean, std, None, None, 3), unit_of) == text


@given(st.floats(-1e12, 1e12), st.floats(1e-9, 1e9))
def test_rounding_stays_within_a_tenth_of_the_half_width(mean, half_width):
    assume(half_width > 1e-6 * abs(mean))
    found = Estimate(mean, half_width, mean - half_width, mean + half_width, 3)
    assert abs(float(formats.mean(found)) - found.mean) <= max(0.051 * found.half_width, 0.5 * 10**-8)
