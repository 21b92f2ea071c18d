"""The parts of a run from its configuration: errors name the keys that one types, and the contracts are held."""

import pytest
import torch
from omegaconf import OmegaConf

from seqlab.data import DataSet
from seqlab.errors import UserError, under
from seqlab.runs.build import build_data, build_model, build_trainer
from seqlab.runs.load import TokenWidths
from support import Echo, compose_config

CPU = torch.device("cpu")


class Bare:
    """A data object of a person's own, before there was a class to inherit from."""

    tokens, d_input, d_output, length, train_size = True, 7, 7, 8, 64
    metrics, fingerprint, description = {}, "0" * 12, "bare"
    check_batch_size, train_batch, evaluation_batches = Echo.check_batch_size, Echo.train_batch, Echo.evaluation_batches
    evaluation_size, loss, mask = Echo.evaluation_size, Echo.loss, Echo.mask


class Fingerprinted(Echo):
    @property
    def fingerprint(self) -> str:
        raise AssertionError("nobody asked for it")


def named(kind: type) -> OmegaConf:
    return OmegaConf.create({"data": {"_target_": f"{kind.__module__}.{kind.__qualname__}"}})


class TestUnder:
    def told(self, key: str, remedy: str, *places: tuple[str, list[str]]) -> list[str]:
        error = UserError(key, 1, "a=1 is wrong", remedy)
        for path, names in places:
            with pytest.raises(UserError), under(path, names):
                raise error
        return str(error).splitlines()

    def test_the_key_and_what_to_set_get_the_path(self):
        lines = self.told("a", "Set a=2, b=3 or c=4, lower b or use model=linear", ("data", ["a", "b"]))
        assert lines == ["data.a=1: a=1 is wrong.", "Set data.a=2, data.b=3 or c=4, lower b or use model=linear."]

    def test_paths_within_paths(self):
        places = ("mixers.mamba", ["dt_min", "dt_max"]), ("model", ["mixers", "d_model"])
        assert self.told("dt_min", "Set dt_max=2 or d_model=3", *places) == [
            "model.mixers.mamba.dt_min=1: a=1 is wrong.",
            "Set model.mixers.mamba.dt_max=2 or model.d_model=3.",
        ]

    def test_parts_of_settings_and_several_of_them(self):
        assert self.told("tests.1.length, n", "Set tests.1.length=2", ("data", ["tests", "n"]))[:2] == [
            "data.tests.1.length, data.n=1: a=1 is wrong.",
            "Set data.tests.1.length=2.",
        ]

    def test_whole_keys_stay(self):
        lines = self.told("data.dir", "Set trainer.steps=1, or give x.a=2 and a", ("data", ["dir", "a", "steps", "x"]))
        assert lines[0].startswith("data.dir=1") and lines[1] == "Set trainer.steps=1, or give data.x.a=2 and a."


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model=mamba", "model.mixers.mamba.dt_min=1.0"],
            r"^model\.mixers\.mamba\.dt_min=1\.0: .*\n.*mamba\.dt_max=1\.0",
        ),
        (
            ["model=mamba2", "model.mixers.mamba2.n_groups=3"],
            r"^model\.mixers\.mamba2\.n_groups=3: must divide n_heads",
        ),
        (
            ["model=mamba_moe", "model.feedforward.top_k=9"],
            r"^model\.feedforward\.top_k=9: .*\n.*d\.n_experts=9 or more",
        ),
        (["model=transformer", "size.n_heads=3"], r"^size\.n_heads=3: must divide d_model=64"),
        (["model=hybrid", "model.pattern=[mamba+,mamba]"], r"^model\.pattern=.*plus sign.* is missing\.\nWrite two"),
        (["model=transformer", "size.n_layers=0"], r"^size\.n_layers=0: .*\nSet size\.n_layers=1 or more"),
    ],
)
def test_a_refused_model_names_its_key(overrides, message):
    cfg = compose_config(*overrides, "size=tiny") if "size=tiny" not in overrides else compose_config(*overrides)
    resolved = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))  # as a run has it, without interpolations
    for one in (cfg, resolved):
        with pytest.raises(UserError, match=message):
            build_model(one, TokenWidths(7, 7, 8), CPU)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.accumulate=3"], r"^trainer\.accumulate=3: must divide batch_size=16"),
        (["trainer.batch_size=65"], r"^trainer\.batch_size=65: must lie between 1 and the 64 examples"),
        (["trainer.cuda_graph=true"], r"^trainer\.cuda_graph=True: .*\nUse trainer\.cuda_graph=auto"),
        (
            ["trainer.steps=3"],
            r"^trainer\.steps, trainer\.epochs=3, 5: .*\nSet .* trainer\.steps=1000 trainer\.epochs=null",
        ),
    ],
)
def test_a_refused_trainer_names_its_key(overrides, message, tmp_path):
    cfg, data = compose_config("model=linear", *overrides), Echo()
    model = build_model(cfg, data, CPU)
    with pytest.raises(UserError, match=message):
        build_trainer(cfg, model, data, device=CPU, folder=tmp_path)


class Empty:
    tokens, d_input, d_output, length, chance = True, 7, 7, 8, 0.5


def test_data_that_lack_a_part_of_the_contract_are_refused():
    with pytest.raises(
        UserError, match=r"^data\._target_=Empty: it has no description, evaluation_batches, "
    ) as caught:
        build_data(named(Empty))
    assert "chance" not in str(caught.value) and "slices" not in str(caught.value)


class WithTests(Bare, DataSet):
    def __init__(self):
        self.further_tests, self.chance = ("length=16",), 0.25


def test_what_is_optional_may_be_an_attribute():
    data = build_data(named(WithTests))
    assert (data.further_tests, data.chance, data.items) == (("length=16",), 0.25, "examples")


def test_a_class_from_before_the_contract_has_what_is_optional_too():
    data = build_data(named(Bare))
    assert (data.chance, data.further_tests, data.slices(None), data.largest_batch("test", 5)) == (None, (), {}, 5)


def test_data_that_inherit_have_what_is_optional_and_are_not_evaluated_for_it():
    data = build_data(named(Fingerprinted))
    assert (data.chance, data.further_tests, data.slices(None), data.largest_batch("test", 5)) == (None, (), {}, 5)
