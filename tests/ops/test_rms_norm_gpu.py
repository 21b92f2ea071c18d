"""RMSNorm on a CUDA device: in half precision, at the sizes of models, captured and launched again."""

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_all_close, assert_replays, assert_same_bits, nothing_may_wait
from test_rms_norm import EPS, formula, hold, make_arguments, results
from torch import Tensor

from seqlab.ops import launch, rms_norm
from seqlab.ops.rms_norm import resolve_backend

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
half = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
SIZES = [(16_384, 768), (8192, 256), (1000, 1024), (500, 4096), (300, 8192), (777, 212), (1, 768), (70_000, 16)]


def float32s(x: Tensor, weight: Tensor) -> Tensor:
    """PyTorch's own in float32."""
    return F.rms_norm(x.float(), weight.shape, weight.float(), EPS)


def assert_rounded(actual: Tensor, exact: Tensor, slack: float = 0.0) -> None:
    """``actual`` is ``exact``, which is float32, in its own dtype: mostly to the bit, nowhere more than a step away.

    ``slack``, relative to the largest of the row, is for what is a difference of larger numbers.
    """
    rounded = exact.to(actual.dtype)
    info = torch.finfo(actual.dtype)
    step = info.eps * rounded.float().abs().clamp(min=info.smallest_normal)
    step += slack * exact.abs().amax(dim=-1, keepdim=True)
    assert ((actual.float() - rounded.float()).abs() <= step).all()
    assert (actual == rounded).double().mean() > 0.99


def test_auto_takes_the_kernels_but_for_float64():
    assert resolve_backend("auto", "cuda", torch.bfloat16, 768) == "triton"
    assert resolve_backend("auto", "cuda", torch.float64, 768) == "reference"


@half
@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_under_autocast_as_pytorch_in_float32_and_a_cast(rows, width, dtype, nan_memory):
    """x and weights in float32, the output in half precision, and therefore its gradient."""
    x, weight = make_arguments((rows, width), device="cuda")
    actual = results(rms_norm, x, weight, EPS, dtype)
    assert_rounded(actual["y"], float32s(x, weight))
    expected = results(lambda x, w: formula(x, w).to(dtype), x.double(), weight.double())
    gradients = {name: actual[name] for name in ("dx", "d_weight")}
    assert_all_close(gradients, {name: expected[name] for name in gradients}, torch.float32)


@half
@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_all_in_half_precision(rows, width, dtype, nan_memory):
    x, weight = make_arguments((rows, width), dtype=dtype, device="cuda")
    actual = results(rms_norm, x, weight, EPS)
    expected = results(float32s, x.float(), weight.float())
    assert_rounded(actual["y"], expected["y"])
    assert_rounded(actual["dx"], expected["dx"], 2e-6)
    exact = results(formula, x.double(), weight.double())
    assert_all_close({"d": actual["d_weight"]}, {"d": exact["d_weight"]}, dtype)


@half
def test_values_and_gradients(dtype, nan_memory):
    for width in (2, 3, 8, 65, 100, 212, 1000, 2048, 8191):
        for gap in (0, 1, 4, 8, 16):
            hold("triton", *make_arguments((4, 9, width), dtype=dtype, gap=gap, device="cuda"))


@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_the_weights_gradient_of_many_rows(rows, width, nan_memory):
    hold("triton", *make_arguments((rows, width), device="cuda"))


@half
def test_the_same_from_run_to_run(dtype):
    x, weight = make_arguments((16_384, 768), device="cuda")
    first = results(rms_norm, x, weight, EPS, dtype)
    for _ in range(3):
        assert_same_bits(results(rms_norm, x, weight, EPS, dtype), first)


@half
def test_launched_again_with_other_numbers(dtype):
    """As Triton's own launch, bit by bit; other layouts and dtypes are launched anew."""
    for gap in (0, 4, 8):
        x, weight = make_arguments((40, 9, 200), device="cuda", gap=gap)
        results(rms_norm, x, weight, EPS, dtype)
        recorded = len(launch.RECORDINGS)
        other, weights = x.neg() if gap == 0 else x, weight.square()
        again = results(rms_norm, other, weights, EPS, dtype)
        assert len(launch.RECORDINGS) == recorded
        launch.RECORDINGS.clear()
        assert_same_bits(again, results(rms_norm, other, weights, EPS, dtype))


@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream")  # of the leaf, used on three streams here
def test_cuda_graph_capture():
    x, weight = (tensor.requires_grad_() for tensor in make_arguments((300, 768), device="cuda"))

    def step() -> list[Tensor]:
        y = rms_norm(x, weight, EPS, torch.bfloat16)
        return [y, *torch.autograd.grad(y, (x, weight), y.detach())]

    assert_replays(step, [x, weight])


def test_nothing_waits_for_the_device():
    x, weight = (tensor.requires_grad_() for tensor in make_arguments((300, 768), device="cuda"))
    rms_norm(x, weight, EPS).sum().backward()
    with nothing_may_wait():
        rms_norm(x, weight, EPS).sum().backward()


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.mem_get_info()[0] < 40 * 2**30, reason="needs 40 GB on a CUDA device"
)
def test_more_than_2_31_elements():
    rows, width, tail = 2_800_000, 800, 20
    torch.manual_seed(0)
    x = torch.randn(rows, width, dtype=torch.bfloat16, device="cuda").requires_grad_()
    weight = torch.rand(width, device="cuda").requires_grad_()
    y = rms_norm(x, weight, EPS)
    (dx,) = torch.autograd.grad(y, x, x.detach())
    end = x.detach()[-tail:].double().requires_grad_()
    expected = formula(end, weight.detach().double())
    (d_end,) = torch.autograd.grad(expected, end, end.detach())
    assert_all_close({"y": y[-tail:], "dx": dx[-tail:]}, {"y": expected, "dx": d_end}, torch.bfloat16)
