"""A sweep made of several products."""

import itertools
import json

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser

from seqlab.sweep.points import representatives, union
from support import options


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
    assert jobs(points[:2], "model=lstm,transformer") == [
        {"model=transformer", "model.feedforward=null"},
        {"model=lstm", "data.pairs=4"},
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


def test_a_sweep_of_points(sweep, tmp_path):
    status, _, error = sweep("hydra/sweeper=points", "hydra.sweeper.points=['model=mlp seed=1,2','model=linear']")
    assert status == 0, error
    models = {p.parent.name: json.loads(p.read_text())["model"] for p in (tmp_path / "sweep").glob("*/summary.json")}
    assert models == {"model=linear": "linear", "model=mlp,seed=1": "mlp", "model=mlp,seed=2": "mlp"}
    assert "[3 of 3]" in error


def test_few_jobs_tell_of_every_mistake():
    """One for each pair of options and kind of value, however many seeds, rates and combinations there are."""
    models, data, seeds = (
        ["model=a", "model=b", "model=c"],
        ["data=x", "data=y"],
        [f"seed={n}" for n in range(1, 101)],
    )
    rates = ["optimizer.lr=1", "optimizer.lr=2e-3", "optimizer.lr=null", "optimizer.lr=[1]"]
    every = list(itertools.product(models, data, rates, seeds))
    found = representatives(every, lambda key: key in ("model", "data"))
    assert set(itertools.product(models, data)) == {job[:2] for job in found}
    for option, kind in itertools.product([*models, *data], ["=2e-3", "=null", "=[1]"]):
        wanted = ("=1", "=2e-3") if kind == "=2e-3" else (kind,)  # of two numbers either tells of the other
        assert any(option in job and job[2].endswith(wanted) for job in found)
    assert len(found) <= len(models) * len(data) * 3
    assert representatives([[]], bool) == [[]]


def test_a_sweep_of_many_seeds_is_composed_for_its_models_alone(sweep, monkeypatch, tmp_path):
    """Hydra's own sweeper composes every job before the first one, and again as it begins."""
    composed, begun = [], []
    load = ConfigLoaderImpl.load_sweep_config

    def counted(self, master_config, sweep_overrides):
        composed.append(sweep_overrides)
        return load(self, master_config, sweep_overrides)

    def stop(task, cfg):
        begun.append(len(composed))
        raise KeyboardInterrupt

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", counted)
    monkeypatch.setattr("seqlab.cli.main.swept_job", stop)
    status, _, error = sweep("model=mlp,linear", "seed=range(1,151)")
    assert status == 130, error
    assert begun == [3]  # one for each model, and the first job


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("model=mlp,linear", "optimizer.lrr=1,2"), "optimizer.lrr=1,2: is no setting"),
        (("model=mamba,linear", "model.mixers.mamba.d_state=8,16"), "d_state=8,16: is no setting of model=linear."),
        (("model=linear,mpl", "seed=1,2"), "model=mpl: is no option of model"),
        (("seed=1,2", "optimizer=adamw,amadw"), "optimizer=amadw: is no option of optimizer"),
        (("model=linear", "seed=range(1,1)"), "seed=range(1,1): holds no value"),
        (("model=glob(zz*)", "seed=1,2"), "model=glob(zz*): holds no value, so there is nothing to run.\nNo option"),
        (("model=linear", "seed=range(1,4,0)"), "seed=range(1,4,0): a range cannot go on by steps of 0"),
        (
            ("model=linear", "optimizer.lr=interval(1,2)"),
            "optimizer.lr=interval(1,2): an interval has no single values",
        ),
        (("optimizer=1,2",), "optimizer=1: is no option of optimizer.\nThere are: adam, "),
        (("optimizer=1",), "optimizer=1: is no option of optimizer.\nThere are: adam, "),
        (("match=null,params",), "match=null: is no option of match.\nLeave match out, or write ~match"),
        (("model=[mamba,lstm],gru",), "Name one, and with -m several with commas between: model=mamba,lstm"),
        (("model=mmaba,lstm",), "model=mmaba: is no option of model.\nDid you mean 'mamba'?"),
        (("model=",), "model=: is no option of model."),
        (("hydra/sweeper=points", "hydra.sweeper.points=1"), "hydra.sweeper.points=1: is a list of products"),
        (("hydra/sweeper=points", "hydra.sweeper.points=[1]"), "hydra.sweeper.points=[1]: is a list of products"),
        (
            ("model=linear", "data=synthetic,copying", "data.noise=0,1"),
            "data.noise=0,1: is no setting of data=copying.",
        ),
        (("model=linear", "seed=1", "optimizer.lr=range(3,1)"), "optimizer.lr=range(3,1): holds no value"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_job(sweep, monkeypatch, typed, said):
    """In whichever job, of whichever batch it stands."""
    monkeypatch.setattr("seqlab.cli.main.swept_job", lambda task, cfg: pytest.fail("a job began"))
    status, _, error = sweep(*typed, "hydra.sweeper.max_batch_size=1")
    assert status == 2, error
    assert said in error
    assert "Traceback" not in error


def test_none_is_a_value_to_sweep_over(sweep):
    status, _, error = sweep("model=linear", "trainer.clip_norm=null,1.0", "trainer.steps=1")
    assert status == 0, error
    assert "[2 of 2]" in error
