"""RMSNorm of a gated row, every backend against the formula in float64."""

import pytest
import torch
from comparison import DEVICES, assert_all_close, assert_same_bits, skip_unless_available, weighted_sum
from test_rms_norm import EPS, PACKAGE, make_arguments
from torch import Tensor

from seqlab.ops import gated_rms_norm
from seqlab.ops.rms_norm import BACKENDS
from seqlab.ops.rms_norm import triton as fused

every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_device = pytest.mark.parametrize("device", DEVICES)
NAMES = "y", "dx", "d_gate", "d_weight"


def arguments(
    shape: tuple[int, ...], *, device: str = "cpu", dtype: torch.dtype = torch.float32, gap: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    x, weight = make_arguments(shape, dtype=dtype, device=device)
    gate = 3 * torch.randn(*shape[:-1], shape[-1] + gap)
    return x, gate.bfloat16().to(device, dtype)[..., : shape[-1]], weight.float()


def formula(x: Tensor, gate: Tensor, weight: Tensor, groups: int) -> Tensor:
    gated = (x * gate / (1 + torch.exp(-gate))).unflatten(-1, (groups, -1))
    return (gated / (gated.square().mean(dim=-1, keepdim=True) + EPS).sqrt()).flatten(-2) * weight


def results(operation, given: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """y and the gradients of a random combination of it."""
    leaves = [tensor.detach().requires_grad_() for tensor in given]
    y = operation(*leaves)
    gradients = torch.autograd.grad(weighted_sum((y,)), leaves)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        assert (gradient.dtype, gradient.shape) == (leaf.dtype, leaf.shape)
    return dict(zip(NAMES, (y.detach(), *gradients), strict=True))


@every_device
@every_backend
class TestEveryBackend:
    @pytest.mark.parametrize(
        ("shape", "groups"), [((3, 7, 60), 1), ((2, 5, 60), 3), ((40, 20), 2), ((3, 1030), 1), ((2, 9), 3)], ids=str
    )
    @pytest.mark.parametrize("gap", [0, 12, 1])
    def test_values_and_gradients(self, backend, device, shape, groups, gap, nan_memory):
        """Many rows in a program and one over several warps; gates whose rows lie apart, as a slice's."""
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        given = arguments(shape, gap=gap, device=device)
        actual = results(lambda *tensors: gated_rms_norm(*tensors, EPS, groups, backend=backend), given)
        expected = results(lambda *tensors: formula(*tensors, groups), tuple(t.double() for t in given))
        assert_all_close(actual, expected, torch.float32)

    def test_in_half_precision(self, backend, device):
        """Rounded once, at the end."""
        skip_unless_available(PACKAGE, backend, device, torch.float16)
        given = arguments((4, 9, 60), dtype=torch.float16, gap=4, device=device)
        actual = results(lambda *tensors: gated_rms_norm(*tensors, EPS, 2, backend=backend), given)
        assert actual["y"].dtype == torch.float16
        expected = results(lambda *tensors: formula(*tensors, 2), tuple(t.double() for t in given))
        assert_all_close(actual, expected, torch.float16, 4e-4)

    def test_keeps_its_arguments_alone(self, backend, device):
        if backend == "reference":
            pytest.skip("keeps what PyTorch needs")
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        given = [tensor.requires_grad_() for tensor in arguments((2, 3, 60), device=device)]
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            gated_rms_norm(*given, EPS, 3, backend=backend)
        others = [t for t in kept if t.data_ptr() not in [tensor.data_ptr() for tensor in given]]
        assert [tuple(t.shape) for t in others] == [(18,)]


@every_device
def test_gradients_and_the_output_again_over_what_has_been_read(device):
    """To the bit those in memory of their own, and the output of the forward pass."""
    skip_unless_available(PACKAGE, "triton", device, torch.float32)
    x, gate, weight = arguments((3, 7, 60), gap=10, device=device)
    _, y, scale = fused.forward(x, None, gate, weight, EPS, 2, x.dtype)
    dy = torch.randn_like(y)
    operands = dy, None, x, gate, weight, scale, 2, None
    expected = [gradient if gradient is None else gradient.clone() for gradient in fused.backward(*operands)]
    dx, _, d_gate, d_weight = fused.backward(*operands, fused.Out(x, gate, dy))
    assert [part.data_ptr() for part in (dx, d_gate)] == [part.data_ptr() for part in (x, gate)]
    assert_same_bits(dict(enumerate((x, gate, d_weight))), dict(enumerate((expected[0], *expected[2:]))))
    assert torch.equal(dy, y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, g, w: (x, g[..., 1:], w, EPS), r"gate has shape \(3, 7, 64\), expected \(3, 7, 65\) as x"),
        (lambda x, g, w: (x, g, w, EPS, 2), r"groups is 2, expected a divisor of x's 65 columns"),
        (lambda x, g, w: (x, g.double(), w, EPS), r"gate is torch.float64 but x is torch.float32"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        gated_rms_norm(*change(*arguments((3, 7, 65))))
