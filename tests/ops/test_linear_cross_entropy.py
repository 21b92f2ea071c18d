"""Cross-entropy of a linear map in chunks: against PyTorch's in float64."""

import pytest
import torch
import torch.nn.functional as F
from comparison import (
    DEVICES,
    HALF,
    assert_all_close,
    backends_in,
    skip_unless_available,
)
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from seqlab.ops import linear_cross_entropy
from seqlab.ops.cross_entropy import triton
from seqlab.ops.linear_cross_entropy import BACKENDS, chunked, pays, resolve_backend
from seqlab.ops.linear_cross_entropy.chunked import chunk_rows

PACKAGE = "seqlab.ops.linear_cross_entropy"
IGNORED = -100
CPU, GPU = torch.device("cpu"), torch.device("cuda")
every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_device = pytest.mark.parametrize("device", DEVICES)
half = pytest.mark.parametrize("dtype", HALF, ids=str)
Arguments = dict[str, Tensor | None]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """Four rows each, whatever the vocabulary."""
    set_rows(monkeypatch, 4)


def set_rows(monkeypatch, rows: int) -> None:
    monkeypatch.setattr(chunked, "chunk_rows", lambda *_: rows)


def make_arguments(
    shape: tuple[int, ...] = (3, 7),
    width: int = 5,
    vocabulary: int = 65,
    *,
    bias: bool = True,
    softmaxes: int = 0,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Arguments:
    """Arguments of which all dtypes and devices get the same numbers; parameters are in float32 at least."""
    torch.manual_seed(0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def draw(*sizes: int, dtype: torch.dtype = wide) -> Tensor:
        return torch.randn(sizes).bfloat16().to(device, dtype)

    targets = torch.randint(vocabulary, shape)
    targets.view(-1)[1::5] = IGNORED
    mixture = {"log_prior": draw(*shape, softmaxes).log_softmax(-1)} if softmaxes else {}
    return mixture | {
        "x": draw(*shape, *([softmaxes] if softmaxes else []), width, dtype=dtype),
        "weight": draw(vocabulary, width),
        "bias": draw(vocabulary) if bias else None,
        "targets": targets.to(device),
        "scale": draw(*shape).abs(),
    }


def results(operation, arguments: Arguments, factor: float = 3.0, **settings) -> dict[str, Tensor]:
    """The loss, and its gradients times a factor."""
    names = [name for name in ("x", "weight", "bias", "log_prior") if arguments.get(name) is not None]
    leaves = {name: arguments[name].detach().clone().requires_grad_() for name in names}
    loss = operation(**arguments | leaves, **settings)
    gradients = torch.autograd.grad(loss * factor, list(leaves.values()))
    assert loss.shape == ()
    for name, gradient in zip(names, gradients, strict=True):
        assert (gradient.dtype, gradient.shape) == (arguments[name].dtype, arguments[name].shape)
    return {"loss": loss.detach()} | {f"d_{name}": d for name, d in zip(names, gradients, strict=True)}


def formula(x, weight, bias, targets, scale, log_prior=None, ignore_index=IGNORED, label_smoothing=0.0) -> Tensor:
    if log_prior is not None:
        p = torch.softmax(F.linear(x, weight, bias), -1)  # (..., K, V)
        p = (p * log_prior.exp()[..., None]).sum(-2)
        losses = -p.gather(-1, targets.clamp(min=0)[..., None])[..., 0].log()
        return (losses * scale)[targets != ignore_index].sum()
    logits = F.linear(x, weight.to(x.dtype), bias if bias is None else bias.to(x.dtype)).flatten(0, -2)
    how = {"ignore_index": ignore_index, "label_smoothing": label_smoothing, "reduction": "none"}
    return (F.cross_entropy(logits, targets.flatten(), **how) * scale.flatten()).sum()


def doubled(arguments: Arguments) -> Arguments:
    return {k: v.double() if v is not None and v.is_floating_point() else v for k, v in arguments.items()}


def hold(backend: str, arguments: Arguments, factor: float = 3.0, **settings) -> dict[str, Tensor]:
    """Compare a backend with float64; returns what it gave."""
    x = arguments["x"]
    skip_unless_available(PACKAGE, backend, x.device.type, x.dtype)
    actual = results(linear_cross_entropy, arguments, factor, backend=backend, **settings)
    assert actual["loss"].dtype == (torch.float64 if x.dtype == torch.float64 else torch.float32)
    assert_all_close(actual, results(formula, doubled(arguments), factor, **settings), x.dtype)
    return actual


class TestEveryBackend:
    def test_the_order_lists_every_file(self):
        assert sorted(BACKENDS) == sorted(backends_in(PACKAGE))

    @every_device
    @every_backend
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("vocabulary", [2, 5, 16, 65, 96])
    def test_values_and_gradients(self, backend, device, vocabulary, bias, nan_memory):
        """Vocabularies that fill rows of 16 and that do not."""
        hold(backend, make_arguments(vocabulary=vocabulary, bias=bias, device=device))

    @every_device
    @every_backend
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
    def test_smoothed_labels(self, backend, device, dtype, bias):
        hold(backend, make_arguments(dtype=dtype, bias=bias, device=device), label_smoothing=0.2)

    @every_device
    @every_backend
    @pytest.mark.parametrize("rows", [1, 4, 8, 21, 100])
    def test_chunks_of_any_size(self, backend, device, rows, monkeypatch, nan_memory):
        """The last one full or not, a single one, of 21 rows."""
        set_rows(monkeypatch, rows)
        hold(backend, make_arguments(device=device))

    @every_device
    @every_backend
    def test_no_rows(self, backend, device):
        actual = results(linear_cross_entropy, make_arguments((3, 0), device=device), backend=backend)
        assert all(not tensor.any() for tensor in actual.values())

    @every_device
    @every_backend
    def test_nothing_to_predict(self, backend, device, nan_memory):
        arguments = make_arguments(device=device)
        arguments["targets"].fill_(IGNORED)
        assert all(not tensor.any() for tensor in hold(backend, arguments).values())

    @every_device
    @every_backend
    def test_another_index_is_ignored(self, backend, device):
        arguments = make_arguments(device=device)
        hold(backend, arguments | {"targets": arguments["targets"].clamp(min=3)}, ignore_index=3)

    @every_device
    @every_backend
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
    def test_scales_of_zero_and_one_scale_for_all(self, backend, device, dtype):
        arguments = make_arguments(device=device, dtype=dtype)
        hold(backend, arguments | {"scale": torch.zeros((), device=device).expand(3, 7)})
        hold(backend, arguments | {"scale": torch.tensor(0.3, device=device).expand(3, 7)})

    @every_device
    @every_backend
    @pytest.mark.parametrize("dtype", [torch.float64, *HALF], ids=str)
    def test_dtypes(self, backend, device, dtype):
        hold(backend, make_arguments(dtype=dtype, device=device))

    @every_device
    @every_backend
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF], ids=str)
    @pytest.mark.parametrize("softmaxes", [1, 3, 6])
    def test_a_mixture_of_softmaxes(self, backend, device, softmaxes, dtype, nan_memory):
        """Of as many softmaxes as fit into a chunk, of fewer and more, by the sum of probabilities as it is written."""
        hold(backend, make_arguments(softmaxes=softmaxes, dtype=dtype, device=device))

    @every_device
    @every_backend
    def test_other_layouts(self, backend, device):
        arguments = make_arguments((7, 3), device=device)
        turned = {name: arguments[name].transpose(0, 1) for name in ("x", "targets", "scale")}
        hold(backend, arguments | turned | {"weight": arguments["weight"].t().contiguous().t()})

    @every_device
    @half
    def test_autocast_as_of_a_linear_map(self, device, dtype):
        """The gradients of parameters are in their dtype, and in chunks rounded no more than its own."""
        arguments = make_arguments((64, 9), 40, 130, device=device)
        expected = results(formula, doubled(arguments))
        with torch.autocast(device, dtype):
            found = {name: results(linear_cross_entropy, arguments, backend=name) for name in BACKENDS}
        for actual in found.values():
            assert_all_close(actual, expected, dtype)

    def test_gradcheck(self):
        arguments = make_arguments((2, 3), 4, 5, dtype=torch.float64)
        leaves = [arguments[name].requires_grad_() for name in ("x", "weight", "bias")]
        rest = arguments["targets"], arguments["scale"]
        assert torch.autograd.gradcheck(lambda *given: linear_cross_entropy(*given, *rest, backend="reference"), leaves)

    def test_the_labels_of_a_mixture_are_not_smoothed(self):
        with pytest.raises(ValueError, match=r"label_smoothing is 0.1, expected 0 with log_prior"):
            linear_cross_entropy(**make_arguments(softmaxes=2), label_smoothing=0.1)


class TestChunked:
    @every_device
    @pytest.mark.parametrize("wanted", [("x",), ("weight",), ("bias",), ("x", "bias"), ("weight", "bias")])
    def test_only_gradients_that_are_wanted(self, device, wanted):
        arguments = make_arguments(device=device)
        expected = results(linear_cross_entropy, arguments, backend="chunked")
        leaves = {name: arguments[name].clone().requires_grad_() for name in wanted}
        loss = linear_cross_entropy(**arguments | leaves, backend="chunked")
        found = torch.autograd.grad(loss * 3.0, list(leaves.values()))
        for name, gradient in zip(wanted, found, strict=True):
            torch.testing.assert_close(gradient, expected[f"d_{name}"])

    @pytest.mark.parametrize("vocabulary", [3, 65, 112])
    def test_by_the_kernels_of_cross_entropy(self, vocabulary, monkeypatch, nan_memory):
        """As on a GPU, in Triton's interpreter."""
        skip_unless_available("seqlab.ops.cross_entropy", "triton", "cpu", torch.float32)
        monkeypatch.setattr(chunked, "resolve_backend", lambda *_: "triton")
        arguments = make_arguments(vocabulary=vocabulary)
        hold("chunked", arguments)
        hold("chunked", arguments | {"scale": torch.tensor(0.3).expand(3, 7)})
        hold("chunked", make_arguments(vocabulary=vocabulary, softmaxes=3))

    @every_device
    @pytest.mark.parametrize("gap", [0, 1, 13])
    @pytest.mark.parametrize("vocabulary", [3, 65, 128, 1043])
    def test_those_kernels_write_the_gradient_over_the_logits(self, device, vocabulary, gap):
        """The same bits, and nothing between two rows."""
        skip_unless_available("seqlab.ops.cross_entropy", "triton", device, torch.float32)
        wide = torch.randn(70, vocabulary + gap).to(device)
        logits, beside = wide.split([vocabulary, gap], dim=1)
        targets = torch.randint(vocabulary, (70,)).to(device)
        targets[::3] = IGNORED
        g, before = torch.randn(70).to(device), beside.clone()
        operands = g, logits, targets, triton.forward(logits, targets, IGNORED)[1], IGNORED
        expected = triton.backward(*operands)
        assert triton.backward(*operands, in_place=True) is logits
        assert logits.equal(expected)
        assert beside.equal(before)

    def test_none_without_autograd(self, monkeypatch):
        arguments = make_arguments()
        expected = linear_cross_entropy(**arguments, backend="reference")
        monkeypatch.delattr(chunked._Head, "add")
        arguments["weight"].requires_grad_()
        with torch.no_grad():
            torch.testing.assert_close(linear_cross_entropy(**arguments, backend="chunked"), expected)

    def test_a_weight_changed_between_two_calls(self):
        arguments = make_arguments()
        hold("chunked", arguments)
        arguments["weight"].mul_(-2)
        hold("chunked", arguments)

    def test_the_weight_may_be_the_embedding_too(self):
        arguments = make_arguments()
        weight, tokens = arguments["weight"].requires_grad_(), torch.randint(65, (3, 7))
        rest = {name: arguments[name] for name in ("bias", "targets", "scale")}
        found = []
        for operation in (lambda **given: linear_cross_entropy(**given, backend="chunked"), formula):
            (gradient,) = torch.autograd.grad(operation(x=F.embedding(tokens, weight), weight=weight, **rest), weight)
            found.append(gradient)
        torch.testing.assert_close(*found)

    @every_device
    @half
    def test_the_weights_gradient_is_not_summed_in_halves(self, device, dtype):
        """Of 4,096 rows, one like the other, in chunks of four: a sum in bfloat16 stops growing at 256."""
        arguments = make_arguments((4096,), 8, 6, dtype=dtype, device=device)
        arguments |= {"x": arguments["x"][:1].expand(4096, 8), "targets": torch.ones_like(arguments["targets"])}
        assert_all_close(
            results(linear_cross_entropy, arguments, backend="chunked"),
            results(formula, doubled(arguments)),
            dtype,
            tolerance=6e-3 if dtype == torch.bfloat16 else 1e-3,
        )

    @every_device
    @pytest.mark.parametrize("factor", [1.0, 2.0**16, 2.0**24])
    def test_what_a_gradient_scaler_multiplies_is_not_lost_in_float16(self, device, factor):
        """A mean over 2^20 positions: a gradient by a logit is 1e-9, less than float16's smallest number."""
        arguments = make_arguments((40,), 8, 1000, dtype=torch.float16, device=device)
        arguments |= {"weight": arguments["weight"] / 16, "scale": arguments["scale"] / 2**20}
        expected = results(formula, doubled(arguments), factor)
        actual = results(linear_cross_entropy, arguments, factor, backend="chunked")
        if factor == 1:  # x is in float16, and its gradient too
            actual.pop("d_x"), expected.pop("d_x")
        assert_all_close(actual, expected, torch.float16, tolerance=2e-3)

    def test_a_factor_that_is_not_finite_reaches_every_gradient(self):
        arguments = make_arguments(dtype=torch.float16)
        actual = results(linear_cross_entropy, arguments, factor=float("nan"), backend="chunked")
        assert all(actual[name].isnan().all() for name in ("d_x", "d_weight", "d_bias"))

    def test_one_backward_pass(self):
        arguments = make_arguments()
        loss = linear_cross_entropy(**arguments | {"x": arguments["x"].requires_grad_()}, backend="chunked")
        loss.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="goes through the backward pass once"):
            loss.backward()

    def test_no_second_derivative(self):
        arguments = make_arguments()
        x, weight = arguments["x"].requires_grad_(), arguments["weight"].requires_grad_()
        for wanted in (x, weight):
            loss = linear_cross_entropy(**arguments, backend="chunked")
            (gradient,) = torch.autograd.grad(loss, wanted, create_graph=True)
            with pytest.raises(NotImplementedError, match="linear_cross_entropy backend='chunked' has no second"):
                gradient.sum().backward()

    def test_flops(self):
        """One product forward and two backward."""
        arguments = make_arguments(vocabulary=64)
        with FlopCounterMode(display=False) as counter:
            results(linear_cross_entropy, arguments, backend="chunked")
        assert counter.get_total_flops() == 3 * 2 * 21 * 64 * 5


class TestChunkRows:
    @pytest.mark.parametrize(("rows", "most", "size"), [(16_384, 13_312, 8192), (13_313, 13_312, 6784), (7, 640, 7)])
    def test_chunks_are_of_about_one_size(self, rows, most, size):
        assert chunked._even(rows, most) == size

    @pytest.mark.parametrize(
        ("vocabulary", "width", "rows"),
        [(10_000, 256, 6656), (50_277, 256, 1280), (50_277, 4096, 8192), (2**26, 1, 2)],
    )
    def test_of_128_mib_or_as_much_as_the_weights_gradient(self, vocabulary, width, rows):
        assert chunk_rows(vocabulary, width, torch.bfloat16) == rows

    @pytest.mark.parametrize(
        ("rows", "vocabulary", "width", "dtype", "device", "expected"),
        [
            (16_384, 10_000, 768, torch.bfloat16, GPU, True),
            (8192, 65, 128, torch.bfloat16, GPU, False),  # Tiny Shakespeare
            (4096, 10_000, 128, torch.float32, CPU, False),
            (16_384, 10_000, 768, torch.bfloat16, torch.device("meta"), False),
        ],
    )
    def test_where_it_pays(self, monkeypatch, rows, vocabulary, width, dtype, device, expected):
        monkeypatch.undo()
        assert pays(rows, vocabulary, width, dtype, device) is expected


class TestArguments:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"x": torch.ones(3, 7, 4)}, r"weight has shape \(65, 5\), expected \(V, 4\) for x of \(3, 7, 4\)"),
            ({"x": torch.ones(())}, r"x has shape \(\), expected \(..., D\)"),
            ({"bias": torch.ones(64)}, r"bias has shape \(64,\), expected \(65,\) for weight of \(65, 5\)"),
            ({"targets": torch.ones(3, 6).long()}, r"targets has shape \(3, 6\), expected \(3, 7\)"),
            ({"targets": torch.ones(3, 7)}, r"targets is torch.float32 on cpu, expected torch.int64 on cpu"),
            ({"scale": torch.ones(7)}, r"scale has shape \(7,\), expected \(3, 7\)"),
            ({"scale": torch.ones(3, 7).half()}, r"scale is torch.float16, expected torch.float32"),
            ({"weight": torch.ones(65, 5).double()}, r"weight is torch.float64 but x is torch.float32"),
            ({"backend": "triton"}, r"linear_cross_entropy has no backend 'triton'; choose one of auto, chunked, ref"),
        ],
    )
    def test_what_does_not_fit_is_named(self, change, message):
        with pytest.raises(ValueError, match=message):
            linear_cross_entropy(**make_arguments() | change)

    def test_auto(self):
        assert resolve_backend("auto", "cuda", torch.bfloat16) == "chunked"
        assert resolve_backend("auto", "meta", torch.bfloat16) == "reference"

    def test_a_compiler_gets_the_reference(self):
        torch.compiler.reset()
        compiled = torch.compile(linear_cross_entropy, backend="aot_eager", fullgraph=True)
        arguments = make_arguments()
        assert_all_close(results(compiled, arguments), results(linear_cross_entropy, arguments), torch.float32)
