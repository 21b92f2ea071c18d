"""Overlays that adjust width or steps: what they promise is measured on the runs they lead to."""

import pytest
import yaml
from hydra import initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from seqlab.errors import UserError
from seqlab.matching import EqualParameters, compose_with
from support import CONF, Job, compose_config


def adjusted(job: Job) -> dict:
    """What a run says it changed, the same in both of its files."""
    matched = job.summary["matched"]
    assert yaml.safe_load((job.folder / "config.yaml").read_text())["matched"] == matched
    return matched


class TestParameters:
    @pytest.mark.parametrize("model", ["mamba", "lstm"])
    def test_meet_those_of_the_reference(self, train, model):
        reference = train("model=transformer", folder="reference")
        job = train(f"model={model}", "match=params")
        target, reached = (run.summary["parameters_without_embeddings"] for run in (reference, job))
        assert abs(reached / target - 1) <= 0.01
        matched = adjusted(job)
        assert (matched["to"], matched["reference"]) == ("params", "transformer")
        assert (matched["target"], matched["reached"]) == (target, reached)
        size = yaml.safe_load((job.folder / "config.yaml").read_text())["size"]
        assert size["d_model"] == matched["value"]
        assert matched["from"] == 64
        assert size["d_ff"] == matched.get("also", {}).get("size.d_ff", {"value": 256})["value"]

    def test_heads_still_divide_the_width(self, train):
        job = train("model=transformer", "match=params", "match.reference=mamba")
        width = adjusted(job)["value"]
        assert width < 64
        assert width % 8 == 0  # four heads, of an even width each for the rotary positions

    def test_the_reference_itself_stays_as_it_is(self, train):
        matched = adjusted(train("model=transformer", "match=params"))
        assert matched["from"] == matched["value"] == 64
        assert matched["target"] == matched["reached"]

    def test_a_run_without_the_overlay_says_nothing(self, train):
        assert "matched" not in train().summary

    def test_a_part_that_the_reference_lacks_is_left_out_of_it(self, train):
        plain = train("model=mamba", "match=params", folder="plain")
        job = train("model=mamba", "match=params", "model.mixers.mamba.d_state=4", "model.dropout=0.1")
        assert adjusted(job)["target"] == adjusted(plain)["target"]
        assert adjusted(job)["value"] > adjusted(plain)["value"]

    def test_what_cannot_be_reached_says_how_near_it_comes(self, train, capsys):
        job = train("model=linear", "match=params")
        assert job.status == 2
        assert "size.d_model=64 size.d_ff=256 comes nearest, 450 (-99.55%)" in capsys.readouterr().err
        assert job.summary["status"] == "failed"

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
    def search(target, *, d_model=64, n_heads=4, tolerance=0.01, count=quadratic):
        match = EqualParameters(reference="other", tolerance=tolerance)
        return match.search(count, target, d_model=d_model, d_ff=4 * d_model, n_heads=n_heads)

    def test_takes_the_widths_as_given_where_they_do(self):
        assert self.search(quadratic(64, 256) + 1) == (64, 256, quadratic(64, 256))

    def test_takes_the_coarsest_width_that_does(self):
        assert self.search(quadratic(96, 384) + 1) == (96, 384, quadratic(96, 384))
        assert self.search(quadratic(92, 368)) == (92, 368, quadratic(92, 368))

    def test_takes_the_feed_forward_where_no_width_does(self):
        def coarse(width: int, d_ff: int) -> int:
            if width % 8:
                from hydra.errors import InstantiationException

                raise InstantiationException("heads")
            return quadratic(width, d_ff)

        target = quadratic(88, 350)
        width, d_ff, reached = self.search(target, tolerance=1e-4, count=coarse)
        assert width % 8 == 0
        assert d_ff != 4 * width
        assert abs(reached - target) <= 1e-4 * target

    def test_a_width_that_changes_nothing_is_refused(self):
        with pytest.raises(UserError, match=r"size\.d_model=64 .*nearest, 100 \(-90\.00%\)"):
            self.search(1000, count=lambda width, d_ff: 100)


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

    def test_count_epochs_as_steps(self, train):
        job = train(
            "model=linear",
            "match=flops",
            "match.reference=mlp",
            "trainer.steps=null",
            "trainer.epochs=10",
            "trainer.evaluate_every=1000",
        )
        assert adjusted(job)["from"] == 10 * 32 // 8
        assert yaml.safe_load((job.folder / "config.yaml").read_text())["trainer"]["epochs"] is None

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
