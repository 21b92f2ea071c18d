"""The product of ``models/linear.py``, by convolution and not, against float64."""

import pytest
import torch
import torch.nn.functional as F

from seqlab.models import linear as module
from seqlab.models.linear import Linear, linear

SHAPES = {"wide": (16, 129, 33, 131), "narrow": (17, 1031, 77, 7), "few in": (64, 128, 5, 257)}  # B, L, D, O


@pytest.fixture
def convolutions(monkeypatch) -> list[tuple[int, ...]]:
    """The shapes of what is convolved, on a processor that MKL is taken to be slow on."""
    seen, convolve = [], F.conv2d

    def conv2d(x, *rest):
        seen.append(tuple(x.shape))
        return convolve(x, *rest)

    monkeypatch.setattr(module, "mkl_is_slow", lambda: True)
    monkeypatch.setattr(F, "conv2d", conv2d)
    return seen


def operands(shape: tuple[int, ...], *, apart: bool = False) -> tuple[torch.Tensor, ...]:
    """x, of which rows lie apart in memory if ``apart``, weight, bias and a gradient of the output."""
    batch, length, d_in, d_out = shape
    generator = torch.Generator().manual_seed(1)
    sizes = (batch, length, d_in + 3 * apart), (d_out, d_in), (d_out,), (batch, length, d_out)
    x, *rest = (torch.randn(size, generator=generator) for size in sizes)
    return x[..., :d_in], *rest


def results(function, x, weight, bias, dy):
    """The output and the gradients by the operands."""
    inputs = [t.detach().requires_grad_() for t in (x, weight, bias) if t is not None]
    y = function(*inputs)
    return y, *torch.autograd.grad(y, inputs, dy)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_convolution_is_the_product(convolutions, shape, bias, apart):
    x, weight, b, dy = operands(shape, apart=apart)
    b = b if bias else None
    exact = results(F.linear, *(t if t is None else t.double() for t in (x, weight, b, dy)))
    for found, expected in zip(results(linear, x, weight, b, dy), exact, strict=True):
        assert found.dtype == torch.float32
        assert (found - expected).abs().max() <= 2e-6 * expected.abs().max()
    assert len(convolutions) == 1


def test_the_output_and_the_gradients_are_contiguous(convolutions):
    x, weight, _, dy = operands(SHAPES["wide"])
    assert all(t.is_contiguous() for t in results(linear, x, weight, None, dy))


def test_second_derivatives(convolutions):
    x, weight, *_ = operands((16, 64, 96, 96))

    def curvature(function, x, weight):
        x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
        (dx,) = torch.autograd.grad(function(x, weight).pow(2).sum(), x, create_graph=True)
        return torch.autograd.grad(dx.pow(2).sum(), weight)[0]

    exact = curvature(F.linear, x.double(), weight.double())
    assert (curvature(linear, x, weight) - exact).abs().max() <= 1e-5 * exact.abs().max()
    assert convolutions


@pytest.mark.parametrize(
    "shape", [(15, 129, 129, 129), (16, 15, 513, 513), (16, 16, 32, 32), (4096, 1, 64, 64)], ids=str
)
def test_small_products_are_not_convolved(convolutions, shape):
    x, weight, bias, _ = operands(shape)
    torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias), rtol=0, atol=0)
    assert not convolutions


def test_other_precisions_are_not_convolved(convolutions):
    x, weight, *_ = operands(SHAPES["wide"])
    assert linear(x.double(), weight.double()).dtype == torch.float64
    assert linear(x.to("meta"), weight.to("meta")).is_meta
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    assert linear(x.flatten(0, 1), weight).shape == (16 * 129, 131)
    assert not convolutions


def test_the_layer_takes_the_product(convolutions):
    layer = Linear(64, 160)
    layer(torch.zeros(16, 64, 64))
    assert convolutions == [(16, 64, 64, 1)]
    assert set(layer.state_dict()) == {"weight", "bias"}
