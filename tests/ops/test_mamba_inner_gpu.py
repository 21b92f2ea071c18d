"""The inside of a Mamba block on a CUDA device: in half precision, at the sizes of models, what it keeps, captured."""

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
import torch
from comparison import assert_replays, assert_same_bits, nothing_may_wait
from test_mamba_inner import TRITON, deterministic, doubled, hold_in_place, make_arguments, parts, results
from torch import Tensor
from torch.autograd import forward_ad

from seqlab.models.mixers import mamba
from seqlab.models.mixers.mamba import Mamba
from seqlab.ops import launch
from seqlab.ops.decoding import Block
from seqlab.ops.mamba_inner import can_run, mamba_inner

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
HALF = [torch.bfloat16, torch.float16]
SIZES = {  # batch, length, E, and the others
    "a model's": (2, 1024, 1536, {"d_state": 16, "rank": 48}),
    "short": (32, 256, 1024, {"d_state": 16, "rank": 32}),
    "odd": (3, 129, 201, {"d_state": 5, "rank": 13, "d_conv": 3}),
    "in chunks": (1, 3001, 200, {"d_state": 16, "rank": 12}),
}
CASES = [*((size, torch.bfloat16) for size in SIZES), ("odd", torch.float16)]


def arguments(size: str, dtype: torch.dtype) -> tuple[Tensor, Block]:
    batch, length, d_inner, others = SIZES[size]
    return make_arguments(batch, length, d_inner, **others, dtype=dtype, device="cuda")


def by_parts(xz: Tensor, block: Block) -> Tensor:
    """The parts under autocast, which leaves what is not a product as it is."""
    with torch.autocast("cuda", xz.dtype):
        return parts(xz, block, *TRITON)


@pytest.mark.parametrize(("size", "dtype"), CASES, ids=str)
class TestInHalfPrecision:
    def test_the_bits_of_the_parts(self, size, dtype, nan_memory):
        """The output, and the gradients that come before the sum of two products."""
        with deterministic():
            actual, expected = (results(operation, *arguments(size, dtype)) for operation in (mamba_inner, by_parts))
        for found in (actual, expected):
            found["z"] = found.pop("xz").chunk(2, dim=2)[1]
        exact = ("y", "z", "dt_bias", "A_log", "D")
        assert_same_bits({name: actual[name] for name in exact}, {name: expected[name] for name in exact})

    def test_rounds_no_more_than_the_parts(self, size, dtype, nan_memory):
        """Of both, the distance from float64; thrice, since lanes of a program could get in one another's way."""
        given = arguments(size, dtype)
        exact = results(lambda *given: parts(*given, "reference", "parallel"), *doubled(*given))
        usual = results(by_parts, *given)
        for _ in range(3):
            for name, tensor in results(mamba_inner, *given).items():
                error, others = ((one.double() - exact[name]).norm() for one in (tensor, usual[name]))
                assert error <= 1.2 * others + 1e-6 * exact[name].norm(), name

    def test_the_same_from_run_to_run_where_that_is_asked_for(self, size, dtype):
        given = arguments(size, dtype)
        with deterministic():
            first = results(mamba_inner, *given)
            for _ in range(2):
                assert_same_bits(results(mamba_inner, *given), first)

    def test_launched_again_with_other_numbers(self, size, dtype):
        xz, block = arguments(size, dtype)
        with deterministic():
            results(mamba_inner, xz, block)
            recorded = len(launch.RECORDINGS)
            again = results(mamba_inner, xz.neg(), block)
            assert len(launch.RECORDINGS) == recorded
            launch.RECORDINGS.clear()
            assert_same_bits(again, results(mamba_inner, xz.neg(), block))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("length", "width", "d_state"), [(77, 136, 16), (3000, 136, 16), (300, 133, 5), (300, 136, 128)]
)
def test_the_scan_writes_over_what_it_has_read(length, width, d_state, dtype):
    hold_in_place(2, length, width, d_state, dtype, "cuda")


@pytest.fixture
def by_parts_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Switches the layer to its parts."""
    yield lambda: monkeypatch.setattr(mamba, "can_run", lambda *_: False)


def training(layer: Mamba, x: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Output and gradients of a layer under autocast, its memory then and at most, besides the arguments'."""
    layer.zero_grad()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.autocast("cuda", dtype) if dtype in HALF else nullcontext():
        y = layer(x)
    kept = torch.cuda.memory_allocated() - before
    torch.autograd.backward(y, torch.ones_like(y))
    gradients = {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}
    peak = torch.cuda.max_memory_allocated() - before
    return {"y": y.detach(), **gradients, "kept": torch.tensor(kept), "peak": torch.tensor(peak)}


class TestOfALayer:
    @pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
    def test_is_its_parts(self, dtype, by_parts_alone):
        torch.manual_seed(0)
        layer, x = Mamba(192).cuda(), torch.randn(4, 301, 192, device="cuda")
        found = training(layer, x, dtype)
        by_parts_alone()
        expected = training(layer, x, dtype)
        assert torch.equal(found["y"], expected["y"])
        for name in dict(layer.named_parameters()):
            distance = (found[name] - expected[name]).norm() / expected[name].norm()
            assert distance < (1e-5 if dtype == torch.float32 else 1e-2), name

    def test_peak_memory(self, by_parts_alone):
        """Three tensors of E numbers a position fewer are kept; at most, two more are needed on the way back."""
        layer, x = Mamba(768).cuda(), torch.randn(8, 2048, 768, device="cuda").requires_grad_()
        for _ in range(2):
            found = training(layer, x, torch.bfloat16)
        by_parts_alone()
        for _ in range(2):
            expected = training(layer, x, torch.bfloat16)
        one = 2 * 8 * 2048 * 1536
        assert expected["kept"] - found["kept"] > 2.9 * one
        assert expected["peak"] - found["peak"] > one / 2

    def test_compiled_it_calls_the_parts(self):
        torch.compiler.reset()
        torch.manual_seed(0)
        layer, x = Mamba(64).cuda(), torch.randn(2, 20, 64, device="cuda")
        found = training(torch.compile(copy.deepcopy(layer), backend="aot_eager", fullgraph=True), x, torch.float32)
        assert (found["y"] - training(layer, x, torch.float32)["y"]).norm() < 1e-5 * found["y"].norm()


class TestWhereItRuns:
    def test_where_the_kernels_are_the_parts(self):
        xz, block = make_arguments(1, 4, 6, device="cuda")
        xz.requires_grad_()
        assert can_run(xz, block) and can_run(xz, block, "triton")
        assert not can_run(xz, block, "parallel") and not can_run(xz, block, "reference")
        assert not can_run(xz.detach(), block)
        with torch.no_grad():
            assert not can_run(xz, block)
        assert not can_run(*doubled(xz, block))
        assert not can_run(xz.bfloat16(), block)
        with torch.autocast("cuda", torch.bfloat16):
            assert can_run(xz.bfloat16(), block) and not can_run(xz, block)
        with forward_ad.dual_level():
            assert not can_run(xz, block)

    def test_what_does_not_fit_is_named(self):
        xz, block = make_arguments(1, 4, 6, device="cuda")
        xz.requires_grad_()
        for name, wrong in (("xz", xz[..., 1:]), ("x_weight", block.x_weight[1:]), ("out_weight", block.A_log)):
            given = (wrong, block) if name == "xz" else (xz, block._replace(**{name: wrong}))
            with pytest.raises(ValueError, match=f"{name} has shape"):
                can_run(*given)
        with pytest.raises(ValueError, match="no backend 'other'"):
            can_run(xz, block, "other")


@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream")  # of the leaves, used on three streams here
def test_cuda_graph_capture():
    with deterministic():
        xz, block = arguments("in chunks", torch.bfloat16)
        leaves = [tensor.requires_grad_() for tensor in (xz, *block)]

        def step() -> list[Tensor]:
            out = mamba_inner(leaves[0], Block(*leaves[1:]))
            wanted = [leaves[0], *leaves[2:]]
            return [out, *torch.autograd.grad(out, wanted, out.detach())]

        assert_replays(step, leaves)


def test_nothing_waits_for_the_device():
    xz, block = arguments("short", torch.bfloat16)
    xz.requires_grad_()
    mamba_inner(xz, block).sum().backward()
    with nothing_may_wait():
        mamba_inner(xz, block).sum().backward()
