"""Two processes give what one does with the same batch: every model, weights whole and shared out."""

from functools import cache

import pytest
import torch
from omegaconf import OmegaConf
from together import started, train_all, trained

from support import architectures, composed, depth

WAYS = {"ddp": {"parallel": "ddp", "accumulate": 2}, "fsdp": {"parallel": "fsdp"}}


def tiny(name):
    size = ["size.d_model=16", "size.n_heads=2", "size.d_ff=32", f"size.n_layers={depth(name)}"]
    return OmegaConf.to_container(composed(f"model={name}", *size).model)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    ended = started(folder, train_all, {name: tiny(name) for name in architectures()}, WAYS, folder)
    assert [status for status, _ in ended] == [0, 0], ended[0][1] + ended[1][1]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@cache
def by_one(name):
    return trained(tiny(name))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", architectures())
def test_two_processes_are_one(name, way, found):
    first, second = (results[name, way] for results in found)
    one = by_one(name)
    torch.testing.assert_close(first["values"], one["values"], rtol=1e-6, atol=0)
    for kind in ("gradients", "weights"):
        assert first[kind].keys() == one[kind].keys()
        for key, expected in one[kind].items():
            assert torch.equal(first[kind][key], second[kind][key])
            assert (first[kind][key] - expected).norm() <= 1e-9 * expected.norm()
    assert first["losses"] == second["losses"] == pytest.approx(one["losses"], rel=1e-6)
    assert first["load"] == second["load"]
    assert (first["load"] is None) == (one["load"] is None)
    if one["load"]:
        torch.testing.assert_close(first["load"].shares, one["load"].shares, rtol=1e-12, atol=0)
    assert first["evaluation"] == second["evaluation"]
    for ours, theirs in zip(first["evaluation"], one["evaluation"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
