"""A model in float64, which is what the others' rounding is measured against: every model found by glob, on the CPU."""

import copy
from functools import cache

import pytest
import torch
from torch import Tensor

from seqlab.models import SequenceModel
from support import architectures, built_model, depth

ROUNDING = torch.finfo(torch.float32).eps


@cache
def build(name: str) -> SequenceModel:
    size = ["size.d_model=16", "size.n_heads=2", "size.d_ff=40", f"size.n_layers={depth(name)}"]
    return built_model(f"model={name}", *size, tokens=False, d_input=5, d_output=7, length=40).eval()


def inputs() -> Tensor:
    return torch.randn(2, 40, 5, generator=torch.Generator().manual_seed(1))


def gradients(model: SequenceModel, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Outputs, and the gradient by every parameter of their sum along one direction."""
    y = model(x)
    direction = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return y.detach(), list(torch.autograd.grad((y * direction).sum(), list(model.parameters())))


@pytest.mark.parametrize("name", architectures())
def test_agrees_with_float32_within_its_rounding(name):
    """Values within tens of roundings, for a few layers of sums of some hundred terms; every gradient within hundreds.

    A gradient is a sum over the 80 positions besides, whose terms cancel.
    """
    model, x = build(name), inputs()
    double = copy.deepcopy(model).double()
    single, exact = gradients(model, x), gradients(double, x.double())
    assert (single[0] - exact[0]).norm() <= 50 * ROUNDING * exact[0].norm()
    for found, expected in zip(single[1], exact[1], strict=True):
        assert expected.dtype == torch.float64
        assert expected.any()
        assert (found - expected).norm() <= 800 * ROUNDING * expected.norm()


@pytest.mark.parametrize("name", architectures())
def test_steps_give_what_the_whole_gives(name):
    """To float64's rounding: no part goes through float32 on its way."""
    model, x = copy.deepcopy(build(name)).double(), inputs().double()
    with torch.no_grad():
        whole = model(x)
    first, state = model.prefill(x[:, :25], model.initial_state(2), every=True)
    outputs = [first]
    for position in range(25, 40):
        y, state = model.step(x[:, position], state)
        outputs.append(y[:, None])
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole, rtol=1e-11, atol=1e-12)
