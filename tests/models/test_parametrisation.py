"""muP and CompleteP: the scales and rates of table 3, nothing at the base's size, and activations that move alike."""

import json
import math
import re
from argparse import Namespace

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from seqlab.benchmarks.coordinates import depth, moves
from seqlab.commands import benchmark_coordinates
from seqlab.errors import UserError
from seqlab.models.parametrisation import Rates, rates
from seqlab.models.sequence_model import SequenceModel
from seqlab.runs.build import build_model, with_base_model
from seqlab.runs.load import TokenWidths, load_run
from support import compose_config
from support import depth as depth_of

BASE = "parametrisation.base={d_model:16,n_heads:2,d_ff:32,n_layers:2}"


def configured(*overrides: str) -> DictConfig:
    return compose_config("parametrisation=mup", BASE, "size.n_heads=2", *overrides)


def built(cfg: DictConfig, width: int, *, standard: bool = False) -> SequenceModel:
    """The model of a configuration at a width."""
    cfg.size.d_model, cfg.size.d_ff = width, 2 * width
    torch.manual_seed(0)
    return build_model(cfg if standard else with_base_model(cfg), TokenWidths(7, 7, 8), torch.device("cpu"))


def optimizers(cfg: DictConfig, model: SequenceModel) -> list[torch.optim.Optimizer]:
    return instantiate(cfg.optimizer, _convert_="all")(model)


MIXERS = "mamba", "mamba3", "kimi_delta", "lstm", "transformer_vanilla", "transformer_moe"


@pytest.mark.parametrize("name", MIXERS)
def test_every_model_is_the_standard_one_at_the_base(name):
    """In its weights and its optimizers, bit for bit; and at twice the width every parameter has a rate."""
    cfg = configured(f"model={name}", f"size.n_layers={depth_of(name)}", "optimizer=muon")
    plain, ours = built(cfg, 16, standard=True), built(cfg, 16)
    for (key, p), (_, q) in zip(plain.named_parameters(), ours.named_parameters(), strict=True):
        assert torch.equal(p, q), key
    settings = [
        [{k: v for k, v in g.items() if k != "params"} for o in optimizers(cfg, m) for g in o.param_groups]
        for m in (plain, ours)
    ]
    assert settings[0] == settings[1]
    found = {key: p.rates.adam for key, p in built(cfg, 32).named_parameters()}
    assert all(rate == 1 for key, rate in found.items() if key.startswith(("embed", "positions")))
    assert all(rate == 0.5 for key, rate in found.items() if key.endswith(("in_proj.weight", "linear.weight")))


def test_rates_of_table_3():
    """Fan-out and fan-in four times the base's, or one of them alone: an input, a hidden, an output matrix."""
    assert rates((64, 5), (16, 5)) == Rates(adam=1, muon=1, sgd=4)
    assert rates((64, 64), (16, 16)) == Rates(adam=0.25, muon=0.5, sgd=1)
    assert rates((5, 64), (5, 16)) == Rates(adam=0.25, muon=0.25, sgd=0.25)


def test_which_parameter_of_mamba_is_which():
    cfg = configured("model=mamba")
    wide, standard = built(cfg, 64), built(cfg, 64, standard=True)
    (adamw,) = optimizers(cfg, wide)
    names = {id(p): name.removeprefix("layers.0.mixer.inner.") for name, p in wide.named_parameters()}
    of = {names[id(p)]: group for group in adamw.param_groups for p in group["params"]}
    assert {name: of[name]["lr"] / 1e-3 for name in of if "layers" not in name} == pytest.approx(
        {
            **dict.fromkeys(("embed.weight", "A_log", "D", "conv_weight", "conv_bias", "dt_proj.bias"), 1.0),
            **dict.fromkeys(("in_proj.weight", "x_proj.weight", "dt_proj.weight", "out_proj.weight"), 0.25),
            "norm.weight": 0.25,  # which divides the logits of the shared head
        }
    )
    assert all(math.isclose(g["lr"] * g["weight_decay"], 1e-4) for g in adamw.param_groups if g["weight_decay"])
    assert torch.equal(wide.norm.weight, standard.norm.weight / 4)
    assert torch.equal(wide.layers[0].mixer.inner.in_proj.weight, standard.layers[0].mixer.inner.in_proj.weight)


def test_a_head_of_its_own_starts_smaller():
    cfg = configured("model=transformer", "model.tie_embeddings=false")
    wide, standard = built(cfg, 64), built(cfg, 64, standard=True)
    assert torch.equal(wide.head.weight, standard.head.weight / 2)
    assert (wide.head.weight.rates.adam, wide.norm.weight.rates.adam) == (0.25, 1)


def test_logits_of_attention_go_by_the_width_of_a_head():
    """Products of queries and keys over P = 32, times the root of the base's P = 8."""
    attention = built(configured("model=self_attention", "size.n_layers=1"), 64).layers[0].mixer.inner
    x = torch.randn(1, 3, 64)
    q, k, _ = attention._project(x, 0)
    plain_q, plain_k, _ = attention.in_proj(x).unflatten(-1, (3, 2, 32)).permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(q @ k.mT / 32**0.5, plain_q @ plain_k.mT / 32 * 8**0.5)


def test_depth_divides_each_half_layer():
    deep, shallow = (
        built(configured("parametrisation=completep", "model=hybrid_falcon", f"size.n_layers={n}"), 16) for n in (8, 2)
    )
    assert all(p.rates.adam == 1 for p in shallow.parameters())
    projections = {key: p.rates.adam for key, p in deep.named_parameters() if "out_proj" in key}
    assert len(projections) == 8 * 3 and set(projections.values()) == {0.25}  # two mixers side by side, a feed-forward
    ours, theirs = (m.layers[0].feedforward.inner for m in (deep, shallow))
    assert (ours.out_proj.weight.rates.adam, ours.in_proj.weight.rates.adam) == (0.25, 1)
    assert (ours.out_proj.weight.std() / theirs.out_proj.weight.std()).item() == pytest.approx(1 / 4, rel=0.1)


def test_depth_needs_projections_to_divide():
    with pytest.raises(UserError, match=r"parametrisation=completep: LSTM .* output projection"):
        built(configured("parametrisation=completep", "model=lstm", "size.n_layers=4"), 16)


@pytest.mark.parametrize("base", ["tinny", "{d_model:16}"])
def test_a_base_that_is_no_size(base):
    with pytest.raises(UserError, match=r"parametrisation\.base=.*size"):
        with_base_model(compose_config("parametrisation=mup", f"parametrisation.base={base}"))


def test_a_base_at_which_there_is_no_model(train, capsys):
    base = "parametrisation.base={d_model:24,n_heads:5,d_ff:48}"
    assert train("model=transformer", "parametrisation=mup", base).status == 2
    said = r"^parametrisation\.base=\{.*\}: at that size model\.mixers\.attention\.n_heads=5 must divide .*\nChoose"
    assert re.search(said, capsys.readouterr().err)


def test_the_base_has_no_inner_width_of_match():
    """Or the ratio of the model's inner width to the base's would be 1."""
    cfg = configured("model=mamba", "model.mixers.mamba.d_inner=24")
    with open_dict(cfg):
        cfg.matched = {"key": "size.d_model", "from": 16, "also": {"model.mixers.mamba.d_inner": {"from": None}}}
    assert with_base_model(cfg).base_model.mixers.mamba.d_inner is None


@pytest.mark.parametrize("name", ["mamba", "transformer"])
def test_coordinate_check(name):
    """From width 32 to 256 what half layers give moves as far under muP, and more than half again without."""
    args = Namespace(model=name, optimizer="adamw", lr=0.01, steps=3, layers=1, widths=[32, 256])
    far = {rule: [moves(args, rule, width, seed=0) for width in args.widths] for rule in ("standard", "mup")}
    assert far["standard"][0] == far["mup"][0]
    for part in (part for part in far["mup"][0] if part.startswith(("mixer", "feed-forward"))):
        growth = {rule: wide[part] / narrow[part] for rule, (narrow, wide) in far.items()}
        assert 0.67 < growth["mup"] < 1.5 < growth["standard"], part


def test_the_script_shows_and_draws_it(tmp_path, capsys):
    sizes = ["--widths", "8,16,32", "--layers", "1", "--steps", "1", "--seeds", "1"]
    assert benchmark_coordinates.main(["--model", "mlp", "--rules", "mup", *sizes, "--out", str(tmp_path)]) == 0
    assert re.search(r"mixer 1 +│ +-?\d\.\d\d ± \d\.\d\d", capsys.readouterr().out)
    found = json.loads((tmp_path / "coordinate_check.json").read_text())
    assert [list(one) for one in found["moves"]["mup"]] == [["embedding", "mixer 1", "logits"]] * 3
    assert (tmp_path / "coordinate_check.png").stat().st_size > 0


def test_layers_hold_a_hybrids_pattern(capsys):
    assert (depth("mamba", None), depth("mamba", 1), depth("hybrid_qwen", None)) == (2, 1, 4)
    assert benchmark_coordinates.main(["--model", "hybrid_qwen", "--layers", "3"]) == 2
    assert re.match(r"--layers=3: is less than the 4 .*\nGive it 4 or more", capsys.readouterr().err)


def test_a_run_of_it_goes_on(train):
    """The base model stands in the run's configuration, and the factors in the optimizer's state."""
    usual = ("model=transformer", "parametrisation=mup", BASE, "size=tiny", "schedule=constant")
    whole = train(*usual, "trainer.steps=4", folder="whole")
    cut = train(*usual, "trainer.steps=2", folder="cut")
    assert train(f"resume='{cut.folder}'", "trainer.steps=4").status == 0
    assert cut.summary["test"] == whole.summary["test"]
    assert load_run(cut.folder, torch.device("cpu")).model.layers[0].mixer.inner.sharpness == 0.5**0.5
    assert {record["lr"] for record in whole.records if record["split"] == "train"} == {1e-3}


def test_a_rule_that_is_none_is_refused():
    with pytest.raises(UserError, match=r"parametrisation\.rule=mupp: must be mup or completep"):
        with_base_model(compose_config("parametrisation=mup", "parametrisation.rule=mupp"))
