"""Which runs are fitted, what is said where they cannot be, and where two fitted curves are equal."""

import csv

import numpy as np
import pytest
from made_runs import BUDGETS, LAWS, at_law, budget_sweep, made_run, set_loss

from seqlab.report import plots, write_tables
from seqlab.report.compare import compare
from seqlab.report.page.payload import payload
from seqlab.report.plots import drawing
from seqlab.report.plots.fits import LABEL, spread
from seqlab.report.tables import fit_tables

WIDE = {"size.d_model": 256}


@pytest.fixture(scope="module")
def comparison():
    """Two models whose curves cross, with a middle budget asked for, and one that has three budgets."""
    runs = budget_sweep() + budget_sweep({"transformer": LAWS["mamba"]}, budgets=BUDGETS[:3])
    return compare(runs, at=("flops", 5e13))


def test_models_with_several_budgets_are_fitted_and_the_others_refused_in_words(comparison):
    found = {one.label: one for one in comparison.fits}
    assert {name: len(one.groups) for name, one in found.items()} == {"mamba": 4, "lstm": 4, "transformer": 3}
    assert found["transformer"].verdict == "no fit: 3 budgets, and three unknowns take at least 4"
    assert found["transformer"].law is None
    for name, (offset, exponent, scale) in LAWS.items():
        law = found[name].law
        truth = ((law.offset, offset), (law.exponent, exponent), (law.log_scale, np.log(scale)))
        assert all(one.low <= value <= one.high for one, value in truth)
        assert found[name].verdict == "E and a are identified"
        assert (found[name].runs, law.n) == (12, 12)


def test_runs_of_one_budget_are_not_fitted_whatever_their_sizes():
    runs = [made_run(seed=seed, **{"size.d_model": 32 * 2**i}) for i in range(5) for seed in (1, 2)]
    found = compare(runs)
    assert (found.fits, found.gaps, fit_tables(found)) == ([], [], [])


def test_of_several_sizes_those_are_fitted_that_no_other_beats_at_equal_flops():
    """The wide model's step costs four times as much: it is behind at its two least budgets, ahead at the others."""
    runs = budget_sweep({"mamba": LAWS["mamba"]}, noise=0.0)
    for steps, factor in zip(BUDGETS, (1.1, 1.01, 0.99, 0.98), strict=True):
        for seed in (1, 2, 3):
            run = made_run(seed=seed, steps=steps, evaluate_every=steps, **WIDE, **{"trainer.steps": steps})
            set_loss(run, factor * at_law(run.summary["flops"], LAWS["mamba"]))
            runs.append(run)
    (found,) = compare(runs).fits
    chosen = [(group.settings["size.d_model"], group.settings["trainer.steps"]) for group in found.groups]
    assert chosen == [(128, 500), (128, 2000), (128, 8000), (256, 8000), (256, 32_000)]
    assert len(found.beaten) == 3


def rising(place):
    return 2 + 0.1 * place


def level(place):
    return 2.0


def negative(place):
    return 1.0 - place


def straight(place):
    return 3 * 0.9**place


def stairs(place):
    return (3.0, 2.4, 2.35, 1.9, 1.88)[place]


@pytest.mark.parametrize(
    ("loss_of", "budgets", "verdict"),
    [
        (rising, BUDGETS, "no fit: the loss falls by less than"),
        (level, BUDGETS, "no fit: the loss falls by less than"),
        (negative, BUDGETS, "no fit: a loss of 0 or less has no logarithm"),
        (straight, BUDGETS, "E and a are not identified: a power law without E fits as well (a = 0.07"),
        (stairs, (*BUDGETS, 128_000), "the curve misses the means by more than the seeds' scatter"),
    ],
)
def test_what_the_runs_cannot_tell_is_said(loss_of, budgets, verdict):
    runs = budget_sweep({"mamba": LAWS["mamba"]}, budgets=budgets)
    for run in runs:
        place = budgets.index(run.summary["steps"])
        error = 1 + 0.002 * np.random.default_rng([run.summary["seed"], place]).standard_normal()
        set_loss(run, loss_of(place) * error)
    found = compare(runs)
    (one,) = found.fits
    assert one.verdict.startswith(verdict)
    if loss_of is straight:
        (table,) = fit_tables(found)
        cells = dict(zip(table.headings, table.lines[0], strict=True))
        assert (cells["E"], cells["exponent a"], cells["C0 in FLOPs"]) == ("–", "–", "–")  # noqa: RUF001


def test_where_two_curves_are_equal_is_found_with_its_interval(comparison):
    flops = np.geomspace(1e12, 1e16, 100_001)
    sign = np.sign(at_law(flops, LAWS["mamba"]) - at_law(flops, LAWS["lstm"]))
    (crossing,) = flops[1:][sign[1:] != sign[:-1]]
    (gap,) = comparison.gaps
    assert (gap.first.label, gap.second.label) == ("mamba", "lstm")
    low, high = gap.equal
    assert low < crossing < high
    assert low < gap.crossing < high
    assert gap.crossing == pytest.approx(crossing, rel=0.3)
    assert gap.verdict.startswith("lstm is better below ") and ", mamba is better above " in gap.verdict
    least, budget, greatest = gap.places
    assert budget == 5e13
    assert (least, greatest) == (
        max(one.extent[0] for one in (gap.first, gap.second)),
        min(gap.first.extent[1], gap.second.extent[1]),
    )
    for place, difference in zip(gap.places, gap.differences, strict=True):
        truth = at_law(place, LAWS["lstm"]) - at_law(place, LAWS["mamba"])
        assert abs(difference.mean - truth) <= 2 * difference.half_width


def test_equal_models_have_no_crossing_that_is_shown():
    found = compare(budget_sweep({"mamba": LAWS["mamba"], "transformer": LAWS["mamba"]}, noise=0.01))
    (gap,) = found.gaps
    assert gap.verdict == "no difference shown"
    assert gap.equal == (None, None)


def test_the_files_hold_the_fits(comparison, tmp_path):
    names = [path.name for path in write_tables.write(comparison, tmp_path)]
    assert names[-2:] == ["fits.csv", "equal_flops.csv"]
    with (tmp_path / "fits.csv").open(encoding="utf-8") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    law = next(one.law for one in comparison.fits if one.label == "mamba")
    assert float(rows["mamba"]["E_mean"]) == law.offset.mean
    assert float(rows["mamba"]["a_high"]) == law.exponent.high
    assert (rows["transformer"]["E_mean"], rows["transformer"]["verdict"][:6]) == ("", "no fit")
    with (tmp_path / "equal_flops.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert float(row["budget_flops"]) == 5e13
    assert float(row["equal_flops"]) == comparison.gaps[0].crossing
    for name in ("comparison.md", "comparison.tex"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "Test loss against training FLOPs" in text and "Fits at equal training FLOPs" in text


def test_the_picture_and_the_page_show_points_curves_and_extrapolation(comparison, monkeypatch, tmp_path):
    drawn = {}
    monkeypatch.setattr(drawing, "save", lambda picture, folder, name: drawn.setdefault(name, picture) and [])
    plots.write(comparison, tmp_path)
    picture = drawn["tiny_shakespeare_fit"]
    losses, gaps = picture.figure.axes
    law = next(one for one in comparison.fits if one.label == "mamba").law
    lines = [line for line in losses.lines if line.get_color() == "#0072B2" and len(line.get_xdata()) > 5]
    assert [line.get_linestyle() for line in lines] == ["-", "--"]
    assert lines[0].get_xdata()[-1] == lines[1].get_xdata()[0]
    for line in lines:
        np.testing.assert_allclose(line.get_ydata(), law.losses(line.get_xdata())[0])
    assert {text.get_text().strip() for text in losses.texts} == {"mamba", "lstm", "transformer"}
    assert gaps.get_ylabel() == "less that of mamba"
    assert "transformer: no fit: 3 budgets" in picture.caption
    charts = {
        one["title"]: one["panels"][""]
        for one in payload(comparison)["charts"]["tiny_shakespeare"]
        if "" in one["panels"]
    }
    assert [line.style.line for line in charts["Fitted test loss"].fitted] == ["solid", "dash"] * 2
    assert [len(line.band.x) for line in charts["Fitted test loss"].lines] == [4, 4, 3]
    assert len(charts["Difference of the fitted test losses"].fitted) == 1


def test_names_beside_lines_do_not_touch_and_keep_their_order():
    heights = [0.5, 0.51, 0.1, 0.52, 0.99, 1.0]
    placed = spread(heights)
    assert np.argsort(placed).tolist() == np.argsort(heights).tolist()
    assert np.diff(sorted(placed)).min() >= LABEL - 1e-9
    assert placed[2] == pytest.approx(0.1) and placed[1] == pytest.approx(0.51)
    assert max(placed) <= 1 + 1e-9
