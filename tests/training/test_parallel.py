"""Two processes give what one does with the same batch: every kind of mixer, weights whole and shared out."""

from functools import cache

import pytest
import torch
from omegaconf import OmegaConf
from together import train_all, trained

from forks import as_torchrun
from seqlab.models.pattern import names_in
from support import architectures, composed


def settings_of(name, *overrides):
    sizes = "size.d_model=16", "size.n_heads=2", "size.d_ff=32"
    return OmegaConf.to_container(composed(f"model={name}", *sizes, *overrides).model)


@cache
def every_mixer():
    """One model with a layer of each mixer that some model has, and experts after every other one."""
    mixers = {}
    for name in architectures():
        model = settings_of(name)
        for mixer in (mixer for entry in model["pattern"] for mixer in names_in(entry)):
            if model["mixers"][mixer] not in mixers.values():
                mixers[f"{mixer}_of_{name}"] = model["mixers"][mixer]
    model, last = settings_of("transformer_moe"), list(mixers)[-1]
    pattern = [*list(mixers)[:-1], f"{last}+mamba_of_hybrid"]
    experts = [None, model["feedforward"]]
    return model | {"mixers": mixers, "pattern": pattern, "n_layers": len(pattern), "feedforward": experts}


CASES = {
    "ddp": (every_mixer, {"parallel": "ddp", "accumulate": 2}),
    "fsdp": (every_mixer, {"parallel": "fsdp"}),
    "fsdp in pieces": (
        lambda: settings_of("hybrid", "size.n_layers=2", "model.pattern=[mamba,attention]"),
        {"parallel": "fsdp"},
    ),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    cases = {name: (make(), settings) for name, (make, settings) in CASES.items()}
    ended = as_torchrun(folder, train_all, cases, folder)
    assert [status for status, _ in ended] == [0, 0], ended[0][1] + ended[1][1]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@cache
def by_one(make):
    return trained(make(), {})


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one(case, found):
    first, second = (results[case] for results in found)
    one = by_one(CASES[case][0])
    torch.testing.assert_close(first["values"], one["values"], rtol=1e-6, atol=0)
    for kind in ("gradients", "weights"):
        assert first[kind].keys() == one[kind].keys()
        for name, expected in one[kind].items():
            assert torch.equal(first[kind][name], second[kind][name])
            assert (first[kind][name] - expected).norm() <= 1e-9 * expected.norm(), name
    assert first["losses"] == second["losses"] == pytest.approx(one["losses"], rel=1e-6)
    assert first["load"] == second["load"]
    assert (first["load"] is None) == (one["load"] is None)
    if one["load"]:
        torch.testing.assert_close(first["load"].shares, one["load"].shares, rtol=1e-12, atol=0)
    assert first["evaluation"] == second["evaluation"]
    for ours, theirs in zip(first["evaluation"], one["evaluation"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
