"""The causal convolution: the reference against NumPy's, every backend against the reference."""

from importlib import import_module

import numpy as np
import pytest
import torch
from comparison import (
    DEVICES,
    assert_all_close,
    backends_in,
    doubled,
    named_gradients,
    restrided,
    results,
    skip_unless_available,
    weighted_sum,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqlab.ops import causal_conv1d, causal_conv1d_update
from seqlab.ops.causal_conv1d import BACKENDS, resolve_backend, torch_conv

PACKAGE = "seqlab.ops.causal_conv1d"
HALF = (torch.bfloat16, torch.float16)

every_backend = pytest.mark.parametrize("backend", backends_in(PACKAGE))
every_device = pytest.mark.parametrize("device", DEVICES)
kernel_test = pytest.mark.usefixtures("nan_memory")


def make_arguments(
    batch: int,
    length: int,
    d_inner: int,
    d_conv: int,
    *,
    dtype: torch.dtype = torch.float64,
    bias: bool = True,
    initial_state: bool = True,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Random arguments; parameters at least float32, rounded to dtype."""
    torch.manual_seed(0)
    wide = torch.float32 if dtype in HALF else dtype
    arguments = {
        "x": torch.randn(batch, length, d_inner).to(dtype),
        "weight": torch.randn(d_inner, d_conv).to(dtype).to(wide),
        "bias": torch.randn(d_inner).to(dtype).to(wide),
        "initial_state": torch.randn(batch, d_conv - 1, d_inner).to(dtype),
    }
    absent = {name for name, present in (("bias", bias), ("initial_state", initial_state)) if not present}
    return {name: tensor.to(device) for name, tensor in arguments.items() if name not in absent}


def compare(arguments: dict[str, Tensor], backend: str, **settings) -> None:
    """Hold a backend to the float64 reference in outputs, final state and every gradient."""
    dtype = arguments["x"].dtype
    skip_unless_available(PACKAGE, backend, arguments["x"].device.type, dtype)
    expected = results(causal_conv1d, doubled(arguments), backend="reference", **settings)
    assert_all_close(results(causal_conv1d, arguments, backend=backend, **settings), expected, dtype)


@pytest.mark.parametrize("d_conv", [1, 2, 4])
def test_the_reference_equals_numpy(d_conv):
    arguments = make_arguments(2, 9, 3, d_conv)
    y, state = causal_conv1d(**arguments, return_final_state=True, backend="reference")
    x, weight, bias, before = (arguments[name].numpy() for name in ("x", "weight", "bias", "initial_state"))
    window = np.concatenate([before, x], axis=1)
    for batch in range(2):
        for channel in range(3):
            expected = np.convolve(window[batch, :, channel], weight[channel, ::-1], mode="valid") + bias[channel]
            np.testing.assert_allclose(y[batch, :, channel].numpy(), expected, rtol=1e-12)
    np.testing.assert_array_equal(state.numpy(), window[:, 9:])


class TestEveryBackend:
    def test_the_order_lists_every_file(self):
        assert sorted(BACKENDS) == sorted(backends_in(PACKAGE))

    @every_device
    @every_backend
    @pytest.mark.parametrize("activation", [None, "silu"])
    @pytest.mark.parametrize("d_conv", [1, 2, 3, 4, 7])
    @pytest.mark.parametrize("length", [1, 2, 3, 7, 131])
    @kernel_test
    def test_lengths_and_taps(self, backend, device, length, d_conv, activation):
        arguments = make_arguments(2, length, 5, d_conv, dtype=torch.float32, device=device)
        compare(arguments, backend, activation=activation)

    @every_device
    @every_backend
    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("initial_state", [False, True])
    @pytest.mark.parametrize("length", [2, 17])
    @kernel_test
    def test_options(self, backend, device, bias, initial_state, length):
        arguments = make_arguments(
            2, length, 5, 4, dtype=torch.float32, bias=bias, initial_state=initial_state, device=device
        )
        compare(arguments, backend)

    @every_device
    @every_backend
    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("length", [1, 131])
    @kernel_test
    def test_dtypes(self, backend, device, dtype, length):
        compare(make_arguments(3, length, 7, 4, dtype=dtype, device=device), backend, activation="silu")

    @every_device
    @every_backend
    @pytest.mark.parametrize("layout", ["interleaved", "transposed", "expanded"])
    @kernel_test
    def test_strided_arguments(self, backend, device, layout):
        arguments = make_arguments(2, 29, 5, 4, dtype=torch.float32, device=device)
        arguments = {name: restrided(tensor, layout) for name, tensor in arguments.items()}
        compare(arguments, backend, activation="silu")

    @every_device
    @every_backend
    @pytest.mark.parametrize("cut", [1, 2, 10, 16])
    @kernel_test
    def test_a_cut_with_the_state_carried_changes_nothing(self, backend, device, cut):
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        arguments = make_arguments(2, 17, 5, 4, dtype=torch.float32, device=device)
        whole = results(causal_conv1d, arguments, backend=backend, activation="silu")
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in arguments.items()}
        state, outputs = leaves["initial_state"], []
        for part in (leaves["x"][:, :cut], leaves["x"][:, cut:]):
            y, state = causal_conv1d(
                part,
                leaves["weight"],
                leaves["bias"],
                activation="silu",
                initial_state=state,
                return_final_state=True,
                backend=backend,
            )
            outputs.append(y)
        y = torch.cat(outputs, dim=1)
        gradients = torch.autograd.grad(weighted_sum((y, state)), list(leaves.values()))
        halves = {"y": y, "state": state, **named_gradients(leaves, gradients)}
        assert_all_close(halves, whole, torch.float32)

    @every_backend
    @settings(
        max_examples=40,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(
        sizes=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 6), st.integers(1, 6)),
        bias=st.booleans(),
        initial_state=st.booleans(),
    )
    @kernel_test
    def test_any_shape(self, backend, sizes, bias, initial_state):
        arguments = make_arguments(*sizes, dtype=torch.float32, bias=bias, initial_state=initial_state)
        compare(arguments, backend, activation="silu")

    @every_backend
    def test_gradcheck(self, backend):
        skip_unless_available(PACKAGE, backend, "cpu", torch.float64)
        arguments = {name: tensor.requires_grad_() for name, tensor in make_arguments(2, 5, 3, 4).items()}

        def conv(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            named = dict(zip(arguments, tensors, strict=True))
            return causal_conv1d(**named, activation="silu", return_final_state=True, backend=backend)

        assert torch.autograd.gradcheck(conv, tuple(arguments.values()))

    @every_device
    @every_backend
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("d_conv", [1, 2, 4])
    @pytest.mark.parametrize("activation", [None, "silu"])
    @kernel_test
    def test_steps_follow_the_sequence(self, backend, device, dtype, d_conv, activation):
        skip_unless_available(PACKAGE, backend, device, dtype)
        arguments = make_arguments(2, 9, 5, d_conv, dtype=dtype, device=device)
        expected_y, expected_state = causal_conv1d(
            **arguments, activation=activation, return_final_state=True, backend=backend
        )
        state, outputs = arguments["initial_state"], []
        before = state.clone()
        for x in arguments["x"].unbind(1):
            y, state = causal_conv1d_update(state, x, arguments["weight"], arguments["bias"], activation=activation)
            assert y.dtype == state.dtype == dtype
            outputs.append(y)
        assert torch.equal(before, arguments["initial_state"])
        assert torch.equal(state, expected_state)
        assert_all_close({"y": torch.stack(outputs, dim=1)}, {"y": expected_y}, dtype)

    @every_backend
    def test_autocast_changes_nothing(self, backend):
        skip_unless_available(PACKAGE, backend, "cpu", torch.float32)
        arguments = make_arguments(2, 29, 5, 4, dtype=torch.float32)
        expected = results(causal_conv1d, arguments, backend=backend, activation="silu")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = results(causal_conv1d, arguments, backend=backend, activation="silu")
        for name in expected:
            assert torch.equal(actual[name], expected[name]), name

    @every_backend
    def test_the_state_keeps_nothing_else_alive(self, backend):
        arguments = make_arguments(2, 100, 5, 4)
        _, state = causal_conv1d(**arguments, return_final_state=True, backend=backend)
        assert state.untyped_storage().nbytes() == state.numel() * state.element_size()

    @every_backend
    def test_compiles(self, backend):
        skip_unless_available(PACKAGE, backend, "cpu", torch.float32)
        arguments = make_arguments(2, 5, 3, 4, dtype=torch.float32)
        expected = results(causal_conv1d, arguments, backend=backend)

        @torch.compile(backend="aot_eager", fullgraph=True)
        def doubled_conv(arguments):
            return causal_conv1d(**arguments, backend=backend) * 2

        assert_all_close({"y": doubled_conv(arguments) / 2}, {"y": expected["y"]}, torch.float32)


class TestContract:
    @pytest.mark.parametrize(
        ("name", "shape", "expected"),
        [
            ("x", (2, 0, 3), r"\(batch, length, d_inner\) = \(at least 1, at least 1, at least 1\)"),
            ("x", (2, 3), r"\(batch, length, d_inner\) = \(at least 1, at least 1, at least 1\)"),
            ("weight", (4, 3), r"\(d_inner, d_conv\) = \(3, at least 1\)"),
            ("weight", (3, 0), r"\(d_inner, d_conv\) = \(3, at least 1\)"),
            ("bias", (4,), r"\(d_inner\) = \(3\)"),
            ("initial_state", (2, 4, 3), r"\(batch, d_conv - 1, d_inner\) = \(2, 3, 3\)"),
        ],
    )
    def test_a_wrong_shape_is_named(self, name, shape, expected):
        arguments = make_arguments(2, 5, 3, 4) | {name: torch.zeros(shape)}
        spelled = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        with pytest.raises(ValueError, match=rf"^{name} has shape \({spelled}\), expected {expected}$"):
            causal_conv1d(**arguments)

    def test_an_unknown_activation_is_refused(self):
        arguments = make_arguments(2, 5, 3, 4)
        with pytest.raises(ValueError, match=r"^activation is 'relu', expected None or 'silu'$"):
            causal_conv1d(**arguments, activation="relu")
        state, x = arguments["initial_state"], arguments["x"][:, 0]
        with pytest.raises(ValueError, match=r"^activation is 'relu', expected None or 'silu'$"):
            causal_conv1d_update(state, x, arguments["weight"], activation="relu")

    def test_every_tensor_or_none_is_float64(self):
        arguments = make_arguments(2, 5, 3, 4)
        with pytest.raises(ValueError, match=r"^weight is torch.float32 but x is torch.float64: expected"):
            causal_conv1d(**arguments | {"weight": arguments["weight"].float()})

    def test_a_step_holds_the_same_contract(self):
        weight = torch.zeros(3, 4)
        with pytest.raises(ValueError, match=r"^state has shape \(2, 4, 3\), expected .* = \(2, 3, 3\)$"):
            causal_conv1d_update(torch.zeros(2, 4, 3), torch.zeros(2, 3), weight)
        with pytest.raises(ValueError, match=r"^x has shape \(2, 5, 3\), expected \(batch, d_inner\) = "):
            causal_conv1d_update(torch.zeros(2, 3, 3), torch.zeros(2, 5, 3), weight)


class TestBackendChoice:
    def test_auto_takes_the_first_that_can_run(self, monkeypatch):
        assert resolve_backend("auto", "cpu", torch.float32) == "torch_conv"
        monkeypatch.setattr(torch_conv, "why_unavailable", lambda device, dtype: "no day for it")
        assert resolve_backend("auto", "cpu", torch.float32) == "reference"

    def test_an_unknown_name_lists_the_names(self):
        with pytest.raises(ValueError, match=r"causal_conv1d has no backend 'fast'; choose one of auto, .*reference"):
            causal_conv1d(**make_arguments(1, 1, 1, 1), backend="fast")

    def test_a_backend_that_cannot_run_says_why(self, monkeypatch):
        monkeypatch.setattr(torch_conv, "why_unavailable", lambda device, dtype: "not today")
        with pytest.raises(ValueError, match=r"backend='torch_conv' cannot run on cpu .*\(torch_conv: not today\)"):
            causal_conv1d(**make_arguments(1, 1, 1, 1), backend="torch_conv")

    def test_the_function_and_its_package_share_a_name(self):
        assert import_module("seqlab.ops").causal_conv1d is import_module(PACKAGE).causal_conv1d
