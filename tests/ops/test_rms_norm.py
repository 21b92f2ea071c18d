"""RMSNorm: every backend against the formula in float64."""

import math

import pytest
import torch
from comparison import DEVICES, assert_all_close, assert_same_bits, backends_in, skip_unless_available, weighted_sum
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from seqlab.ops import rms_norm, triton_support
from seqlab.ops.rms_norm import BACKENDS, WIDEST, resolve_backend
from seqlab.ops.rms_norm import triton as fused
from seqlab.ops.rms_norm.operator import FUSED

PACKAGE = "seqlab.ops.rms_norm"
EPS = 1e-5
every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_fused_backend = pytest.mark.parametrize("backend", FUSED)
every_device = pytest.mark.parametrize("device", DEVICES)


def make_arguments(
    shape: tuple[int, ...] = (3, 7, 65),
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    gap: int = 0,
) -> tuple[Tensor, Tensor]:
    """x, whose rows lie ``gap`` numbers apart in memory, and weights; all dtypes and devices get the same numbers."""
    torch.manual_seed(0)
    wide = torch.randn(*shape[:-1], shape[-1] + gap) * torch.rand(*shape[:-1], 1).mul(4).exp()
    weight = 0.5 + torch.rand(shape[-1])
    return wide.bfloat16().to(device, dtype)[..., : shape[-1]], weight.bfloat16().to(device, dtype)


def formula(x: Tensor, weight: Tensor, eps: float = EPS) -> Tensor:
    return x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt() * weight


def results(operation, x: Tensor, weight: Tensor, *settings, **named) -> dict[str, Tensor]:
    """y and the gradients of a random combination of it."""
    leaves = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = operation(*leaves, *settings, **named)
    assert y.shape == x.shape
    gradients = torch.autograd.grad(weighted_sum((y,)), leaves)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        assert (gradient.dtype, gradient.shape) == (leaf.dtype, leaf.shape)
    return dict(zip(("y", "dx", "d_weight"), (y.detach(), *gradients), strict=True))


def hold(backend: str, x: Tensor, weight: Tensor, eps: float = EPS) -> dict[str, Tensor]:
    """Compare a backend with the formula in float64; returns what it gave."""
    skip_unless_available(PACKAGE, backend, x.device.type, x.dtype)
    actual = results(rms_norm, x, weight, eps, backend=backend)
    assert actual["y"].dtype == x.dtype
    assert_all_close(actual, results(formula, x.double(), weight.double(), eps), x.dtype)
    return actual


class TestEveryBackend:
    def test_the_order_lists_every_file(self):
        assert sorted(BACKENDS) == sorted(backends_in(PACKAGE))

    @every_device
    @every_backend
    @pytest.mark.parametrize("width", [2, 3, 16, 50, 65, 128, 768, 1000, 1025, 3000, 8192])
    def test_values_and_gradients(self, backend, device, width, nan_memory):
        """Many rows in a program and one over several warps, with columns that are not there and without."""
        hold(backend, *make_arguments((3, 7, width), device=device))

    @every_device
    @every_backend
    @pytest.mark.parametrize("rows", [1, 2, 31, 33, 70, 1000])
    def test_more_and_fewer_rows_than_a_program_has(self, backend, device, rows, nan_memory):
        """On one multiprocessor, as the interpreter's, a program walks over up to three tiles."""
        hold(backend, *make_arguments((rows, 20), device=device))

    @every_device
    @every_backend
    def test_a_walk_of_one_program_over_many_wide_rows(self, backend, device, nan_memory):
        hold(backend, *make_arguments((40, 1025), device=device))

    @every_device
    @every_backend
    @pytest.mark.parametrize("width", [3, 64, 1040, 1043])
    @pytest.mark.parametrize("gap", [1, 4, 16])
    def test_rows_that_lie_apart(self, backend, device, width, gap, nan_memory):
        hold(backend, *make_arguments((2, 3, width), gap=gap, device=device))

    @every_device
    @every_backend
    def test_other_layouts(self, backend, device, nan_memory):
        x, weight = make_arguments((4, 5, 68), device=device)
        for view, weights in (
            (x[..., 1:], weight[1:]),  # at addresses that are no multiple of 16
            (x[:, :-1], weight),
            (x[:, ::2], weight),
            (x.transpose(0, 1), weight),
            (x.transpose(0, 2).contiguous().transpose(0, 2), torch.stack([weight, weight], 1)[:, 0]),
            (x[:1].expand(4, -1, -1), weight),
            (x[:1, :1].expand(4, 5, -1), weight),
            (x[0, 0], weight),
            (x[..., :1].expand(-1, -1, 68), weight),
        ):
            hold(backend, view, weights)

    @every_device
    @every_backend
    def test_gradients_that_lie_apart_or_are_the_same_for_all(self, backend, device, nan_memory):
        x, weight = make_arguments((3, 4, 68), device=device)
        skip_unless_available(PACKAGE, backend, device, x.dtype)
        for weigh in (lambda y: y[1].sum(), lambda y: y.mean(), lambda y: (y[:, ::2, 1:] ** 2).sum()):
            found = []
            for operation, dtype in ((lambda *a: rms_norm(*a, EPS, backend=backend), x.dtype), (formula, torch.double)):
                leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (x, weight)]
                found.append(dict(zip("xw", torch.autograd.grad(weigh(operation(*leaves)), leaves), strict=True)))
            assert_all_close(*found, torch.float32)

    @every_device
    @every_backend
    def test_one_column(self, backend, device):
        """y is the weight and x's sign, but for eps; dx is 0 but for it, so a large one."""
        hold(backend, *make_arguments((5, 1), device=device), 10.0)

    @every_device
    @every_backend
    def test_rows_of_zeros_and_of_tiny_numbers(self, backend, device):
        x, weight = make_arguments((4, 20), device=device)
        x[1], x[2] = 0.0, x[2] * 1e-6
        actual = hold(backend, x, weight)
        assert not actual["y"][1].any()

    @every_device
    @every_backend
    def test_no_rows(self, backend, device, nan_memory):
        x, weight = make_arguments((0, 4, 5), device=device)
        skip_unless_available(PACKAGE, backend, device, x.dtype)
        assert not results(rms_norm, x, weight, EPS, backend=backend)["d_weight"].any()

    @every_device
    @every_backend
    def test_a_row_that_is_not_finite_leaves_the_others_alone(self, backend, device):
        x, weight = make_arguments((5, 40), device=device)
        skip_unless_available(PACKAGE, backend, device, x.dtype)
        expected = results(rms_norm, x, weight, EPS, backend=backend)
        x[3, 7] = math.nan
        actual = results(rms_norm, x, weight, EPS, backend=backend)
        others = [0, 1, 2, 4]
        for name in ("y", "dx"):
            assert actual[name][3].isnan().any()
            assert actual[name][others].equal(expected[name][others])

    @every_device
    @every_backend
    @pytest.mark.parametrize(
        ("dtype", "of_weight", "out_dtype"),
        [(torch.float32, torch.float32, torch.float16), (torch.float16, torch.float32, torch.float32),
         (torch.float16, torch.float16, torch.float32), (torch.float32, torch.float16, None)],
        ids=str,
    )  # fmt: skip
    def test_dtypes_apart(self, backend, device, dtype, of_weight, out_dtype, nan_memory):
        """The output is rounded once, after the weights."""
        x, weight = make_arguments((6, 40), dtype=dtype, device=device)
        weight = weight.to(of_weight)
        skip_unless_available(PACKAGE, backend, device, dtype)
        actual = results(rms_norm, x, weight, EPS, out_dtype, backend=backend)
        assert actual["y"].dtype == (out_dtype or dtype)
        expected = results(formula, x.double(), weight.double())
        assert_all_close(actual, expected, torch.float16, 4e-4)
        if actual["y"].dtype == torch.float32:
            assert_all_close({"y": actual["y"]}, {"y": expected["y"]}, torch.float32)

    @every_device
    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
    def test_dtypes_of_the_reference(self, device, dtype):
        hold("reference", *make_arguments(dtype=dtype, device=device))

    def test_a_cpu_gives_what_pytorch_gives(self):
        x, weight = make_arguments()
        actual = results(rms_norm, x, weight, EPS)
        assert_same_bits(actual, results(lambda x, w: torch.nn.functional.rms_norm(x, (65,), w, EPS), x, weight))

    def test_gradcheck(self):
        arguments = [tensor.requires_grad_() for tensor in make_arguments((2, 3, 5), dtype=torch.float64)]
        assert torch.autograd.gradcheck(lambda *a: rms_norm(*a, EPS), arguments)
        assert torch.autograd.gradgradcheck(lambda *a: rms_norm(*a, EPS), arguments)


class TestFused:
    @every_device
    @every_fused_backend
    def test_opcheck(self, backend, device):
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        x, weight = make_arguments((2, 5, 19), gap=3, device=device)
        for update, gate in ((x.clone(), None), (x.half(), None), (None, x.half())):
            operator, settings = torch.ops.seqlab.rms_norm, (EPS, 1, torch.float16, backend)
            stream, y, scale = operator(x, update, gate, weight, *settings)
            dtype = None if update is None else update.dtype
            for d_stream in (None,) if update is None else (None, torch.randn_like(x)):
                stream = x if update is None else stream
                operands = torch.randn_like(y), d_stream, stream, gate, weight, scale, 1, dtype, backend
                torch.library.opcheck(torch.ops.seqlab.rms_norm_backward.default, operands)
            leaves = [None if t is None else t.clone().requires_grad_() for t in (x, update, gate, weight)]
            torch.library.opcheck(operator.default, (*leaves, *settings))

    @every_device
    @every_fused_backend
    def test_results_are_the_same_bit_by_bit(self, backend, device):
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        arguments = make_arguments((5000, 768) if device == "cuda" else (50, 40), device=device)
        first, second = (results(rms_norm, *arguments, EPS, backend=backend) for _ in range(2))
        assert_same_bits(first, second)

    @every_fused_backend
    def test_between_the_passes_a_number_a_row_is_kept(self, backend):
        skip_unless_available(PACKAGE, backend, "cpu", torch.float32)
        x, weight = make_arguments((2, 3, 65))
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            rms_norm(x.requires_grad_(), weight.requires_grad_(), EPS, torch.float16, backend=backend)
        others = [t for t in kept if t.data_ptr() not in (x.data_ptr(), weight.data_ptr())]
        assert [tuple(t.shape) for t in others] == [(6,)]

    @every_device
    @every_fused_backend
    def test_further_derivatives_are_refused(self, backend, device):
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        x, weight = (tensor.requires_grad_() for tensor in make_arguments((2, 5), device=device))
        y = rms_norm(x, weight, EPS, backend=backend)
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        with pytest.raises(NotImplementedError, match=r"rms_norm backend='triton' has no second derivative"):
            dx.sum().backward()
        with pytest.raises(NotImplementedError, match=r"rms_norm backend='triton' does not go through torch\.func"):
            torch.func.jvp(lambda x: rms_norm(x, weight, EPS, backend=backend), (x,), (x,))

    @every_device
    @every_backend
    def test_compiles_without_a_graph_break(self, backend, device):
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        torch.compiler.reset()
        compiled = torch.compile(rms_norm, backend="aot_eager", fullgraph=True)
        arguments = *make_arguments((2, 3, 19), device=device), EPS
        expected = results(rms_norm, *arguments, backend=backend)
        assert_all_close(results(compiled, *arguments, backend=backend), expected, torch.float32)


class TestRows:
    def test_the_distance_between_them(self):
        x = torch.empty(4, 6, 10)
        assert fused.row_stride(x) == 10
        assert fused.row_stride(x[..., :7]) == 10
        assert fused.row_stride(x[:, 1]) == 60
        assert fused.row_stride(x[:, :1]) == 60
        assert fused.row_stride(x[:1, ::2]) == 20
        assert fused.row_stride(x[:, ::2]) == 20
        assert fused.row_stride(x[:, :5]) is None
        assert fused.row_stride(x.transpose(0, 1)) is None
        assert fused.row_stride(x[0, 0]) == 10
        assert fused.row_stride(x[:1, :1].expand(4, 6, 10)) == 0

    def test_only_what_is_not_in_rows_is_copied(self):
        x = torch.empty(4, 6, 10)
        for view in (x, x[..., :7], x[:, 1], x[0, 0], x[..., :1]):
            assert fused.in_rows(view) is view
        for view in (x[:, :5], x.transpose(0, 2), x[..., :1].expand(4, 6, 10), x[..., ::2]):
            assert fused.in_rows(view).is_contiguous()


def test_on_the_meta_device_shapes_alone():
    x = torch.empty(2, 3, 65, dtype=torch.bfloat16, device="meta", requires_grad=True)
    weight = torch.empty(65, device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        y = rms_norm(x, weight, EPS, torch.float32)
        y.sum().backward()
    assert counter.get_total_flops() == 0
    assert (y.shape, y.dtype) == ((2, 3, 65), torch.float32)
    assert (x.grad.dtype, weight.grad.dtype) == (torch.bfloat16, torch.float32)


class TestArguments:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda x, w: (x, w[1:], EPS), r"weight has shape \(64,\), expected \(65,\) for x of \(3, 7, 65\)"),
            (lambda x, w: (x, w[None], EPS), r"weight has shape \(1, 65\), expected \(65,\)"),
            (lambda x, w: (x[..., :0], w[:0], EPS), r"x has shape \(3, 7, 0\), expected \(..., D\), D at least 1"),
            (lambda x, w: (x[0, 0, 0], w, EPS), r"x has shape \(\), expected"),
            (lambda x, w: (x.long(), w, EPS), r"x is torch.int64, expected one of"),
            (lambda x, w: (x, w.double(), EPS), r"weight is torch.float64 but x is torch.float32"),
            (lambda x, w: (x, w.to("meta"), EPS), r"weight is on meta, expected cpu like x"),
            (lambda x, w: (x, w, EPS, torch.int8), r"out_dtype is torch.int8, expected one of"),
            (lambda x, w: (x, w, EPS, torch.float64), r"out_dtype is torch.float64, .* which is torch.float32"),
            (lambda x, w: (x.double(), w.double(), EPS, torch.half), r"out_dtype is torch.float16, .* torch.float64"),
        ],
    )
    def test_what_does_not_fit_is_named(self, change, message):
        with pytest.raises(ValueError, match=message):
            rms_norm(*change(*make_arguments()))

    def test_auto_takes_the_reference_for_wide_rows(self, monkeypatch):
        monkeypatch.setattr(fused, "why_unavailable", lambda device, dtype: None)
        assert resolve_backend("auto", "cuda", torch.bfloat16, WIDEST) == "triton"
        assert resolve_backend("auto", "cuda", torch.bfloat16, WIDEST + 1) == "reference"
        with pytest.raises(ValueError, match=r"backend='triton' takes rows of up to 8192 numbers, not of 8193"):
            resolve_backend("triton", "cuda", torch.bfloat16, WIDEST + 1)
        with pytest.raises(ValueError, match=r"rms_norm has no backend 'none'; choose one of auto, triton, reference"):
            resolve_backend("none", "cpu", torch.float32, 8)

    def test_auto_never_takes_the_interpreter(self, monkeypatch):
        monkeypatch.setattr(triton_support, "interpreted", lambda: True)
        assert resolve_backend("auto", "cpu", torch.float32, 8) == "reference"
