"""What is held against what, by which rule, and what is said of runs that are not alike."""

import json
import math

import numpy as np
import pytest

from seqlab.benchmarks.run_trees import TOKENS_PER_STEP, write_run
from seqlab.errors import UserError
from seqlab.report.budgets import parse_at, read_at
from seqlab.report.compare import MOST_IN_PAIRS, compare
from seqlab.report.runs import read
from seqlab.report.statistics import estimate
from seqlab.report.tables import tables_of

STUDENT_3 = 4.303  # the 97.5 % quantile of Student's t with two degrees of freedom


def comparison_of(root, **options):
    return compare(*read([root]), **options)


def write_seeds(root, model, losses, **changes):
    """One run for each seed, with these test losses."""
    for seed, loss in losses.items():
        write_run(root / f"{model} {changes} {seed}", model=model, seed=seed, loss=loss, **changes)


def test_a_row_holds_what_the_summaries_say_over_the_seeds(tmp_path):
    write_seeds(tmp_path, "mamba", {1: 2.0, 2: 2.2, 3: 2.7}, state_bytes=4096)
    (row,) = comparison_of(tmp_path).rows
    assert row.group.label == "mamba"
    assert (row.parameters, row.parameters_without_embeddings, row.state_bytes) == (8770, 8450, 4096)
    assert (row.scan_backend, row.device, row.precision) == ("cpu", "x86_64, 2 threads", "float32")
    assert row.test["loss"].mean == pytest.approx(2.3)
    assert row.test["loss"].std == pytest.approx(math.sqrt((0.3**2 + 0.1**2 + 0.4**2) / 2))
    assert row.test["loss"].n == 3
    assert row.test["perplexity"].mean == pytest.approx(np.mean(np.exp([2.0, 2.2, 2.7])))
    assert row.validation["loss"].mean == pytest.approx(2.31)
    assert row.tokens.mean == 100 * TOKENS_PER_STEP
    assert row.flops.mean == 100 * 458752
    assert row.wall_seconds.mean == pytest.approx(100 * 458752e-9 * 1.25)
    assert row.peak_memory_bytes.mean == 467451904


def test_old_summaries_without_state_and_metrics_that_are_no_number(tmp_path):
    write_run(tmp_path / "1", seed=1, test={"loss": 2.0, "r2": None})
    write_run(tmp_path / "2", seed=2, test={"loss": 2.0, "r2": 0.5}, tokens_per_second=None)
    (row,) = comparison_of(tmp_path).rows
    assert row.state_bytes is None
    assert (row.test["loss"].n, row.test["r2"].n, row.test["r2"].mean) == (2, 1, 0.5)
    assert row.tokens_per_second.n == 1


def test_rows_stand_by_data_and_then_by_validation(tmp_path):
    for model, loss in (("a", 2.0), ("b", 1.0), ("c", 3.0)):
        write_seeds(tmp_path, model, {1: loss})
    write_seeds(tmp_path, "z", {1: 9.0}, data="ptb")
    rows = comparison_of(tmp_path).rows
    assert [(row.group.data, row.group.model) for row in rows] == [
        ("ptb", "z"),
        ("synthetic", "b"),
        ("synthetic", "a"),
        ("synthetic", "c"),
    ]


def test_differences_are_paired_on_the_seeds_that_both_have(tmp_path):
    write_seeds(tmp_path, "mamba", {1: 1.0, 2: 1.5, 3: 2.0, 4: 0.0})
    write_seeds(tmp_path, "lstm", {1: 1.10, 2: 1.62, 3: 2.14, 5: 9.0})
    (one,) = comparison_of(tmp_path).differences
    assert (one.first.model, one.second.model, one.seeds, one.metric) == ("mamba", "lstm", (1, 2, 3), "test loss")
    differences = [0.10, 0.12, 0.14]
    half = STUDENT_3 * np.std(differences, ddof=1) / math.sqrt(3)
    assert one.estimate.mean == pytest.approx(0.12)
    assert (one.estimate.low, one.estimate.high) == pytest.approx((0.12 - half, 0.12 + half), rel=1e-3)
    assert one.verdict == "mamba is better"
    unpaired = estimate([1.0, 1.5, 2.0]).half_width
    assert one.estimate.half_width < unpaired / 10  # which is why pairs are worth it


def test_no_difference_is_shown_where_the_interval_holds_zero(tmp_path):
    write_seeds(tmp_path, "mamba", {1: 1.0, 2: 1.5, 3: 2.0})
    write_seeds(tmp_path, "lstm", {1: 1.3, 2: 1.4, 3: 2.1})
    (one,) = comparison_of(tmp_path).differences
    assert one.estimate.low < 0 < one.estimate.high
    assert one.verdict == "no difference shown"


def test_the_better_one_is_named_even_if_validation_preferred_the_other(tmp_path):
    write_seeds(tmp_path, "mamba", {1: 1.0, 2: 1.1, 3: 1.2})
    write_seeds(tmp_path, "lstm", {1: 1.5, 2: 1.61, 3: 1.7}, best_validation={"loss": 0.1})
    (one,) = comparison_of(tmp_path).differences
    assert (one.first.model, one.verdict) == ("lstm", "mamba is better")
    assert one.estimate.mean < 0


def test_one_seed_in_common_says_so_and_none_gives_no_difference(tmp_path):
    write_seeds(tmp_path, "mamba", {1: 1.0, 2: 1.5})
    write_seeds(tmp_path, "lstm", {2: 1.6, 3: 1.0})
    write_seeds(tmp_path, "mlp", {4: 1.6})
    (one,) = comparison_of(tmp_path).differences
    assert {one.first.model, one.second.model} == {"mamba", "lstm"}
    assert (one.seeds, one.estimate.low, one.verdict) == ((2,), None, "one seed: no interval")


def test_the_sheet_of_differences_counts_the_intervals_that_there_are(tmp_path):
    write_seeds(tmp_path, "mamba", {1: 1.0})
    write_seeds(tmp_path, "lstm", {1: 1.2, 2: 1.4})
    write_seeds(tmp_path, "mlp", {1: 1.3, 2: 1.6})
    comparison = comparison_of(tmp_path)
    assert [one.estimate.n for one in comparison.differences] == [1, 1, 2]
    (table,) = (one for one in tables_of(comparison) if one.title == "Paired differences")
    assert table.headings == ["this", "minus that", "seeds", "difference in test loss", "95 % interval", "verdict"]
    assert not any("by chance" in note for note in table.notes)  # of one interval


def test_content_and_split_that_differ_alike_are_told_once(tmp_path):
    write_seeds(tmp_path, "mamba", {1: 1.0})
    write_seeds(tmp_path, "lstm", {1: 1.0}, data_fingerprint="another", data_description="longer")
    assert list(comparison_of(tmp_path).mismatches) == ["data as described"]
    write_seeds(tmp_path, "mlp", {1: 1.0}, data_fingerprint="another")
    assert list(comparison_of(tmp_path).mismatches) == ["data content (fingerprint)", "data as described"]


def test_only_runs_on_the_same_data_are_held_against_each_other(tmp_path):
    write_seeds(tmp_path, "mamba", {1: 1.0})
    write_seeds(tmp_path, "lstm", {1: 2.0}, data="ptb")
    write_seeds(tmp_path, "mlp", {1: 3.0}, data_fingerprint="another")
    comparison = comparison_of(tmp_path)
    assert comparison.differences == []
    assert dict(comparison.mismatches)["data"] == [("ptb", ["lstm"]), ("synthetic", ["mamba", "mlp"])]


def test_many_groups_are_compared_with_the_best_by_validation(tmp_path):
    for i in range(MOST_IN_PAIRS + 2):
        write_seeds(tmp_path, f"model{i}", {1: 3.0 - 0.1 * i})
    best = f"model{MOST_IN_PAIRS + 1}"
    differences = comparison_of(tmp_path).differences
    assert len(differences) == MOST_IN_PAIRS + 1
    assert {one.first.model for one in differences} == {best}


@pytest.mark.parametrize(
    ("name", "changes", "values"),
    [
        ("data content (fingerprint)", {"data_fingerprint": "x"}, ("bc137cedff9a", "x")),
        ("data as described", {"data_description": "90/10"}, ("synthetic: 2,048 + 512 + 512 samples of 32", "90/10")),
        ("tokens seen", {"tokens": 1234567}, ("25,600", "1,234,567")),
        ("precision", {"precision": "bf16"}, ("float32", "bf16")),
        ("device", {"device": "cuda", "device_name": "NVIDIA H100"}, ("x86_64, 2 threads", "NVIDIA H100")),
    ],
)
def test_what_is_not_alike_is_named_with_who_has_which(tmp_path, name, changes, values):
    write_seeds(tmp_path, "mamba", {1: 1.0, 2: 1.0})
    write_seeds(tmp_path, "lstm", {1: 1.0}, **changes)
    write_seeds(tmp_path, "mlp", {1: 1.0})
    mismatches = comparison_of(tmp_path).mismatches
    assert list(mismatches) == [name]
    (common, holders), (other, exception) = mismatches[name]
    assert common.startswith(values[0]) and other == values[1]
    assert (sorted(holders), exception) == (["mamba", "mlp"], ["lstm"])


def test_seeds_of_one_group_that_are_not_alike_are_named_too(tmp_path):
    for seed, name in ((1, "2 threads"), (2, "8 threads"), (3, "2 threads")):
        write_run(tmp_path / str(seed), seed=seed, device_name=name)
    comparison = comparison_of(tmp_path)
    assert comparison.mismatches == {
        "device": [("2 threads", ["mamba (seed 1, 3)"]), ("8 threads", ["mamba (seed 2)"])]
    }
    assert comparison.rows[0].device == "2 threads; 8 threads"


def test_runs_that_are_alike_give_no_mismatch(tmp_path):
    write_seeds(tmp_path, "mamba", {1: 1.0, 2: 1.0})
    write_seeds(tmp_path, "lstm", {1: 1.0, 2: 1.0}, flops_per_step=7, parameters=3, peak_memory_bytes=5)
    assert comparison_of(tmp_path).mismatches == {}


def test_seeds_that_did_not_complete_are_told_beside_the_mean(tmp_path):
    write_seeds(tmp_path, "mamba", {1: 1.0, 2: 1.0})
    for seed, status in ((3, "diverged"), (4, "running"), (1, "failed")):
        write_run(tmp_path / f"{status}", seed=seed, status=status, error="why: at length")
    write_run(tmp_path / "other", model="lstm", seed=5, status="failed")
    (row,) = comparison_of(tmp_path).rows
    assert row.left_out == ("seed 3 diverged", "seed 4 still running, or killed")


def test_a_seed_that_is_there_twice_is_listed(tmp_path):
    write_run(tmp_path / "1")
    write_run(tmp_path / "2")
    comparison = comparison_of(tmp_path)
    assert len(comparison.rows[0].group.runs) == 1
    (again,) = comparison.skipped
    assert again.why.startswith("seed 1 again: ") and again.why.endswith(" is newer")


def curve(root, points, **changes):
    """A run whose validation curve goes through these points (step, loss)."""
    steps = max(step for step, _ in points)
    folder = write_run(root, steps=steps, **changes)
    records = [
        {
            "step": step,
            "split": "validation",
            "tokens": 256 * step,
            "flops": 1e6 * step,
            "seconds": step / 10,
            "loss": loss,
        }
        for step, loss in points
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_curve_is_read_on_the_straight_line_and_never_beyond_its_ends(tmp_path):
    curve(tmp_path / "1", [(10, 4.0), (20, 2.0), (40, 3.0)])
    ((run,), _) = read([tmp_path])
    assert read_at(run, "tokens", 256 * 15) == pytest.approx((3.0, 4.0))
    assert read_at(run, "tokens", 256 * 20) == pytest.approx((2.0, 2.0))
    assert read_at(run, "flops", 30e6) == pytest.approx((2.5, 2.0))
    assert read_at(run, "seconds", 4.0) == pytest.approx((3.0, 2.0))
    assert read_at(run, "seconds", 1.0) == pytest.approx((4.0, 4.0))
    assert read_at(run, "seconds", 0.99) is None
    assert read_at(run, "seconds", 4.01) is None
    assert read_at(run, "memory", 1.0) is None


def test_points_that_are_no_number_are_passed_over(tmp_path):
    curve(tmp_path / "1", [(0, 4.0), (10, None), (20, 2.0)])
    ((run,), _) = read([tmp_path])
    assert read_at(run, "tokens", 256 * 10)[0] == pytest.approx(3.0)


def test_the_common_budget_is_the_largest_that_all_reach(tmp_path):
    curve(tmp_path / "1", [(0, 4.0), (40, 2.0)], seed=1)
    curve(tmp_path / "2", [(0, 4.0), (20, 3.0), (60, 1.0)], seed=2, settings={"trainer.steps": 40})
    curve(tmp_path / "3", [(0, 5.0), (20, 2.0)], model="lstm", seed=1)
    curve(tmp_path / "4", [(0, 9.0), (90, 2.0)], data="ptb")
    comparison = comparison_of(tmp_path, at=("tokens", None))
    assert comparison.at.budgets == {"ptb": 256 * 90, "synthetic": 256 * 20}
    assert comparison.at.notes == []
    rows = {(row.group.data, row.group.model): row.at for row in comparison.rows}
    assert rows["synthetic", "mamba"].loss.mean == pytest.approx(3.0)
    assert rows["synthetic", "mamba"].loss.n == 2
    assert rows["synthetic", "lstm"].best.mean == pytest.approx(2.0)
    assert [row.group.model for row in comparison.rows] == ["mamba", "lstm", "mamba"]
    by_metric = {one.metric: one.estimate.mean for one in comparison.differences}
    assert abs(by_metric["validation loss at 5.12 k tokens"]) == pytest.approx(3.0 - 2.0)
    assert len(by_metric) == 2


def test_a_given_budget_that_some_do_not_reach_leaves_them_out_and_says_so(tmp_path):
    curve(tmp_path / "1", [(0, 4.0), (40, 2.0)], seed=1)
    curve(tmp_path / "2", [(0, 4.0), (20, 3.0)], seed=2, settings={"trainer.steps": 40})
    curve(tmp_path / "3", [(0, 5.0), (20, 2.0)], model="lstm", seed=1)
    comparison = comparison_of(tmp_path, at=("flops", 30e6))
    rows = {row.group.model: row for row in comparison.rows}
    assert rows["lstm"].at is None
    assert (rows["mamba"].at.loss.n, rows["mamba"].at.loss.mean) == (1, pytest.approx(2.5))
    assert comparison.at.notes == [
        "Not at 30.0 M training FLOPs: lstm on synthetic, seed 1, evaluated from 0 to 20.0 M training FLOPs",
        "Not at 30.0 M training FLOPs: mamba on synthetic, seed 2, evaluated from 0 to 20.0 M training FLOPs",
    ]
    assert [one.metric for one in comparison.differences] == ["test loss"]


@pytest.mark.parametrize("budget", [1e30, 1.0])
def test_a_given_budget_that_none_reaches_is_refused(tmp_path, budget):
    """Beyond the last evaluation, or before the first; a column of nothing would say less."""
    curve(tmp_path / "1", [(10, 4.0), (40, 2.0)], seed=1)
    curve(tmp_path / "2", [(10, 5.0), (20, 2.0)], model="lstm", seed=1)
    said = r"evaluated from 10\.0 M to 40\.0 M training FLOPs\.\nAll reach 20\.0 M \(flops=2e\+07\), which --at flops"
    with pytest.raises(UserError, match=rf"^--at=flops=[\d+e]+: no run can be read there: they were {said}"):
        comparison_of(tmp_path, at=("flops", budget))
    assert comparison_of(tmp_path, at=("flops", 2e7)).at.notes == []


def test_equal_parameters_are_read_between_the_sizes_of_an_architecture(tmp_path):
    def size(model, width, parameters, losses):
        for seed, loss in losses.items():
            settings = {"size.d_model": width, "model.pattern": ["scan"]}
            if not model.startswith("mamba"):
                settings["model.pattern"] = ["attention"]
            folder = tmp_path / f"{model} {seed}"
            write_run(folder, model=model, seed=seed, loss=loss, settings=settings, parameters=parameters)

    size("mamba_small", 64, 10_000, {1: 3.0, 2: 3.2})
    size("mamba_large", 256, 1_000_000, {1: 1.0, 2: 1.2, 3: 0.0})
    size("transformer", 64, 100_500, {1: 2.5})
    size("transformer_big", 128, 100_000, {1: 2.4})
    size("transformer_bigger", 129, 90_000, {1: 2.6})
    write_run(tmp_path / "mlp", model="mlp", parameters=5_000)
    for run in tmp_path.iterdir():  # a mixer's name is the model's in these trees, but one architecture has one
        config = (run / "config.yaml").read_text()
        for name in ("mamba_small", "mamba_large", "transformer_bigger", "transformer_big", "transformer"):
            config = config.replace(f"    {name}:\n", "    mixer:\n")
        (run / "config.yaml").write_text(config)

    found = {one.architecture: one for one in comparison_of(tmp_path, at=("params", 100_000)).at.sizes}
    assert set(found) == {"mamba", "transformer", "mlp"}
    mamba = found["mamba"]
    assert mamba.between == ("mamba_small", "mamba_large")
    assert mamba.test.mean == pytest.approx(2.1)  # half way between 10^4 and 10^6 on the logarithm, seeds 1 and 2
    assert mamba.test.n == 2
    assert mamba.validation.mean == pytest.approx(2.11)
    assert found["transformer"].between == ("transformer_big",)
    assert found["transformer"].test.mean == pytest.approx(2.4)
    assert found["mlp"].test is None
    assert found["mlp"].note == "one size only: 5,000 parameters"

    largest = {one.architecture: one for one in comparison_of(tmp_path, at=("params", None)).at.sizes}
    assert {one.parameters for one in largest.values()} == {100_500}
    some = {one.architecture: one for one in comparison_of(tmp_path, at=("params", 9e5)).at.sizes}
    assert some["transformer"].note == "its sizes go from 90,000 to 100,500 parameters, and nothing is extrapolated"
    with pytest.raises(
        UserError, match=r"--at=params=2e\+06: no architecture can be read there: .*mamba, its sizes go"
    ):
        comparison_of(tmp_path, at=("params", 2e6))


def test_without_several_sizes_equal_parameters_say_so(tmp_path):
    write_run(tmp_path / "1")
    (one,) = comparison_of(tmp_path, at=("params", None)).at.sizes
    assert one.parameters is None
    assert one.note == "one size only: 8,770 parameters"


@pytest.mark.parametrize(
    ("text", "meaning"),
    [("tokens", ("tokens", None)), ("flops=1e9", ("flops", 1e9)), ("params=100000", ("params", 100_000.0))],
)
def test_budgets_on_the_command_line(text, meaning):
    assert parse_at(text) == meaning


@pytest.mark.parametrize(
    "text", ["", "steps", "tokens=", "tokens=many", "tokens=-1", "tokens=nan", "flops=inf", "seconds=0"]
)
def test_budgets_that_are_none_are_mistakes(text):
    with pytest.raises(UserError, match="--at"):
        parse_at(text)
