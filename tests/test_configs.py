"""Every YAML, found by glob, runs end to end; every setting is held against its constructor."""

import math
import re
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from seqlab.config.options import describe_options, first_comment
from seqlab.config.schema import check
from seqlab.errors import UserError
from support import CONF, architectures, compose_config, depth, models, optimizers, options

YAMLS = sorted(path for path in CONF.rglob("*.yaml") if "hydra" not in path.parts)


def plain(*overrides: str) -> dict:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(compose_config(*overrides), resolve=True)


@pytest.mark.parametrize("model", models())
def test_every_model_trains(train, model):
    job = train(f"model={model}", "size=tiny", f"size.n_layers={depth(model)}")
    assert job.status == 0
    assert job.summary["status"] == "completed"
    assert job.summary["model"] == model


@pytest.mark.filterwarnings("ignore")  # the library's own
@pytest.mark.parametrize("model", [name for name in options("model") if name not in models()])
def test_every_model_of_an_extra_trains_or_says_why_not(train, model, capsys):
    job = train(f"model={model}", "size=tiny", "trainer.precision=bf16", "device=auto")
    if find_spec("fla") and torch.cuda.is_available():
        assert job.status == 0
        return
    message = "need a GPU" if find_spec("fla") else "Install it with pip install 'seqlab[fla]'."
    assert job.status == 2
    assert message in capsys.readouterr().err
    pytest.skip("the message is right; training needs the extra fla and a GPU")


@pytest.mark.parametrize("size", options("size"))
def test_every_size_trains(train, size):
    assert train(f"size={size}", "data.length=4", "trainer.steps=1", "trainer.batch_size=2").status == 0


@pytest.mark.parametrize("name", optimizers())
def test_every_optimizer_trains(train, name):
    assert train(f"optimizer={name}").status == 0


@pytest.mark.parametrize("name", options("schedule"))
def test_every_schedule_trains(train, name):
    job = train(f"schedule={name}", "trainer.steps=4")
    rates = [record["lr"] for record in job.records if record["split"] == "train"]
    assert len(rates) == 4
    assert (len(set(rates)) == 1) == (name == "constant")


@pytest.mark.parametrize("name", options("trainer"))
def test_every_trainer_trains(train, name):
    assert train(f"trainer={name}", "trainer.epochs=null", "trainer.steps=2").status == 0


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: str(path.relative_to(CONF)))
def test_every_option_says_what_it_is(path):
    description = first_comment(path)
    assert 10 < len(description) <= 120


def test_help_has_every_option():
    lines = describe_options().splitlines()
    for group in (path for path in CONF.iterdir() if path.is_dir() and path.name != "hydra"):
        assert f"{group.name}=" in lines
        for name in options(group.name):
            assert any(line.split()[:1] == [name] for line in lines)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["trainer.steps=abc"],
            r"steps=abc: input should be a valid integer.*\nGive it a whole number above 0 or null",
        ),
        (["trainer.steps=1.5"], r"trainer\.steps=1\.5: input should be a valid integer"),
        (["trainer.batch_size=0"], r"trainer\.batch_size=0: input should be greater than 0"),
        (["optimizer.lr=fast"], r"optimizer\.lr=fast: input should be a valid number"),
        (["trainer.precision=float16"], r"trainer\.precision=float16: input should be 'float32', 'bf16' or 'fp16'"),
        (["model.positions=rotary"], r"model\.positions=rotary: input should be 'none', 'learned' or 'sinusoidal'"),
        (["model.mixers.mamba.d_state=many"], r"model\.mixers\.mamba\.d_state=many: input should be a valid integer"),
        (["+model.mixers.mamba.d_stat=8"], r"model\.mixers\.mamba\.d_stat=8: .*\n.*'d_state'"),
        (["+trainer.stesp=8"], r"trainer\.stesp=8: .*\n.*'steps'"),
        (
            ["data=mqar", "data.mixture={pairs:4}"],
            r"data\.mixture=.*: input should be a valid list\.\nGive it a list.*example \[\{pairs: 4\}, \{pairs: 8",
        ),
        (
            ["data=mqar", "data.tests=[64]"],
            r"data\.tests=\[64\]: .*dictionary.*\nGive it a list, of a mapping each or null",
        ),
        (["model._target_=seqlab.models.SequenceModle"], r"model\._target_=.*cannot be used"),
    ],
)
def test_a_setting_that_its_constructor_refuses(overrides, message):
    with pytest.raises(UserError, match=message):
        check(plain(*overrides))


def floats_in(node: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every number with a fraction: its key, and where it stands."""
    for name, value in node.items() if isinstance(node, dict) else enumerate(node):
        below = f"{key}.{name}".lstrip(".")
        if isinstance(value, dict | list):
            yield from floats_in(value, below)
        elif isinstance(value, float):
            yield below, node, name


def test_no_setting_may_be_anything_but_finite():
    cfg = plain("schedule=wsd", "+target.x.at_least=0.5", "trainer.epochs=0.5", "+trainer.stop_above={metric: r2}")
    cfg["trainer"]["stop_above"]["value"] = 0.9
    found = dict.fromkeys(key for key, _, _ in floats_in(cfg))
    assert {"data.noise", "optimizer.lr", "optimizer.betas.1", "data.metrics.within_tolerance.tolerance"} < set(found)
    assert {"target.x.at_least", "trainer.epochs", "trainer.stop_above.value", "schedule.decay"} < set(found)
    for key, node, name in list(floats_in(cfg)):
        for value in (math.nan, math.inf, -math.inf):
            node[name], before = value, node[name]
            with pytest.raises(UserError, match=rf"^{re.escape(key)}={value}: is not finite\.\nGive it a number"):
                check(cfg)
            node[name] = before


def test_a_noise_that_is_not_a_number(train, capsys):
    assert train("data.noise=nan").status == 2
    assert capsys.readouterr().err.startswith("data.noise=nan: is not finite.\nGive it a number")


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in ("model", "data") for name in options(group)])
def test_what_is_shipped_passes_the_check(group, name):
    check(plain(f"{group}={name}"))


@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_experiment_composes(experiment):
    check(plain(f"experiment={experiment}"))


PUBLISHED_DEPTHS = {"mamba": 4, "transformer_vanilla": 6, "self_attention": 1, "mlp": 2, "linear": 0}


@pytest.mark.parametrize("model", [*architectures(), "fla_gla"])
def test_every_model_has_a_depth_in_the_published_comparison(model):
    cfg = plain("experiment=shakespeare_chars", f"model={model}")
    assert cfg["size"]["d_model"] == cfg["model"]["d_model"] == 128
    assert cfg["size"]["n_layers"] == cfg["model"]["n_layers"] >= len(cfg["model"]["pattern"])
    assert cfg["size"]["n_layers"] == PUBLISHED_DEPTHS.get(model, cfg["size"]["n_layers"])
