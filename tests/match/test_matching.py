"""Overlays that adjust width or steps: what they promise is measured on the runs they lead to."""

from functools import cache

import pytest
import torch
import yaml
from hydra import initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from seqlab.errors import UserError
from seqlab.match.overlay import compose_with, matched
from seqlab.match.width_search import Unfit, Widths, nearest_widths
from seqlab.runs.build import build_data, build_model
from support import CONF, SMALL, Job, architectures, compose_config, depth


def adjusted(job: Job) -> dict:
    """What a run says it changed, the same in both of its files."""
    matched = job.summary["matched"]
    assert yaml.safe_load((job.folder / "config.yaml").read_text())["matched"] == matched
    return matched


def overlaid(*overrides: str) -> tuple[DictConfig, nn.Module]:
    """The configuration after its overlay, without a run, and the model that it leads to."""
    cfg = compose_config(*SMALL, *overrides)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = matched(cfg, build_data(cfg))
    return cfg, built(cfg)


def built(cfg: DictConfig) -> nn.Module:
    meta = torch.device("meta")
    with meta:
        return build_model(cfg, instantiate(cfg.data, _convert_="all"), meta)


def counted_by_hand(model: nn.Module, *, visited: int | None = None) -> int:
    """Parameters but learned positions (features have no embedding); of experts' stacks as many as are visited."""
    number = 0
    for name, parameter in model.named_parameters():
        stacked = visited is not None and parameter.dim() == 3 and "feedforward" in name  # (E, d_in, d_out)
        number += 0 if name.startswith("positions") else parameter[:visited].numel() if stacked else parameter.numel()
    return number


@cache
def number_in_transformer(*size: str) -> int:
    return counted_by_hand(built(compose_config(*SMALL, "model=transformer", *size)))


class TestParameters:
    @pytest.mark.parametrize("model", sorted({*architectures()} - {"linear"}))
    def test_of_every_model_meet_those_of_the_transformer(self, model):
        """Whatever its heads demand; the bigram model alone cannot be as large."""
        size = ["size=tiny", f"size.n_layers={depth(model)}"] if depth(model) <= 4 else ["size=tall"]
        cfg, found = overlaid(f"model={model}", *size, "match=params")
        target = number_in_transformer(*size)
        assert abs(counted_by_hand(found) / target - 1) <= 0.01
        assert (cfg.matched.target, cfg.matched.reached) == (target, counted_by_hand(found))

    @pytest.mark.parametrize("size", ["tiny", "small"])
    def test_a_pattern_is_the_candidates_alone(self, size):
        cfg, found = overlaid("model=hybrid", "model.pattern=[mamba,attention]", f"size={size}", "match=params")
        target = number_in_transformer(f"size={size}")
        assert cfg.matched.target == target
        assert abs(counted_by_hand(found) / target - 1) <= 0.01
        assert [type(layer.mixer.inner).__name__ for layer in found.layers[:2]] == ["Mamba", "Attention"]

    def test_the_width_inside_is_one_that_the_heads_allow(self, caplog):
        caplog.set_level("INFO")
        cfg, found = overlaid("model=hybrid", "model.pattern=[mamba,attention]", "size=tiny", "match=params")
        mamba, attention = (layer.mixer.inner for layer in found.layers)
        assert (mamba.d_inner, attention.d_inner % 8) == (2 * attention.d_inner, 0)
        also = cfg.matched.also
        assert also["model.mixers.mamba.d_inner"] == {"from": None, "value": mamba.d_inner}
        assert also["model.mixers.attention.d_inner"] == {"from": None, "value": attention.d_inner}
        told = f"size.d_model from 64 to {cfg.size.d_model}, model.mixers.mamba.d_inner from None to {mamba.d_inner}, "
        assert told in caplog.text

    def test_the_reference_can_be_the_model_itself_as_its_file_has_it(self):
        cfg, found = overlaid("model=transformer", "model.feedforward=null", "match=params")
        plain = number_in_transformer()
        assert abs(counted_by_hand(found) / plain - 1) <= 0.01
        assert cfg.size.d_model > 64

    def test_of_experts_can_be_the_active_ones(self):
        """Eight experts of which a token visits two: wider than at equal totals, and with more in all."""
        cfg, found = overlaid("model=transformer_moe", "size=tiny", "match=active_params")
        target = number_in_transformer("size=tiny")
        assert abs(counted_by_hand(found, visited=2) / target - 1) <= 0.01
        assert counted_by_hand(found) > 2 * target
        assert (cfg.matched.target, cfg.matched.reached) == (target, counted_by_hand(found, visited=2))
        assert cfg.matched.counted == "active_parameters_without_embeddings"

    def test_meet_those_of_the_reference_in_a_run(self, train):
        reference = train("model=transformer", folder="reference")
        job = train("model=mamba", "match=params")
        target, reached = (run.summary["parameters_without_embeddings"] for run in (reference, job))
        assert abs(reached / target - 1) <= 0.01
        matched = adjusted(job)
        assert (matched["to"], matched["reference"]) == ("params", "transformer")
        assert (matched["target"], matched["reached"]) == (target, reached)
        size = yaml.safe_load((job.folder / "config.yaml").read_text())["size"]
        assert size["d_model"] == matched["value"]
        assert matched["from"] == 64
        assert size["d_ff"] == matched.get("also", {}).get("size.d_ff", {"value": 256})["value"]

    def test_heads_still_divide_the_width(self):
        cfg, _ = overlaid("model=transformer", "match=params", "match.reference=mamba")
        assert cfg.size.d_model < 64
        assert cfg.size.d_model % 8 == 0  # four heads, of an even width each for the rotary positions

    def test_the_reference_itself_stays_as_it_is(self):
        cfg, _ = overlaid("model=transformer", "match=params")
        assert cfg.matched["from"] == cfg.matched["value"] == 64
        assert cfg.matched["target"] == cfg.matched["reached"]

    def test_a_run_without_the_overlay_says_nothing(self, train):
        assert "matched" not in train().summary

    def test_a_part_that_the_reference_lacks_is_left_out_of_it(self):
        plain, _ = overlaid("model=mamba", "match=params")
        own, _ = overlaid("model=mamba", "match=params", "model.mixers.mamba.d_state=4", "model.dropout=0.1")
        assert own.matched.target == plain.matched.target
        assert own.size.d_model > plain.size.d_model

    def test_what_cannot_be_reached_says_how_near_it_comes(self, train, capsys):
        job = train("model=linear", "match=params")
        assert job.status == 2
        message = capsys.readouterr().err
        assert "within 1% of the 101,122 parameters" in message
        assert "size.d_model=1024 size.d_ff=256 comes nearest, 7,170 (-92.91%)" in message
        assert "Set match.reference to a model of the same scale" in message
        assert not job.folder.exists()

    def test_what_is_nearly_reached_names_the_tolerance_that_is_enough(self):
        narrow = ("model=lstm", "size.d_model=24", "size.n_heads=2", "size.d_ff=96", "match=params")
        with pytest.raises(UserError, match=r"\([-+]\d\.\d\d%\)\.\nSet match\.tolerance=0\.0[1-9],") as refused:
            overlaid(*narrow, "match.tolerance=1e-4")
        tolerance = str(refused.value).partition("match.tolerance=")[2].partition(",")[0]
        overlaid(*narrow, f"match.tolerance={tolerance}")

    def test_unknown_reference(self, train, capsys):
        assert train("match=params", "match.reference=transfromer").status == 2
        assert "'transformer'" in capsys.readouterr().err

    def test_a_resumed_run_keeps_its_width(self, train):
        job = train("model=mamba", "match=params")
        before = adjusted(job)
        assert train(f"resume={job.folder}", "trainer.steps=3").status == 0
        assert job.summary["steps"] == 3
        assert adjusted(job) == before


def quadratic(width: int, d_ff: int) -> int:
    return 4 * width**2 + 2 * width * d_ff


class TestSearch:
    """The order of the candidates, on a count whose answer is known by hand."""

    @staticmethod
    def search(target, *, tolerance=0.01, count=quadratic, holds_inner=False):
        def count_at(widths: Widths) -> int:
            return count(widths.d_model, widths.d_ff) if widths.inner is None else count(*widths)

        given = Widths(64, 256)
        return nearest_widths(count_at, target, tolerance, given, n_heads=4, holds_inner=holds_inner)

    def test_takes_the_widths_as_given_where_they_do(self):
        assert self.search(quadratic(64, 256) + 1) == ((64, 256, None), quadratic(64, 256))

    def test_takes_the_coarsest_width_that_does(self):
        assert self.search(quadratic(96, 384) + 1) == ((96, 384, None), quadratic(96, 384))
        assert self.search(quadratic(92, 368)) == ((92, 368, None), quadratic(92, 368))

    def test_takes_the_feed_forward_where_no_width_does(self):
        def coarse(width: int, d_ff: int) -> int:
            if width % 8:
                raise Unfit
            return quadratic(width, d_ff)

        target = quadratic(88, 350)
        widths, reached = self.search(target, tolerance=1e-4, count=coarse)
        assert widths.d_model % 8 == 0
        assert widths.d_ff != 4 * widths.d_model
        assert abs(reached - target) <= 1e-4 * target

    def test_passes_over_widths_that_another_mixer_cannot_have(self):
        """Beside mixers that can be held inside: one that binds the width itself."""

        def bound(width: int, d_ff: int, inner: int | None = None) -> int:
            if width % 8:
                raise Unfit
            return 4 * width * (width if inner is None else inner) + width**2

        widths, reached = self.search(5 * 90**2, tolerance=1e-6, count=bound, holds_inner=True)
        assert widths.d_model % 8 == 0
        assert abs(reached - 5 * 90**2) <= 5 * 90**2 * 0.05

    def test_holds_the_width_inside_where_there_is_no_feed_forward(self):
        def attention(width: int, d_ff: int, inner: int | None = None) -> int:
            inner = width if inner is None else inner
            if inner % 8:
                raise Unfit
            return 4 * width * inner

        target = 4 * 93 * 96
        assert self.search(target, tolerance=1e-4, count=attention, holds_inner=True) == ((93, 372, 96), target)
        assert self.search(4 * 112 * 104, count=attention, holds_inner=True)[0] == (112, 448, 104)  # in steps of 16
        assert self.search(target, count=attention)[0] == (96, 384, None)

    def test_a_width_that_changes_nothing_is_given_up(self):
        assert self.search(1000, count=lambda width, d_ff: 100) == ((64, 256, None), 100)


class TestFlops:
    def test_meet_those_of_the_reference(self, train):
        budget = ("trainer.steps=60", "trainer.evaluate_every=1000")
        reference = train("model=mlp", *budget, folder="reference")
        job = train("model=linear", *budget, "match=flops", "match.reference=mlp")
        assert abs(job.summary["flops"] / reference.summary["flops"] - 1) <= 0.01
        matched = adjusted(job)
        assert (matched["key"], matched["from"], matched["to"]) == ("trainer.steps", 60, "flops")
        assert matched["value"] == job.summary["steps"] > 60
        assert matched["target"] == reference.summary["flops"]
        assert matched["reached"] == job.summary["flops"]

    def test_count_epochs_as_steps(self):
        epochs = ("trainer.steps=null", "trainer.epochs=10")
        cfg, _ = overlaid("model=linear", "match=flops", "match.reference=mlp", *epochs)
        assert cfg.matched["from"] == 10 * 32 // 8
        assert cfg.trainer.epochs is None

    def test_a_feed_forward_is_the_candidates_alone(self):
        """Without it a step of the Transformer costs less, and the reference keeps its own."""
        cfg, _ = overlaid("model=transformer", "model.feedforward=null", "match=flops", "trainer.steps=100")
        assert cfg.trainer.steps > 150

    def test_too_few_steps_to_be_near(self, train, capsys):
        assert train("model=transformer", "match=flops", "match.reference=mamba", "trainer.steps=3").status == 2
        assert "Train longer" in capsys.readouterr().err


def test_the_reference_makes_its_own_choices():
    """A setting that depends on the chosen model follows the reference's choice, and the job's own comes back."""
    cfg = compose_config("experiment=shakespeare_chars", "model=mamba")
    running = HydraConfig.instance().cfg
    with initialize_config_dir(str(CONF), version_base="1.3"):
        reference = compose_with("transformer")
    assert (cfg.size.n_layers, reference.size.n_layers) == (4, 6)
    assert (cfg.name, reference.name) == ("mamba", "transformer")
    assert HydraConfig.instance().cfg is running


def test_the_search_leaves_chance_alone(train, monkeypatch):
    """The seed sets a matched run's weights, whatever was built on the way to its width."""
    width = adjusted(train("model=lstm", "match=params", folder="matched"))["value"]
    again = train("model=lstm", "match=params", "seed=3", folder="again")
    plain = train("model=lstm", "seed=3", f"size.d_model={width}", folder="plain")
    assert [r["loss"] for r in again.records] == [r["loss"] for r in plain.records]
