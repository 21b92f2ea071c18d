import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from made_runs import (
    MODELS,
    first_comparison,
    five_panel_sweep,
    grid_sweep,
    made_difficulties,
    made_run,
    place_of,
    probe_comparison,
)
from PIL import Image

from seqlab.errors import UserError
from seqlab.report import plots
from seqlab.report.compare import compare
from seqlab.report.grids import bounds_of, grid_of
from seqlab.report.groups import group
from seqlab.report.page.payload import payload
from seqlab.report.plots import drawing
from seqlab.report.plots.style import COLOURS
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
    charts = {one["title"]: one["panels"] for one in payload(comparison)["charts"]["tiny_shakespeare"]}
    shown = [axis for axis, panel in charts["Validation loss"].items() if any(len(line.band.x) for line in panel.lines)]
    assert shown == ["step", "tokens", "flops"]


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


@pytest.fixture
def drawn(monkeypatch):
    """Figures that were drawn with their captions, by the end of their names, in place of files."""
    found = {}

    def keep(picture, folder, name):
        found[name.rpartition("_")[2]] = picture.figure, picture.caption
        return [folder / f"{name}.png"]

    monkeypatch.setattr(drawing, "save", keep)
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


def test_without_accuracy_the_grid_shows_the_loss(drawn, tmp_path):
    comparison = compare(grid_sweep((1,), metric="top1_accuracy"))
    plots.write(comparison, tmp_path)
    figure, caption = drawn["grid"]
    assert figure.axes[0].get_ylabel() == "test loss" and "One seed, so no interval" in caption
    losses = {place_of(row.group.runs[0]): row.test["loss"].mean for row in comparison.rows}
    (line,) = (line for line, *_ in figure.axes[1].containers if line.get_color() == COLOURS["mamba"])
    expected = [losses["mamba", 128, width] for width in (32, 64, 128)]
    assert line.get_ydata().tolist() == expected and len(set(expected)) == 3


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


def test_further_tests_of_several_data_sets_are_in_one_picture(drawn, tmp_path):
    runs = probe_comparison((1, 2))
    other = probe_comparison((1, 2))
    for run in other:
        run.summary["data"] = "parity"
        run.summary["further_tests"] = {f"length={n}": {"loss": 1.0, "accuracy": 1 / n} for n in (64, 512)}
    del other[:2]  # mamba has no runs there
    plots.write(compare(runs + other), tmp_path)
    figure, caption = drawn["tests"]
    assert [axes.get_title() for axes in figure.axes] == ["mqar", "parity"] and "Mean over 2 seeds" in caption
    looks = [{line.get_color(): line.get_marker() for line, *_ in axes.containers} for axes in figure.axes]
    assert len(looks[0]) == 3 and looks[0].items() > looks[1].items()
    assert [line.get_xydata().tolist() for line, *_ in figure.axes[1].containers] == [[[64, 1 / 64], [512, 1 / 512]]] * 2
    drawn.clear()
    plots.write(compare(runs), tmp_path)
    assert "tests" not in drawn


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


def test_without_matplotlib_the_remedy_is_named(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install"):
        plots.write(compare([made_run()]), tmp_path)
