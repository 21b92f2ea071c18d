import re
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from made_runs import (
    MODELS,
    first_comparison,
    five_panel_sweep,
    grid_sweep,
    made_difficulties,
    made_run,
    probe_comparison,
)
from matplotlib.colors import to_rgb
from PIL import Image

from seqlab.errors import UserError
from seqlab.report import plots
from seqlab.report.compare import compare
from seqlab.report.grids import bounds_of, grid_of
from seqlab.report.groups import flatten, group
from seqlab.report.page.payload import payload
from seqlab.report.plots import cost, difficulty, drawing, figures, grid, sweep
from seqlab.report.plots.bands import Band, band, bands, loss_by_position, thin
from seqlab.report.plots.choices import best_of_models, pareto_front, prominent, sweeps
from seqlab.report.plots.drawing import limits, plain, shortened
from seqlab.report.plots.style import COLOURS, OTHERS, architecture, colours, styles
from seqlab.report.tables import tables_of as sheets_of
from support import CONF

HOSTILE = [
    "$\\frac{",
    "$\\FRAC{",
    "_hidden",
    "a$b$c",
    "</text><script>",
    "line\nend",
    "表 \U0001f600",
    "x" * 300,
    "../../etc",
    "",
]


def test_thinning_takes_means_of_consecutive_rows():
    x = np.arange(1000.0)
    step, loss = thin([x, x**2], 100)
    np.testing.assert_allclose(step, x.reshape(100, 10).mean(axis=1))
    np.testing.assert_allclose(loss, (x**2).reshape(100, 10).mean(axis=1))


@given(st.integers(1, 500), st.integers(1, 60))
def test_thinning_leaves_no_row_out(length, points):
    x = np.random.default_rng(length).standard_normal(length)
    (rows,) = thin([x], points)
    assert len(rows) == min(length, points)
    if length <= points:
        np.testing.assert_array_equal(rows, x)
    elif length % points == 0:
        assert rows.mean() == pytest.approx(x.mean())
    assert x.min() <= rows.min() and rows.max() <= x.max()


def test_a_band_is_interpolated_and_ends_where_a_curve_does():
    first = np.array([0.0, 1.0, 2.0, 3.0, 4.0]), np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    second = np.array([0.5, 2.5, 3.5]), np.array([2.5, 4.5, 5.5])  # two above the first
    found = band([first, second])
    np.testing.assert_allclose(found.x, [0.5, 1, 2, 3, 3.5])
    np.testing.assert_allclose(found.mean, found.x + 1)
    np.testing.assert_allclose(found.low, found.x)
    np.testing.assert_allclose(found.high, found.x + 2)

    parts = [part for x, y in found.alone for part in zip(x.tolist(), y.tolist(), strict=True)]
    assert parts == [(0.0, 0.0), (0.5, 0.5), (3.5, 3.5), (4.0, 4.0)]  # the first alone, before and after the second


def test_curves_with_nothing_in_common_are_each_drawn_alone():
    curves = [(np.arange(3.0), np.ones(3)), (np.arange(5.0, 8.0), np.ones(3))]
    found = band(curves)
    assert len(found.x) == len(found.mean) == 0
    assert found.alone == tuple(curves)
    assert found.ends == (0.0, 7.0)
    assert band([]) is None


def test_seeds_without_a_second_in_common_are_in_the_picture_and_on_the_page(drawn, tmp_path):
    runs = [made_run(seed=seed) for seed in (1, 2)]
    for split in runs[0].curves.values():
        split["seconds"] = split["seconds"] + 1e6  # the machine was another
    comparison = compare(runs)
    plots.write(comparison, tmp_path)
    figure, caption = drawn["loss"]
    for axes in (figure.axes[3], figure.axes[7]):
        assert sorted(len(line.get_xdata()) > 0 for line in axes.lines) == [False, True, True]
    assert "Thin lines: single seeds" in caption
    (described,) = payload(comparison)["groups"]
    assert set(described["curves"]["validation"]) == {"step", "tokens", "flops"}


def test_the_first_evaluation_stays_in_the_frame_and_the_caption_says_what_does_not(drawn, tmp_path):
    run = made_run(steps=1000, evaluate_every=250, log_every=10)
    for split in run.curves.values():
        for name, column in split.items():
            split[name] = column[1:] if split is run.curves["validation"] else column  # none before training
    run.curves["train"]["loss"][0] = 50.0  # step 10 of 1,000
    plots.write(compare([run]), tmp_path)
    figure, caption = drawn["loss"]
    assert figure.axes[4].get_ylim()[1] > run.curves["validation"]["loss"][0]
    assert figure.axes[0].get_ylim()[1] < 10
    assert "losses that only the first 2 % of the steps have" in caption
    run.curves["train"]["loss"][0] = run.curves["train"]["loss"][5]
    plots.write(compare([run]), tmp_path)
    assert "first 2 %" not in drawn["loss"][1]


def test_a_group_of_seeds_has_a_band_against_every_axis():
    (one,) = group([made_run(seed=seed) for seed in (1, 2, 3)])
    found = bands(one, "validation", 200)
    losses = np.stack([run.curves["validation"]["loss"] for run in one.runs])
    assert list(found) == ["step", "tokens", "flops", "seconds"]
    for axis in ("step", "tokens", "flops"):
        np.testing.assert_array_equal(found[axis].x, one.runs[0].curves["validation"][axis])
        np.testing.assert_allclose(found[axis].mean, losses.mean(axis=0))
        np.testing.assert_allclose(found[axis].low, losses.min(axis=0))
    ends = [run.curves["validation"]["seconds"][-1] for run in one.runs]
    assert len(set(ends)) == 3
    assert found["seconds"].x[-1] == min(ends)


def test_steps_without_a_loss_are_left_out():
    run = made_run()
    run.curves["train"]["loss"][10:20] = np.nan
    (one,) = group([run])
    found = bands(one, "train", 1000)["step"]
    assert len(found.x) == 90
    assert np.isfinite(found.mean).all()


def test_loss_by_position_bins_late_positions_only():
    run = made_run(**{"data.length": 1024})
    run.summary["test_loss_by_position"][7] = None
    (one,) = group([run])
    found = loss_by_position(one)
    losses = run.summary["test_loss_by_position"]
    assert 20 < len(found.x) <= 64
    np.testing.assert_allclose(found.x[:7], np.arange(1, 8))
    np.testing.assert_allclose(found.mean[:7], losses[:7])
    assert found.x[7] > 8 and 900 < found.x[-1] <= 1024


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=12))
def test_nothing_beats_the_pareto_front(points):
    front = [points[i] for i in pareto_front(*map(list, zip(*points, strict=True)))]

    def beats(a, b):
        return a != b and a[0] <= b[0] and a[1] <= b[1]

    assert set(front) == {a for a in points if not any(beats(b, a) for b in points)}
    assert front == sorted(set(front))


def test_the_published_sweep_has_five_panels():
    found = sweeps(group(five_panel_sweep((1, 2))))
    assert list(found) == ["d_model", "n_layers", "n_heads", "d_state", "length"]
    values = {(name, one.model): one.values for name, series in found.items() for one in series}
    assert values["d_state", "mamba"] == (8, 16, 32, 64)
    assert values["length", "transformer"] == (32, 64, 128, 256, 512)
    assert values["n_heads", "self_attention"] == (1, 2, 4, 8)
    assert ("n_heads", "mamba") not in values
    assert not any(model in ("lstm", "linear", "mlp") for _, model in values)


def test_groups_of_a_series_differ_in_its_parameter_alone():
    for name, series in sweeps(group(five_panel_sweep((1,)))).items():
        for one in series:
            flat = [flatten(member.runs[0].config) for member in one.groups]
            differing = {key for key in flat[0] if any(other.get(key) != flat[0][key] for other in flat)}
            assert differing and {key.split(".")[-1] for key in differing} == {name}
            assert one.base in one.groups


def test_the_series_of_a_grid_meet_at_the_best_on_validation():
    runs = [
        made_run(loss_change=abs(width - 64) / 1000 + layers / 1000, **{"size.d_model": width, "size.n_layers": layers})
        for width in (32, 64, 128)
        for layers in (1, 2, 3)
    ]
    found = sweeps(group(runs))
    assert {name: [len(one.groups) for one in series] for name, series in found.items()} == {
        "d_model": [3],
        "n_layers": [3],
    }
    base = found["d_model"][0].base
    assert base is found["n_layers"][0].base
    assert (base.runs[0].config["model"]["d_model"], base.runs[0].config["model"]["n_layers"]) == (64, 1)


def test_parameters_that_change_together_share_a_panel_and_say_so():
    changes = [{"size.d_model": n, "model.mixers.mamba.d_state": n // 8} for n in (32, 64, 128)]
    found = sweeps(group([made_run(**change) for change in changes]))
    assert list(found) == ["d_model"]
    assert found["d_model"][0].follows == ("d_state",)


def test_nothing_is_swept_where_sizes_differ_in_several_ways():
    changes = [(32, 1), (64, 1), (64, 4)]
    runs = [made_run(**{"size.d_model": width, "size.n_layers": layers}) for width, layers in changes]
    assert {name: series[0].values for name, series in sweeps(group(runs)).items()} == {
        "d_model": (32, 64),
        "n_layers": (1, 4),
    }
    runs = [made_run(**{"size.d_model": w, "size.n_layers": n}) for w, n in [(32, 1), (64, 2), (128, 2), (256, 1)]]
    assert not set(sweeps(group(runs))) - {"d_model"}


def test_two_of_several_sizes_that_differ_in_one_thing_by_chance_are_no_sweep():
    sizes = [(256, 4), (512, 4), (512, 6), (768, 8), (384, 12)]
    runs = [made_run(**{"size.d_model": width, "size.n_layers": layers}) for width, layers in sizes]
    assert sweeps(group(runs)) == {}
    wider = made_run(**{"size.d_model": 1024, "size.n_layers": 4})
    assert {name: series[0].values for name, series in sweeps(group([*runs, wider])).items()} == {
        "d_model": (256, 512, 1024)
    }


def colour_blind(colour: str, kind: str) -> np.ndarray:
    """A colour as seen with a common blindness (Machado, Oliveira and Fernandes 2009, whole), in CIELAB."""
    matrix = {
        "none": np.eye(3),
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    }[kind]
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(matrix) @ linear, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ seen / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("kind", ["none", "protan", "deutan"])
def test_the_known_architectures_are_told_apart_by_everyone(kind):
    seen = {name: colour_blind(colour, kind) for name, colour in COLOURS.items()}
    for one, other in combinations(seen, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 15, (one, other)


def test_an_architecture_keeps_its_colour():
    assert colours(["mamba", "lstm"])["mamba"] == colours(["mamba_deep", "other"])["mamba"] == COLOURS["mamba"]
    assert colours(["mine"])["mine"] == colours(["mine", "mamba"])["mine"]
    unknown = [f"mine{i}" for i in range(len(OTHERS))]
    assert len(set(colours(unknown).values())) == len(OTHERS)
    assert architecture("transformer_vanilla") == "transformer_vanilla"
    assert architecture("mamba_small") == "mamba" and architecture("_small") == "_small"


def test_lines_tell_settings_of_one_model_apart():
    groups = group([made_run(**{"model.mixers.mamba.d_state": n}) for n in (8, 16, 32)] + [made_run("lstm")])
    found = dict(zip([one.label for one in groups], styles(groups), strict=True))
    assert len({style.line for name, style in found.items() if name.startswith("mamba")}) == 3
    assert len({style.colour for name, style in found.items() if name.startswith("mamba")}) == 1
    assert found["lstm"].line == "solid"


def test_of_too_many_groups_each_models_best_stands_out():
    runs = [made_run("mamba", loss_change=n / 1000, **{"model.mixers.mamba.d_state": n}) for n in range(1, 21)]
    rows = compare([*runs, made_run("lstm")]).rows
    assert {rows[i].group.label for i in prominent(rows)} == {"mamba, d_state=1", "lstm"}
    assert [rows[i].group.label for i in best_of_models(rows)] == ["mamba, d_state=1", "lstm"]
    assert len(prominent(rows[:12])) == 12


@pytest.fixture
def drawn(monkeypatch):
    """Figures that were drawn, by the end of their names, in place of files."""
    found = {}

    def keep(figure, folder, name, caption):
        found[name.rpartition("_")[2]] = figure, caption
        return [folder / f"{name}.png"]

    monkeypatch.setattr(cost, "save", keep)
    monkeypatch.setattr(difficulty, "save", keep)
    monkeypatch.setattr(figures, "save", keep)
    monkeypatch.setattr(sweep, "save", keep)
    monkeypatch.setattr(grid, "save", keep)
    return found


def test_what_the_figures_show(drawn, tmp_path):
    comparison = compare(first_comparison())
    plots.write(comparison, tmp_path)
    figure, caption = drawn["loss"]
    assert [axes.get_xlabel() for axes in figure.axes[4:]] == [
        "steps",
        "tokens",
        "training FLOPs",
        "seconds of training",
    ]
    assert [figure.axes[i].get_ylabel() for i in (0, 4)] == ["training loss", "validation loss"]
    assert [axes.get_xscale() for axes in figure.axes[:4]] == ["linear", "linear", "log", "log"]
    assert {text.get_text() for text in figure.legends[0].get_texts()} == set(MODELS)
    assert "Mean over 3 seeds; bands: lowest and highest seed" in caption
    mamba = next(one for one in comparison.groups if one.model == "mamba")
    by_colour = {line.get_color(): line for line in figure.axes[4].lines}
    losses = [run.curves["validation"]["loss"] for run in mamba.runs]
    np.testing.assert_allclose(by_colour[COLOURS["mamba"]].get_ydata(), np.mean(losses, axis=0))
    assert len(figure.axes[4].collections) == len(MODELS) + 1  # a band each, and the empty background
    for kind in ("loss", "position"):
        assert {line.get_color() for line in drawn[kind][0].axes[0].lines} == {COLOURS[model] for model in MODELS}
    assert "bars: 95 % interval of the mean (" in drawn["cost"][1] and "Pareto" in drawn["cost"][1]
    assert [axes.get_xlabel() for axes in drawn["cost"][0].axes] == ["parameters", "training FLOPs"]
    assert "sweep" not in drawn


def test_the_sweep_figure(drawn, tmp_path):
    comparison = compare(five_panel_sweep())
    plots.write(comparison, tmp_path)
    figure, caption = drawn["sweep"]
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert labels == ["width (d_model)", "layers", "attention heads", "state size (d_state)", "context length"]
    means, _, bars = figure.axes[3].containers[0]
    at_base = {"length": 128, "d_model": 128, "n_layers": 4}
    rows = {}
    for row in comparison.rows:
        settings = {key.split(".")[-1]: value for key, value in row.group.settings.items()}
        if row.group.model == "mamba" and settings.items() >= at_base.items():
            rows[settings["d_state"]] = row
    np.testing.assert_allclose(np.array(means.get_ydata(), float), [rows[n].test["loss"].mean for n in (8, 16, 32, 64)])
    ends = bars[0].get_segments()[1][:, 1]
    np.testing.assert_allclose(ends, [rows[16].test["loss"].low, rows[16].test["loss"].high])
    assert "base setting" in caption and "d_state 16" in caption


def test_the_grid_figure(drawn, tmp_path):
    unfinished = {("mamba", 256, 64), ("mamba", 256, 128)}
    runs = [run for run in grid_sweep() if place_of(run) not in unfinished]
    for run in runs:
        run.summary.update(made_difficulties(0, run.summary["seed"]))
    comparison = compare(runs)
    names = {path.name for path in plots.write(comparison, tmp_path)}
    assert "sweep" not in drawn and "mqar_difficulty.png" not in names
    figure, caption = drawn["grid"]
    titles = ["length 64, pairs 4", "length 128, pairs 8", "length 256, pairs 16"]
    assert [axes.get_title() for axes in figure.axes] == titles
    assert figure.axes[0].get_ylabel() == "accuracy" and figure.axes[0].get_ylim() == (-0.03, 1.03)
    assert [axes.get_xlabel() for axes in figure.axes] == ["width (d_model)"] * 3
    assert figure.axes[0].get_xscale() == "log"
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["32", "64", "128"]
    lines = [{line.get_color(): line.get_xydata() for line, *_ in axes.containers} for axes in figure.axes]
    solved = [[32, 0.999], [64, 0.999], [128, 0.999]]
    expected = [solved, [[32, 0.115], *solved[1:]], [[32, 0.115]]]
    beside = 2**0.25  # two models, half of the gap between two sizes apart
    for by_colour, points in zip(lines, expected, strict=True):
        np.testing.assert_allclose(by_colour[COLOURS["transformer"]], np.array(solved) * [beside, 1])
        np.testing.assert_allclose(by_colour[COLOURS["mamba"]], np.array(points) / [beside, 1])
    assert len({line.get_linestyle() for line, *_ in figure.axes[0].containers}) == 2
    assert "Mean over 2 seeds; bars: 95 %" in caption and "batch_size" in caption
    assert "2 of 18 places have no completed run" in caption


def test_the_grid_shows_the_target_and_whose_it_is(drawn, tmp_path):
    runs = grid_sweep((1,))
    rule = {"at_least": 0.99, "published": 1.0, "models": ["transformer", "hybrid"]}
    for run in runs:
        value = run.summary["test"]["accuracy"]
        further = {"metric": "further_tests.length=8.accuracy", "rule": {"at_least": 0.5}, "value": 1, "reached": True}
        run.summary["targets"] = [{"metric": "test.accuracy", "rule": rule, "value": value, "reached": None}, further]
    plots.write(compare(runs), tmp_path)
    figure, caption = drawn["grid"]
    for axes in figure.axes:
        level = [line for line in axes.lines if len(set(line.get_ydata())) == 1 and line.get_color() == "0.2"]
        assert [line.get_ydata()[0] for line in level] == [0.99]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["mamba", "transformer", "target 0.99"]
    assert "The target 0.99 is for transformer." in caption
    found = grid_of(group(runs))
    assert bounds_of(found, "loss") == {}
    runs[0].summary["targets"] = []  # of a transformer: at one place nobody asked
    assert bounds_of(grid_of(group(runs)), "accuracy") == {}


def test_the_cost_figure_joins_the_sizes_of_a_model_and_shows_active_parameters(drawn, tmp_path):
    runs = []
    for model, experts in (("mamba", 1), ("mamba_moe", 3)):
        for name in ("small", "medium", "large"):
            path = CONF / "size" / f"{name}.yaml"
            run = made_run(model, **{f"size.{key}": value for key, value in yaml.safe_load(path.read_text()).items()})
            run.summary["active_parameters"] = run.summary["parameters"]
            run.summary["parameters"] *= experts
            runs.append(run)
    plots.write(compare(runs), tmp_path)
    figure, caption = drawn["cost"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["all parameters", "active parameters", "training FLOPs"]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["mamba", "mamba_moe", *(f"size={name}" for name in ("small", "medium", "large"))]
    for axes, key in zip(figure.axes, ("parameters", "active_parameters", "flops"), strict=True):
        joined = {line.get_color(): line.get_xdata() for line in axes.lines if line.get_alpha()}
        for model in ("mamba", "mamba_moe"):
            costs = sorted(run.summary[key] for run in runs if run.summary["model"] == model)
            np.testing.assert_array_equal(joined[COLOURS[model]], costs)
        points = {points.get_marker() for points, *_ in axes.containers}
        assert len(axes.containers) == 6 and len(points) == 3
    assert "the sizes of one model" in caption and "faint" not in caption


def test_only_what_differs_in_size_alone_is_joined():
    runs = [made_run(**{"size.d_model": width}) for width in (64, 128)]
    groups = group([*runs, made_run(**{"size.d_model": 256, "trainer.batch_size": 8}), made_run("lstm")])
    (joined,) = cost.families(groups)
    assert [groups[i].settings["size.d_model"] for i in joined] == [64, 128]
    assert cost.named_sizes(groups, [joined]) == []


def place_of(run):
    return run.summary["model"], run.config["data"]["length"], run.config["size"]["d_model"]


def test_without_accuracy_the_grid_shows_the_loss(drawn, tmp_path):
    comparison = compare(grid_sweep((1,), metric="top1_accuracy"))
    plots.write(comparison, tmp_path)
    figure, caption = drawn["grid"]
    assert figure.axes[0].get_ylabel() == "test loss" and "One seed, so no interval" in caption
    losses = {place_of(row.group.runs[0]): row.test["loss"].mean for row in comparison.rows}
    (line,) = (line for line, *_ in figure.axes[1].containers if line.get_color() == COLOURS["mamba"])
    expected = [losses["mamba", 128, width] for width in (32, 64, 128)]
    assert line.get_ydata().tolist() == expected and len(set(expected)) == 3


def test_around_a_base_there_is_no_grid():
    assert grid_of(group(five_panel_sweep((1,)))) is None
    assert grid_of(group([run for run in grid_sweep((1,)) if place_of(run)[1] == 64])) is None
    star = [run for run in grid_sweep((1,)) if 64 in place_of(run)[1:]]
    assert grid_of(group(star)) is None
    assert list(sweeps(group(star))) == ["d_model", "length"]


def test_settings_beyond_data_and_size_keep_a_model_out_of_the_grid():
    place = {"data.length": 64, "data.pairs": 4, "size.d_model": 32}
    found = grid_of(group([*grid_sweep((1,)), made_run("mamba", "mqar", **place, **{"trainer.batch_size": 8})]))
    assert list(found.models) == ["transformer"]
    assert found.left_out == ("mamba",)


def test_a_size_that_follows_the_width_is_named():
    runs = grid_sweep((1,))
    for run in runs:
        width = run.config["size"]["d_model"]
        run.config["size"]["d_ff"] = run.config["model"]["d_ff"] = 4 * width
    found = grid_of(group(runs))
    assert (found.parameter, found.sizes, found.missing) == ("d_model", (32, 64, 128), 0)
    assert set(found.follows) == {"batch_size", "d_ff"}


def test_the_size_that_each_setting_needs():
    runs = [run for run in grid_sweep() if place_of(run) not in {("mamba", 128, 32), ("mamba", 256, 128)}]
    (needed,) = (sheet for sheet in sheets_of(compare(runs)) if "needed" in sheet.title)
    assert needed.headings == ["model", "length 64, pairs 4", "length 128, pairs 8", "length 256, pairs 16"]
    assert {line[0]: line[1:] for line in needed.lines} == {
        "transformer": ["32", "32", "32"],
        "mamba": ["32", "at most 64", "none of 32, 64"],
    }
    assert "0.99" in needed.notes[0]
    unsolved = [run for run in grid_sweep() if place_of(run)[0] == "mamba"]
    for run in unsolved:
        run.summary["test"]["accuracy"] = 0.98
    (needed,) = (sheet for sheet in sheets_of(compare(unsolved)) if "needed" in sheet.title)
    assert needed.lines == [["mamba", "none", "none", "none"]]


def test_a_sweep_of_a_probe_shows_accuracy(drawn, tmp_path):
    runs = [run for run in grid_sweep() if place_of(run)[1] == 128]
    plots.write(compare(runs), tmp_path)
    figure, _ = drawn["sweep"]
    assert figure.axes[0].get_ylabel() == "accuracy"
    lines = {line.get_color(): np.array(line.get_ydata(), float) for line, *_ in figure.axes[0].containers}
    np.testing.assert_allclose(lines[COLOURS["mamba"]], [0.115, 0.999, 0.999])


def test_a_single_further_test_has_a_panel(drawn, tmp_path):
    runs = probe_comparison((1,))
    for run in runs:
        run.summary["further_tests"] = {"length=512": {"loss": 1.0, "accuracy": 0.25}}
        run.summary["test_slices"] = {}
    plots.write(compare(runs), tmp_path)
    (axes,) = drawn["difficulty"][0].axes
    assert axes.get_title() == "further tests" and axes.get_xlabel() == "length"
    assert [line.get_xydata().tolist() for line, *_ in axes.containers] == [[[512, 0.25]]] * 3


def test_one_seed_is_said(drawn, tmp_path):
    plots.write(compare([made_run(), made_run("lstm")]), tmp_path)
    assert all("One seed, so no interval" in caption for _, caption in drawn.values())
    assert not any("bands" in caption or "bars" in caption for _, caption in drawn.values())


def test_files_are_small_and_whole_and_each_data_set_has_its_own(tmp_path):
    comparison = compare(five_panel_sweep((1, 2)) + [made_run("mamba", "ptb", seed) for seed in (1, 2)])
    paths = plots.write(comparison, tmp_path)
    names = {path.name for path in paths}
    kinds = {f"tiny_shakespeare_{kind}" for kind in ("loss", "cost", "position", "sweep")}
    kinds |= {f"ptb_{kind}" for kind in ("loss", "cost", "position")}
    assert names == {f"{kind}.{ending}" for kind in kinds for ending in ("png", "svg")}
    for path in paths:
        if path.suffix == ".png":
            assert path.stat().st_size < 150_000
            with Image.open(path) as picture:
                assert picture.size[0] > 700
                assert "seeds" in picture.text["Description"]
        else:
            assert path.stat().st_size < 600_000
            assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_the_files_are_the_same_every_time(tmp_path):
    comparison = compare([made_run(), made_run("lstm")])
    first, second = (plots.write(comparison, tmp_path / name) for name in ("first", "second"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_hostile_names_are_drawn_as_they_stand(tmp_path):
    runs = [made_run(name, HOSTILE[i % 2]) for i, name in enumerate(HOSTILE)]
    runs += [made_run("mamba", HOSTILE[0], **{"model.pattern": [name]}) for name in HOSTILE]
    paths = plots.write(compare(runs), tmp_path)
    assert all(path.parent == tmp_path and re.fullmatch(r"[\w.-]{1,80}", path.name, re.ASCII) for path in paths)
    assert len({path.name.lower() for path in paths}) == len(paths)
    for path in paths:
        if path.suffix == ".svg":
            ElementTree.parse(path)


def test_a_run_with_nothing_but_its_end_is_drawn(tmp_path):
    run = made_run()
    for split in run.curves.values():
        for name, column in split.items():
            split[name] = column[-1:]
    run.summary["test_loss_by_position"] = None
    assert {path.name for path in plots.write(compare([run]), tmp_path) if path.suffix == ".png"} == {
        "tiny_shakespeare_loss.png",
        "tiny_shakespeare_cost.png",
    }


def test_ticks_are_named_in_short():
    named = {0: "0", 0.001: "0.001", 2.5: "2.5", 999: "999", 1000: "1k", 2_500_000: "2.5M", 1e12: "1T"}
    assert {value: drawing.short_number(value) for value in named} == named


def test_without_matplotlib_the_remedy_is_named(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install"):
        plots.write(compare([made_run()]), tmp_path)


def test_nothing_of_a_long_label_is_cut_off():
    """Its end may be what tells it from another."""
    labels = [f"mamba, {', '.join(f'a_long_setting_{i}=0.001' for i in range(6))}, lr={rate}" for rate in (1, 2)]
    for label in labels:
        shown = plain(label)
        assert shown.replace("\n", " ") == label
        assert max(map(len, shown.split("\n"))) <= 70


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["8", "16"], ["8", "16"]),
        (["torch.optim.AdamW", "torch.optim.Adam"], ["…W", "…"]),
        (["a_transformer_of_8", "a_transformer_of_16"], ["…8", "…16"]),
        (["first_of_all_settings", "second_of_all_settings"], ["first_of_al…", "second_of_a…"]),
        (["ab" + "c" * 20 + "d", "ab" + "c" * 20 + "e", "x"], ["ab" + "c" * 20 + "d", "ab" + "c" * 20 + "e", "x"]),
        (["x" * 300], ["x" * 11 + "…"]),
    ],
)
def test_names_are_shortened_where_they_do_not_differ(names, shown):
    assert shortened(names, 12) == shown


@given(st.lists(st.text("ab", max_size=30), unique=True, min_size=1), st.integers(3, 20))
def test_names_stay_different(names, longest):
    assert len(set(shortened(names, longest))) == len(names)


@pytest.mark.parametrize("points", [1, 2])
def test_a_curve_of_two_points_lies_inside_the_limits(points):
    x, y = np.array([0.0, 100.0])[:points], np.array([9.0, 1.0])[:points]
    low, high = limits([Band(x, y, y - 0.5, y + 0.5, 2)])
    assert low <= (y - 0.5).min() and high >= (y + 0.5).max()
