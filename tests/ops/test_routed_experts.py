"""Routed experts: every backend against every expert on every token, written out token by token in float64."""

import pytest
import torch
import torch.nn.functional as F
from comparison import (
    DEVICES,
    assert_all_close,
    assert_replays,
    assert_same_bits,
    named_gradients,
    nothing_may_wait,
    skip_unless_available,
    weighted_sum,
)
from torch import Tensor

from seqlab.ops import routed_experts, triton_support
from seqlab.ops.routed_experts import BACKENDS, resolve_backend
from seqlab.ops.routed_experts.groups import sort_by_expert
from seqlab.ops.routed_experts.operator import FUSED

PACKAGE = "seqlab.ops.routed_experts"
every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_fused_backend = pytest.mark.parametrize("backend", FUSED)
every_device = pytest.mark.parametrize("device", DEVICES)
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def make_arguments(
    tokens: int = 37,
    d_model: int = 6,
    d_hidden: int = 10,
    n_experts: int = 5,
    top_k: int = 2,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Random ones, of which all dtypes and devices get the same; each token's experts differ."""
    torch.manual_seed(0)
    arguments = {
        "x": torch.randn(tokens, d_model),
        "in_weight": torch.randn(n_experts, d_model, 2 * d_hidden) / d_model**0.5,
        "out_weight": torch.randn(n_experts, d_hidden, d_model) / d_hidden**0.5,
        "gates": torch.rand(tokens, top_k).bfloat16(),
    }
    experts = torch.rand(tokens, n_experts).topk(top_k).indices
    arguments = {name: tensor.bfloat16().to(device, dtype) for name, tensor in arguments.items()}
    return arguments | {"experts": experts.to(device)}


def results(operation, arguments: dict[str, Tensor], **settings) -> dict[str, Tensor]:
    """y and the gradient of a random combination of it by every argument that has one."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in arguments.items() if t.is_floating_point()}
    y = operation(**leaves, experts=arguments["experts"], **settings)
    gradients = torch.autograd.grad(weighted_sum((y,)), list(leaves.values()))
    for leaf, gradient in zip(leaves.values(), gradients, strict=True):
        assert gradient.dtype == leaf.dtype
    return {"y": y.detach(), **named_gradients(leaves, gradients)}


def token_by_token(x: Tensor, in_weight: Tensor, out_weight: Tensor, gates: Tensor, experts: Tensor) -> Tensor:
    """The equation as it stands in the operation's docstring."""
    rows = []
    for t in range(len(x)):
        total = torch.zeros_like(x[t])
        for e, gate in zip(experts[t].tolist(), gates[t], strict=True):
            a, b = (x[t] @ in_weight[e]).chunk(2)
            total = total + gate * ((F.silu(a) * b) @ out_weight[e])
        rows.append(total)
    return torch.stack(rows)


def expected_of(arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    exact = {name: t.double() if t.is_floating_point() else t for name, t in arguments.items()}
    return results(token_by_token, exact)


def ready(backend: str, device: str, dtype: torch.dtype) -> None:
    skip_unless_available(PACKAGE, backend, device, dtype)
    if (backend, device, dtype) == ("triton", "cpu", torch.bfloat16):
        pytest.skip("Triton's interpreter multiplies bfloat16 matrices as if they were integers")


class TestEveryBackend:
    @every_device
    @every_backend
    @pytest.mark.parametrize(
        ("tokens", "n_experts", "top_k"), [(37, 5, 2), (1, 8, 2), (3, 1, 1), (29, 3, 3), (18, 7, 1)]
    )
    def test_values_and_gradients(self, backend, device, tokens, n_experts, top_k):
        ready(backend, device, torch.float32)
        arguments = make_arguments(tokens, n_experts=n_experts, top_k=top_k, device=device)
        actual = results(routed_experts, arguments, backend=backend)
        assert_all_close(actual, expected_of(arguments), torch.float32)

    @every_device
    @every_backend
    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
    def test_dtypes(self, backend, device, dtype):
        ready(backend, device, dtype)
        arguments = make_arguments(dtype=dtype, device=device)
        actual = results(routed_experts, arguments, backend=backend)
        assert actual["y"].dtype == dtype
        assert_all_close(actual, expected_of(arguments), dtype)

    @every_device
    @every_backend
    def test_all_tokens_to_one_expert(self, backend, device, nan_memory):
        """No token is dropped, and the gradient of the experts that nobody visits is zero everywhere."""
        ready(backend, device, torch.float32)
        arguments = make_arguments(70, top_k=1, device=device)
        arguments["experts"] = torch.full_like(arguments["experts"], 3)
        actual = results(routed_experts, arguments, backend=backend)
        assert_all_close(actual, expected_of(arguments), torch.float32)
        assert actual["y"].abs().sum(dim=1).min() > 0
        visited = actual["din_weight"].flatten(1).any(dim=1).tolist()
        assert visited == [False, False, False, True, False]

    @every_device
    @every_backend
    def test_wider_than_a_tile(self, backend, device, nan_memory):
        """More than one block of rows, columns and summands, none of them full."""
        ready(backend, device, torch.float32)
        arguments = make_arguments(150, 70, 75, 2, 1, device=device)
        actual = results(routed_experts, arguments, backend=backend)
        assert_all_close(actual, expected_of(arguments), torch.float32)

    @every_backend
    def test_strided_arguments(self, backend):
        ready(backend, "cpu", torch.float32)
        arguments = make_arguments()
        expected = results(routed_experts, arguments, backend=backend)
        for name in ("x", "gates", "experts", "in_weight"):
            arguments[name] = arguments[name].mT.contiguous().mT
        assert_all_close(results(routed_experts, arguments, backend=backend), expected, torch.float32)

    @every_backend
    def test_autocast_takes_its_dtype(self, backend):
        ready(backend, "cpu", torch.bfloat16)
        arguments = make_arguments()
        with torch.autocast("cpu", torch.bfloat16):
            actual = results(routed_experts, arguments, backend=backend)
        assert actual["y"].dtype == torch.bfloat16
        assert_all_close(actual, expected_of(arguments), torch.bfloat16)

    @pytest.mark.parametrize("backend", ["grouped", "reference"])
    def test_gradcheck(self, backend):
        arguments = make_arguments(7, 3, 4, 3, dtype=torch.float64)
        experts = arguments.pop("experts")
        leaves = [tensor.requires_grad_() for tensor in arguments.values()]

        def mixture(x: Tensor, in_weight: Tensor, out_weight: Tensor, gates: Tensor) -> Tensor:
            return routed_experts(x, in_weight, out_weight, experts, gates, backend=backend)

        assert torch.autograd.gradcheck(mixture, leaves)


class TestOperator:
    @every_device
    @every_fused_backend
    def test_opcheck(self, backend, device):
        ready(backend, device, torch.float32)
        arguments = make_arguments(5, n_experts=3, device=device)
        experts, gates = arguments.pop("experts"), arguments.pop("gates")
        for tensor in (*arguments.values(), gates):
            tensor.requires_grad_()
        torch.library.opcheck(torch.ops.seqlab.routed_experts.default, (*arguments.values(), experts, gates, backend))

    @every_device
    @every_fused_backend
    def test_compiles_without_a_graph_break(self, backend, device):
        ready(backend, device, torch.float32)
        torch.compiler.reset()
        compiled = torch.compile(routed_experts, backend="aot_eager", fullgraph=True)
        arguments = make_arguments(5, n_experts=3, device=device)
        expected = results(routed_experts, arguments, backend=backend)
        assert_all_close(results(compiled, arguments, backend=backend), expected, torch.float32)

    @every_device
    @every_fused_backend
    def test_results_are_the_same_bit_by_bit(self, backend, device):
        ready(backend, device, torch.float32)
        arguments = make_arguments(300 if device == "cuda" else 40, device=device)
        first, second = (results(routed_experts, arguments, backend=backend) for _ in range(2))
        assert_same_bits(first, second)

    def test_rows_are_sorted_stably(self):
        experts = torch.tensor([[2, 0], [0, 3], [2, 3]])
        groups = sort_by_expert(experts, 5)
        assert groups.order.tolist() == [1, 2, 0, 4, 3, 5]
        assert groups.inverse.tolist() == [[2, 0], [1, 4], [3, 5]]
        assert groups.ends.tolist() == [2, 2, 4, 6, 6]
        assert groups.tokens.tolist() == [0, 1, 0, 2, 1, 2]

    def test_more_experts_than_a_byte_counts(self):
        experts = torch.tensor([[299], [5], [256]])
        groups = sort_by_expert(experts, 300)
        assert groups.order.tolist() == [1, 2, 0]
        assert groups.ends[[4, 5, 255, 256, 298, 299]].tolist() == [0, 1, 1, 2, 2, 3]


class TestOnTheGPU:
    pytestmark = on_gpu

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_nothing_waits_for_the_device(self, dtype):
        arguments = make_arguments(300, 64, 88, 8, dtype=dtype, device="cuda")
        results(routed_experts, arguments, backend="triton")
        with nothing_may_wait():
            y = routed_experts(**{n: t.requires_grad_(t.is_floating_point()) for n, t in arguments.items()})
            y.backward(y.detach())

    @pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream")  # of the leaves, used on three streams here
    def test_cuda_graph_capture(self):
        arguments = make_arguments(300, 64, 88, 8, dtype=torch.bfloat16, device="cuda")
        experts = arguments.pop("experts")
        static = {name: tensor.clone().requires_grad_() for name, tensor in arguments.items()}

        def step() -> list[Tensor]:
            y = routed_experts(**static, experts=experts)
            return [y, *torch.autograd.grad(y, list(static.values()), y.detach())]

        assert_replays(step, static.values())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_at_the_size_of_a_model(self, dtype):
        arguments = make_arguments(4096, 256, 688, 8, dtype=dtype, device="cuda")
        exact = {name: t.double() if t.is_floating_point() else t for name, t in arguments.items()}
        expected = results(routed_experts, exact, backend="reference")
        assert_all_close(results(routed_experts, arguments, backend="triton"), expected, dtype)


class TestArguments:
    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            ("x", lambda t: t[:, :-1], r"out_weight has shape .* expected \(n_experts, d_hidden, d_model\)"),
            ("in_weight", lambda t: t[..., :-1], r"in_weight has shape"),
            ("gates", lambda t: t[:, :1], r"gates has shape|experts has shape"),
            ("gates", lambda t: t.double(), r"gates is torch.float64 but x is torch.float32"),
            ("experts", lambda t: t.int(), r"experts is torch.int32 on cpu, expected torch.int64"),
        ],
    )
    def test_what_does_not_fit_is_named(self, name, change, message):
        arguments = make_arguments()
        arguments[name] = change(arguments[name])
        with pytest.raises(ValueError, match=message):
            routed_experts(**arguments)

    def test_auto_never_takes_the_interpreter(self, monkeypatch):
        monkeypatch.setattr(triton_support, "interpreted", lambda: True)
        assert resolve_backend("auto", "cpu", torch.float32) == "grouped"
