"""A sweep made of several products."""

import json

from hydra.core.override_parser.overrides_parser import OverridesParser

from hydra_plugins.seqlab_points import union
from support import SMALL, options
from test_cli import script


def jobs(points, *given):
    return [set(job) for job in union(points, OverridesParser.create().parse_overrides(list(given)))]


def test_a_union_of_products_without_doubles():
    points = ["model=mamba,mlp", "model=mamba size=tiny,small", "model=mlp,mamba"]
    assert jobs(points, "seed=1,2") == [
        {"model=mamba", "seed=1"},
        {"model=mamba", "seed=2"},
        {"model=mlp", "seed=1"},
        {"model=mlp", "seed=2"},
        {"model=mamba", "size=tiny", "seed=1"},
        {"model=mamba", "size=tiny", "seed=2"},
        {"model=mamba", "size=small", "seed=1"},
        {"model=mamba", "size=small", "seed=2"},
    ]


def test_the_command_line_wins():
    assert jobs(["model=mamba,mlp size=tiny,small"], "size=large") == [
        {"model=mamba", "size=large"},
        {"model=mlp", "size=large"},
    ]


def test_only_the_points_of_the_models_that_are_asked_for():
    """A point's settings are those of its models; with another one they may mean nothing, or not fit."""
    points = ["model=transformer model.feedforward=null", "model=mamba,lstm data.pairs=4", "trainer.steps=1"]
    assert jobs(points, "model=mamba,gru") == [
        {"model=mamba", "data.pairs=4"},
        {"model=gru", "data.pairs=4"},
        {"model=mamba", "trainer.steps=1"},
        {"model=gru", "trainer.steps=1"},
    ]
    assert jobs(points[:2], "model=gru") == [{"model=gru", "model.feedforward=null"}, {"model=gru", "data.pairs=4"}]


def test_without_points_the_command_line_alone_is_run():
    assert jobs(None, "model=mamba,mlp", "seed=1") == [{"model=mamba", "seed=1"}, {"model=mlp", "seed=1"}]


def test_the_published_sweep_varies_one_setting_at_a_time(environment, tmp_path):
    """Three models around one base: contexts, widths, heads, layers, d_state."""
    assert "shakespeare_sweep" in options("experiment")
    import yaml

    from support import CONF

    settings = yaml.safe_load((CONF / "experiment" / "shakespeare_sweep.yaml").read_text())["hydra"]["sweeper"]
    found = jobs(settings["points"], *(f"{key}={value}" for key, value in settings["params"].items()))
    assert len(found) == 3 * len({frozenset(o for o in job if not o.startswith("seed=")) for job in found})
    for job in found:
        varied = {override.partition("=")[0] for override in job} - {"model", "seed", "size.d_ff"}
        assert len(varied) <= 1


def test_a_sweep_of_points(environment, tmp_path):
    points = "hydra.sweeper.points=['model=mlp seed=1,2','model=linear']"
    arguments = ["-m", *SMALL, "hydra/sweeper=points", points, f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    swept = script(*arguments, environment=environment, folder=tmp_path)
    assert swept.returncode == 0, swept.stderr
    models = {p.parent.name: json.loads(p.read_text())["model"] for p in (tmp_path / "sweep").glob("*/summary.json")}
    assert models == {"model=linear": "linear", "model=mlp,seed=1": "mlp", "model=mlp,seed=2": "mlp"}
    assert "[3 of 3]" in swept.stderr
