"""Cross-entropy: every backend against PyTorch's in float64."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from comparison import (
    DEVICES,
    assert_all_close,
    assert_replays,
    backends_in,
    nothing_may_wait,
    skip_unless_available,
    weighted_sum,
)
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from seqlab.ops import cross_entropy, triton_support
from seqlab.ops.cross_entropy import BACKENDS, resolve_backend
from seqlab.ops.cross_entropy.operator import FUSED

PACKAGE = "seqlab.ops.cross_entropy"
IGNORED = -100
every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_fused_backend = pytest.mark.parametrize("backend", FUSED)
every_device = pytest.mark.parametrize("device", DEVICES)
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
half = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def make_arguments(
    shape: tuple[int, ...] = (3, 7),
    vocabulary: int = 65,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    gap: int = 0,
) -> tuple[Tensor, Tensor]:
    """Logits whose rows lie ``gap`` numbers apart in memory, of which all dtypes and devices get the same; targets."""
    torch.manual_seed(0)
    wide = 3 * torch.randn(*shape, vocabulary + gap)
    return wide.bfloat16().to(device, dtype)[..., :vocabulary], torch.randint(vocabulary, shape).to(device)


def results(operation, logits: Tensor, targets: Tensor, **settings) -> dict[str, Tensor]:
    """The losses and the gradient of a random combination of them."""
    leaf = logits.detach().requires_grad_()
    losses = operation(leaf, targets, **settings)
    (gradient,) = torch.autograd.grad(weighted_sum((losses,)), leaf)
    assert losses.shape == targets.shape
    assert losses.dtype == (torch.float64 if logits.dtype == torch.float64 else torch.float32)
    assert gradient.dtype == logits.dtype
    assert gradient.shape == logits.shape
    return {"losses": losses.detach(), "d_logits": gradient}


def pytorchs(logits: Tensor, targets: Tensor, ignore_index: int = IGNORED) -> Tensor:
    rows = logits.reshape(-1, logits.shape[-1])
    losses = F.cross_entropy(rows, targets.reshape(-1), ignore_index=ignore_index, reduction="none")
    return losses.view(targets.shape)


def hold(backend: str, logits: Tensor, targets: Tensor, **settings) -> dict[str, Tensor]:
    """Compare a backend with float64; returns what it gave."""
    skip_unless_available(PACKAGE, backend, logits.device.type, logits.dtype)
    actual = results(cross_entropy, logits, targets, backend=backend, **settings)
    assert_all_close(actual, results(pytorchs, logits.double(), targets, **settings), logits.dtype)
    return actual


class TestEveryBackend:
    def test_the_order_lists_every_file(self):
        assert sorted(BACKENDS) == sorted(backends_in(PACKAGE))

    @every_device
    @every_backend
    @pytest.mark.parametrize("vocabulary", [1, 2, 3, 4, 16, 50, 65, 128, 1000, 1024, 1040])
    def test_values_and_gradients(self, backend, device, vocabulary, nan_memory):
        """Rows shorter than a thread's access, many rows in a program, several rounds, with edges and without."""
        hold(backend, *make_arguments((3, 7), vocabulary, device=device))

    @every_device
    @every_backend
    @pytest.mark.parametrize("vocabulary", [10_000, 50_257])
    def test_whole_vocabularies(self, backend, device, vocabulary, nan_memory):
        hold(backend, *make_arguments((2,), vocabulary, device=device))

    @every_device
    @every_backend
    @pytest.mark.parametrize("rows", [1, 31, 33, 70])
    def test_more_and_fewer_rows_than_a_program_has(self, backend, device, rows, nan_memory):
        hold(backend, *make_arguments((rows,), 5, device=device))

    @every_device
    @every_backend
    @pytest.mark.parametrize("vocabulary", [3, 64, 1040, 1043])
    @pytest.mark.parametrize("gap", [1, 4, 16])
    def test_rows_that_lie_apart(self, backend, device, vocabulary, gap, nan_memory):
        hold(backend, *make_arguments((2, 3), vocabulary, gap=gap, device=device))

    @every_device
    @every_backend
    def test_other_layouts(self, backend, device):
        logits, targets = make_arguments((4, 5), 67, device=device)
        for view, named in (
            (logits[..., 1:], targets.clamp(max=65)),  # at an address that is no multiple of 16
            (logits[:, :-1], targets[:, :-1]),
            (logits.transpose(0, 1), targets.t()),
            (logits.transpose(0, 2).contiguous().transpose(0, 2), targets),
            (logits[:1].expand(4, -1, -1), targets),
            (logits[0, 0], targets[0, 0]),
        ):
            hold(backend, view, named)

    @every_device
    @every_backend
    def test_no_rows(self, backend, device):
        logits, targets = make_arguments((0, 4), 5, device=device)
        skip_unless_available(PACKAGE, backend, device, logits.dtype)
        assert results(cross_entropy, logits, targets, backend=backend)["losses"].shape == (0, 4)

    @every_device
    @every_backend
    @pytest.mark.parametrize("ignore_index", [IGNORED, 2, -1])
    def test_ignored_rows(self, backend, device, ignore_index, nan_memory):
        logits, targets = make_arguments((5, 6), 65, device=device)
        targets[1], targets[:, 3] = ignore_index, ignore_index
        actual = hold(backend, logits, targets, ignore_index=ignore_index)
        assert not actual["losses"][targets == ignore_index].any()
        assert not actual["d_logits"][targets == ignore_index].any()
        hold(backend, logits, torch.full_like(targets, ignore_index), ignore_index=ignore_index)

    @every_device
    @every_backend
    def test_gradients_of_some_rows_or_the_same_for_all(self, backend, device, nan_memory):
        logits, targets = make_arguments((3, 4), 130, device=device)
        skip_unless_available(PACKAGE, backend, device, logits.dtype)
        for weigh in (lambda y: y[1].sum(), lambda y: y.mean(), lambda y: y[:, ::2].sum()):
            x, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
            (actual,) = torch.autograd.grad(weigh(cross_entropy(x, targets, backend=backend)), x)
            (expected,) = torch.autograd.grad(weigh(pytorchs(exact, targets)), exact)
            assert_all_close({"d_logits": actual}, {"d_logits": expected}, torch.float32)

    @every_device
    @every_backend
    def test_large_logits_lose_no_digits(self, backend, device):
        """A loss of a few nats of logits near 10,000, which float32 rounds to thousandths."""
        logits, targets = make_arguments((3, 4), 65, device=device)
        hold(backend, logits + 2**14, targets)

    @every_device
    @every_backend
    def test_what_is_not_finite_comes_out_as_from_pytorch(self, backend, device):
        inf, nan = math.inf, math.nan
        logits, targets = make_arguments((10,), 37, device=device)
        targets[:] = torch.arange(10) + 5
        logits[0, :5] = -inf  # impossible ones beside the target
        logits[1, 6] = -inf  # the target
        logits[2] = -inf
        logits[3], logits[3, 8] = -inf, 1.0  # the target alone is possible
        logits[4, 0] = inf
        logits[5, 10] = inf  # the target
        logits[6, 36] = nan
        logits[7, 12] = nan  # the target
        logits[8, 0], logits[8, 1] = inf, -inf
        skip_unless_available(PACKAGE, backend, device, logits.dtype)
        with np.errstate(all="ignore"):  # of Triton's interpreter
            actual = results(cross_entropy, logits, targets, backend=backend)
        expected = results(pytorchs, logits, targets)
        assert expected["losses"].isnan().tolist() == [False, False, True, False, *[True] * 5, False]
        assert expected["losses"][1] == inf
        for name in expected:
            torch.testing.assert_close(actual[name], expected[name], equal_nan=True)

    @every_device
    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
    def test_dtypes_of_the_reference(self, device, dtype):
        hold("reference", *make_arguments(dtype=dtype, device=device))

    @half
    def test_a_cpu_gives_what_the_formula_gives(self, dtype):
        logits, targets = make_arguments(dtype=dtype)
        actual = results(cross_entropy, logits, targets)
        expected = results(lambda x, t: pytorchs(x.float(), t), logits, targets)
        assert all(actual[name].equal(expected[name]) for name in expected)

    def test_gradcheck(self):
        logits, targets = make_arguments((2, 3), 5, dtype=torch.float64)
        targets[0, 1] = IGNORED
        assert torch.autograd.gradcheck(lambda x: cross_entropy(x, targets), logits.requires_grad_())


class TestFused:
    @every_device
    @every_fused_backend
    def test_rows_that_count_nothing_are_not_read(self, backend, device, nan_memory):
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        logits, targets = make_arguments((4,), 67, device=device)
        targets[1] = IGNORED
        logits[1:3, 5] = math.nan
        leaf = logits.requires_grad_()
        losses = cross_entropy(leaf, targets, backend=backend)
        assert losses[1] == 0
        assert losses.isnan().tolist() == [False, False, True, False]
        (gradient,) = torch.autograd.grad(losses, leaf, torch.tensor([1.0, 1, 0, 1], device=device))
        assert not gradient[1:3].any()
        assert gradient.isfinite().all()

    @every_device
    @every_fused_backend
    @pytest.mark.parametrize("target", [65, -1, 2**40])
    def test_a_target_outside_the_vocabulary_gives_nan(self, backend, device, target):
        logits, targets = make_arguments((5,), 65, device=device)
        skip_unless_available(PACKAGE, backend, device, logits.dtype)
        expected = results(cross_entropy, logits, targets, backend=backend)
        targets[2] = target
        actual = results(cross_entropy, logits, targets, backend=backend)
        for name in expected:
            assert actual[name][2].isnan().all()
            kept = [0, 1, 3, 4]
            assert actual[name][kept].equal(expected[name][kept])

    @every_device
    @every_fused_backend
    def test_opcheck(self, backend, device):
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        logits, targets = make_arguments((5,), 19, gap=3, device=device)
        targets[1] = IGNORED
        losses, kept = torch.ops.seqlab.cross_entropy(logits, targets, IGNORED, backend)
        operands = (torch.randn_like(losses), logits, targets, kept, IGNORED, backend)
        torch.library.opcheck(torch.ops.seqlab.cross_entropy_backward.default, operands)
        torch.library.opcheck(
            torch.ops.seqlab.cross_entropy.default, (logits.requires_grad_(), targets, IGNORED, backend)
        )

    @every_device
    @every_fused_backend
    def test_results_are_the_same_bit_by_bit(self, backend, device):
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        arguments = make_arguments((300,) if device == "cuda" else (5,), 2049, device=device)
        first, second = (results(cross_entropy, *arguments, backend=backend) for _ in range(2))
        assert all(first[name].equal(second[name]) for name in first)

    @every_fused_backend
    def test_only_losses_and_the_gradient_are_made(self, backend):
        """Between the passes the logits themselves are kept, and two numbers a row."""
        skip_unless_available(PACKAGE, backend, "cpu", torch.float32)
        logits, targets = make_arguments((6,), 65)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            cross_entropy(logits.requires_grad_(), targets, backend=backend)
        others = [t for t in kept if t.data_ptr() not in (logits.data_ptr(), targets.data_ptr())]
        assert [tuple(t.shape) for t in others] == [(2, 6)]

    @every_backend
    @every_device
    def test_compiles_without_a_graph_break(self, backend, device):
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        torch.compiler.reset()
        compiled = torch.compile(cross_entropy, backend="aot_eager", fullgraph=True)
        arguments = make_arguments((2, 3), 19, device=device)
        expected = results(cross_entropy, *arguments, backend=backend)
        assert_all_close(results(compiled, *arguments, backend=backend), expected, torch.float32)


def test_on_the_meta_device_shapes_alone():
    logits = torch.empty(2, 3, 65, dtype=torch.bfloat16, device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        losses = cross_entropy(logits, torch.empty(2, 3, dtype=torch.int64, device="meta"))
        losses.sum().backward()
    assert counter.get_total_flops() == 0
    assert (losses.shape, losses.dtype) == ((2, 3), torch.float32)
    assert (logits.grad.shape, logits.grad.dtype) == ((2, 3, 65), torch.bfloat16)


class TestOnTheGPU:
    pytestmark = on_gpu

    @half
    @pytest.mark.parametrize(
        ("rows", "vocabulary", "gap"),
        [(8192, 10_000, 0), (1000, 50_257, 0), (300, 128_256, 0), (5000, 65, 0), (999, 3, 0), (500, 10_004, 8),
         (500, 10_001, 4)],
    )  # fmt: skip
    def test_agrees_with_the_formula_in_float32(self, dtype, rows, vocabulary, gap):
        """Losses within float32's rounding, the gradient within one step of the logits' dtype; that of a target is a
        difference from 1 first."""
        logits, targets = make_arguments((rows,), vocabulary, dtype=dtype, gap=gap, device="cuda")
        targets[::7] = IGNORED
        actual = results(cross_entropy, logits, targets)
        expected = results(pytorchs, logits.float(), targets)
        torch.testing.assert_close(actual["losses"], expected["losses"], rtol=1e-6, atol=4e-6)
        step = torch.finfo(dtype).eps * expected["d_logits"].abs()
        step = step.clamp(min=torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps)
        step.scatter_add_(1, targets.clamp(min=0)[:, None], torch.full_like(step[:, :1], 2e-6))
        rounded = expected["d_logits"].to(dtype).float()
        assert ((actual["d_logits"].float() - rounded).abs() <= step).all()

    @half
    def test_values_and_gradients(self, dtype, nan_memory):
        for vocabulary in (1, 3, 8, 65, 1000, 2048, 10_000):
            for gap in (0, 1, 8, 16):
                hold("triton", *make_arguments((4, 9), vocabulary, dtype=dtype, gap=gap, device="cuda"))

    def test_auto_takes_the_kernels_but_for_float64(self):
        assert resolve_backend("auto", "cuda", torch.bfloat16) == "triton"
        assert resolve_backend("auto", "cuda", torch.float64) == "reference"

    @half
    def test_memory(self, dtype):
        """At its peak there are the logits, their gradient, and some numbers a row."""
        rows = 2048
        logits, targets = make_arguments((rows,), 50_257, dtype=dtype, device="cuda")
        logits.requires_grad_()
        g = torch.ones(rows, device="cuda")
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        losses = cross_entropy(logits, targets)
        (gradient,) = torch.autograd.grad(losses, logits, g)
        added = torch.cuda.max_memory_allocated() - before
        rounding = 2 * 2**20  # a large block is a multiple of it
        assert added <= gradient.numel() * gradient.element_size() + 16 * rows + rounding

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_nothing_waits_for_the_device(self, dtype):
        logits, targets = make_arguments((64,), 1000, dtype=dtype, device="cuda")
        cross_entropy(logits.requires_grad_(), targets).sum().backward()
        with nothing_may_wait():
            cross_entropy(logits, targets).sum().backward()

    @pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream")  # of the leaf, used on three streams here
    def test_cuda_graph_capture(self):
        logits, targets = make_arguments((300,), 10_000, dtype=torch.bfloat16, device="cuda")
        logits.requires_grad_()

        def step() -> list[Tensor]:
            losses = cross_entropy(logits, targets)
            return [losses, *torch.autograd.grad(losses, logits, losses.detach())]

        assert_replays(step, [logits])

    @pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.mem_get_info()[0] < 20 * 2**30,
        reason="needs 20 GB on a CUDA device",
    )
    def test_more_than_2_31_elements(self):
        rows, vocabulary, tail = 43_000, 50_257, 20
        torch.manual_seed(0)
        logits = torch.randn(rows, vocabulary, dtype=torch.bfloat16, device="cuda").requires_grad_()
        targets = torch.randint(vocabulary, (rows,), device="cuda")
        losses = cross_entropy(logits, targets)
        (gradient,) = torch.autograd.grad(losses, logits, losses.detach())
        end = logits.detach()[-tail:].double().requires_grad_()
        expected = pytorchs(end, targets[-tail:])
        (d_end,) = torch.autograd.grad(expected, end, losses.detach()[-tail:].double())
        assert_all_close({"losses": losses[-tail:]}, {"losses": expected}, torch.float32)
        assert_all_close({"d_logits": gradient[-tail:]}, {"d_logits": d_end}, torch.bfloat16)


class TestArguments:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda x, t: (x[:2], t), r"targets has shape \(3, 7\), expected \(2, 7\) for logits of \(2, 7, 65\)"),
            (lambda x, t: (x[..., :0], t), r"logits has shape \(3, 7, 0\), expected \(..., vocabulary\)"),
            (lambda x, t: (x[0, 0, 0], t), r"logits has shape \(\), expected"),
            (lambda x, t: (x.long(), t), r"logits is torch.int64, expected one of"),
            (lambda x, t: (x, t.int()), r"targets is torch.int32 on cpu, expected torch.int64 on cpu"),
            (lambda x, t: (x, t.to("meta")), r"targets is torch.int64 on meta, expected torch.int64 on cpu"),
        ],
    )
    def test_what_does_not_fit_is_named(self, change, message):
        with pytest.raises(ValueError, match=message):
            cross_entropy(*change(*make_arguments()))

    def test_a_target_outside_the_vocabulary_is_refused_on_a_cpu(self):
        logits, targets = make_arguments()
        targets[0, 0] = 65
        with pytest.raises(IndexError, match="out of bounds"):
            cross_entropy(logits, targets)

    def test_auto_never_takes_the_interpreter(self, monkeypatch):
        monkeypatch.setattr(triton_support, "interpreted", lambda: True)
        assert resolve_backend("auto", "cpu", torch.float32) == "reference"
