"""A residual stream's sum and its RMSNorm in one operation, against the formula in float64 and the two apart."""

import itertools
from collections.abc import Callable

import pytest
import torch
from comparison import (
    DEVICES,
    assert_all_close,
    assert_replays,
    assert_same_bits,
    nothing_may_wait,
    skip_unless_available,
    weighted_sum,
)
from test_rms_norm import EPS, PACKAGE, formula, make_arguments
from torch import Tensor

from seqlab.ops import add_rms_norm, rms_norm
from seqlab.ops.rms_norm import BACKENDS

every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_device = pytest.mark.parametrize("device", DEVICES)
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
NAMES = "stream", "y"


def arguments(
    shape: tuple[int, ...], update: torch.dtype = torch.float32, *, device: str, gap: int = 0, **named
) -> tuple[Tensor, Tensor, Tensor]:
    x, weight = make_arguments(shape, device=device, gap=gap, **named)
    other = torch.randn(*shape[:-1], shape[-1] + 2 * gap).bfloat16()
    return x, other.to(device, update)[..., : shape[-1]], weight


def in_two(x: Tensor, update: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return x + update, formula(x + update, weight)


def apart(*settings) -> Callable:
    """The sum by PyTorch, then the norm alone."""

    def both(x: Tensor, update: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        stream = x + update
        return stream, rms_norm(stream, weight, EPS, *settings)

    return both


def results(operation: Callable, given: tuple[Tensor, ...], used: tuple[str, ...] = NAMES) -> dict[str, Tensor]:
    """The outputs, and the gradients of a random combination of those that are used."""
    leaves = [tensor.detach().requires_grad_() for tensor in given]
    outputs = dict(zip(NAMES, operation(*leaves), strict=True))
    of = weighted_sum([outputs[name] for name in used])
    gradients = torch.autograd.grad(of, leaves, allow_unused=True)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        assert gradient is None or (gradient.dtype, gradient.shape) == (leaf.dtype, leaf.shape)
    found = {name: tensor.detach() for name, tensor in outputs.items()}
    return found | {n: g for n, g in zip(("dx", "d_update", "d_weight"), gradients, strict=True) if g is not None}


@every_device
@every_backend
class TestEveryBackend:
    @pytest.mark.parametrize("width", [2, 3, 50, 65, 768, 1025, 3000])
    @pytest.mark.parametrize("gap", [0, 1, 4, 16])
    def test_values_and_gradients(self, backend, device, width, gap, nan_memory):
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        given = arguments((3, 7, width), device=device, gap=gap)
        actual = results(lambda *a: add_rms_norm(*a, EPS, backend=backend), given)
        expected = results(in_two, tuple(tensor.double() for tensor in given))
        assert_all_close(actual, expected, torch.float32)

    @pytest.mark.parametrize("used", [("stream",), ("y",)], ids=str)
    @pytest.mark.parametrize("update", [torch.float32, torch.float16], ids=str)
    def test_one_output_alone_is_used(self, backend, device, update, used, nan_memory):
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        given = arguments((5, 40), update, device=device)
        actual = results(lambda *a: add_rms_norm(*a, EPS, backend=backend), given, used)
        expected = results(in_two, tuple(tensor.double() for tensor in given), used)
        d_update = actual.pop("d_update"), expected.pop("d_update")
        assert_all_close(actual, expected, torch.float32)
        assert_all_close({"d": d_update[0]}, {"d": d_update[1]}, update)

    def test_an_update_in_half_precision(self, backend, device, nan_memory):
        """Rounding the gradient is all that is less exact."""
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        given = arguments((33, 40), torch.float16, device=device)
        actual = results(lambda *a: add_rms_norm(*a, EPS, torch.float16, backend=backend), given)
        assert (actual["stream"].dtype, actual["y"].dtype) == (torch.float32, torch.float16)
        assert torch.equal(actual["d_update"], actual["dx"].half())
        assert_all_close(actual, results(in_two, tuple(tensor.double() for tensor in given)), torch.float16)
        assert torch.equal(actual["stream"], given[0] + given[1])

    def test_the_same_tensor_twice_and_other_layouts(self, backend, device, nan_memory):
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        x, update, weight = arguments((4, 5, 68), device=device)
        for given in (
            (x, x, weight),
            (x.transpose(0, 1), update.transpose(0, 1), weight),
            (x[:1].expand(4, -1, -1), update[:, :1].expand(-1, 5, -1), weight),
            (x[..., 1:], update[..., :-1], weight[1:]),
        ):
            actual = results(lambda *a: add_rms_norm(*a, EPS, backend=backend), given)
            assert_all_close(actual, results(in_two, tuple(tensor.double() for tensor in given)), torch.float32)


def test_what_does_not_fit_is_named():
    x, update, weight = arguments((2, 9), device="cpu")
    for wrong, message in (
        (update[:, 1:], r"update is torch.float32 of shape \(2, 8\), expected \(2, 9\)"),
        (update[:1], r"update is torch.float32 of shape \(1, 9\)"),
    ):
        with pytest.raises(ValueError, match=message):
            add_rms_norm(x, wrong, weight, EPS)
    with pytest.raises(ValueError, match=r"update is torch.float32 of shape .* which is torch.bfloat16"):
        add_rms_norm(x.bfloat16(), update, weight, EPS)


class TestOnTheGPU:
    pytestmark = on_gpu

    @pytest.mark.parametrize(("rows", "width"), [(16_384, 768), (8192, 256), (777, 212), (1, 768)])
    @pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_as_the_two_apart(self, rows, width, x_dtype, nan_memory):
        """Forward to the last bit; backward the sum of two gradients is rounded once, not twice."""
        given = arguments((rows, width), torch.bfloat16, dtype=x_dtype, device="cuda")
        actual = results(lambda *a: add_rms_norm(*a, EPS, torch.bfloat16), given)
        expected = results(apart(torch.bfloat16), given)
        for name in (*NAMES, "d_weight"):
            assert torch.equal(actual[name], expected[name]), name
        assert_all_close({"dx": actual["dx"]}, {"dx": expected["dx"]}, x_dtype)
        assert torch.equal(actual["d_update"], actual["dx"].bfloat16())

    def test_the_same_from_run_to_run(self):
        given = arguments((16_384, 768), torch.bfloat16, device="cuda")
        first, *others = (results(lambda *a: add_rms_norm(*a, EPS, torch.bfloat16), given) for _ in range(3))
        for other in others:
            assert_same_bits(other, first)

    @pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream")  # of the leaves, used on three streams here
    def test_nothing_waits_and_a_graph_replays(self):
        given = [t.requires_grad_() for t in arguments((300, 768), torch.bfloat16, device="cuda")]

        def step() -> list[Tensor]:
            outputs = add_rms_norm(*given, EPS, torch.bfloat16)
            return [*outputs, *torch.autograd.grad(outputs, given, [t.detach() for t in outputs])]

        step()
        with nothing_may_wait():
            step()
        assert_replays(step, given)

    def test_other_layouts_in_half_precision(self, nan_memory):
        for width, gap in itertools.product((2, 65, 212, 2048), (0, 1, 8)):
            given = arguments((4, 9, width), torch.bfloat16, device="cuda", gap=gap)
            actual = results(lambda *a: add_rms_norm(*a, EPS, torch.bfloat16), given)
            assert_all_close(actual, results(in_two, tuple(t.double() for t in given)), torch.bfloat16)
