from hypothesis import given
from hypothesis import strategies as st
from made_runs import five_panel_sweep, grid_sweep, made_run, place_of

from seqlab.report.compare import compare
from seqlab.report.grids import grid_of
from seqlab.report.groups import flatten, group
from seqlab.report.plots import cost
from seqlab.report.plots.dataset import best_of_models, prominent
from seqlab.report.plots.panels import pareto_front
from seqlab.report.plots.sweeps import sweeps
from seqlab.report.tables import tables_of


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


def test_of_too_many_groups_each_models_best_stands_out():
    runs = [made_run("mamba", loss_change=n / 1000, **{"model.mixers.mamba.d_state": n}) for n in range(1, 21)]
    rows = compare([*runs, made_run("lstm")]).rows
    assert {rows[i].group.label for i in prominent(rows)} == {"mamba, d_state=1", "lstm"}
    assert [rows[i].group.label for i in best_of_models(rows)] == ["mamba, d_state=1", "lstm"]
    assert len(prominent(rows[:12])) == 12


def test_only_what_differs_in_size_alone_is_joined():
    runs = [made_run(**{"size.d_model": width}) for width in (64, 128)]
    groups = group([*runs, made_run(**{"size.d_model": 256, "trainer.batch_size": 8}), made_run("lstm")])
    (joined,) = cost.families(groups)
    assert [groups[i].settings["size.d_model"] for i in joined] == [64, 128]
    assert cost.named_sizes(groups, [joined]) == []


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
    (needed,) = (table for table in tables_of(compare(runs)) if "needed" in table.title)
    assert needed.headings == ["model", "length 64, pairs 4", "length 128, pairs 8", "length 256, pairs 16"]
    assert {line[0]: line[1:] for line in needed.lines} == {
        "transformer": ["32", "32", "32"],
        "mamba": ["32", "at most 64", "none of 32, 64"],
    }
    assert "0.99" in needed.notes[0]
    unsolved = [run for run in grid_sweep() if place_of(run)[0] == "mamba"]
    for run in unsolved:
        run.summary["test"]["accuracy"] = 0.98
    (needed,) = (table for table in tables_of(compare(unsolved)) if "needed" in table.title)
    assert needed.lines == [["mamba", "none", "none", "none"]]
