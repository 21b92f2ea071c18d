"""The causal convolution: the reference against NumPy's, every backend against the reference."""

import numpy as np
import pytest
import torch
from comparison import (
    DEVICES,
    assert_all_close,
    backends_in,
    named_gradients,
    numbered,
    restrided,
    results,
    skip_unless_available,
    weighted_sum,
)
from conv_cases import PACKAGE, compare, every_backend, every_device, kernel_test, make_arguments
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqlab.ops import causal_conv1d, causal_conv1d_update
from seqlab.ops.causal_conv1d import BACKENDS


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
        sizes=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(3, 6), st.integers(1, 6)),
        bias=st.booleans(),
        initial_state=st.booleans(),
    )
    @example(sizes=(2, 9, 1, 4), bias=True, initial_state=True)
    @example(sizes=(2, 9, 2, 3), bias=False, initial_state=True)
    @kernel_test
    def test_any_shape(self, backend, sizes, bias, initial_state):
        """From 3 channels on: a gradient of one number may be a sum that cancels, too small for float32."""
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
        arguments = make_arguments(2, 100, 5, 4, dtype=torch.float32)
        _, state = causal_conv1d(**arguments, return_final_state=True, backend=backend)
        assert state.untyped_storage().nbytes() == state.numel() * state.element_size()

    @every_device
    @every_backend
    @kernel_test
    def test_a_chunk_of_a_wider_tensor(self, backend, device):
        arguments = make_arguments(2, 29, 16, 4, dtype=torch.float32, device=device)
        x = arguments["x"]
        arguments["x"] = torch.cat([x, x], dim=2).chunk(2, dim=2)[1]
        compare(arguments, backend, activation="silu")

    @every_device
    @every_backend
    @kernel_test
    def test_channels_beyond_one_tile(self, backend, device):
        compare(make_arguments(1, 20, 150, 4, dtype=torch.float32, device=device), backend, activation="silu")

    @every_device
    @every_backend
    @pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # of Triton's interpreter
    @kernel_test
    def test_the_activation_far_out(self, backend, device):
        arguments = make_arguments(2, 29, 5, 4, dtype=torch.float32, device=device)
        compare(arguments | {"x": 100 * arguments["x"]}, backend, activation="silu")
        far = torch.full((1, 5, 3), -1e30, device=device)
        assert not causal_conv1d(far, torch.ones(3, 4, device=device), activation="silu", backend=backend).any()

    @every_backend
    @pytest.mark.parametrize("packed", [False, True])
    def test_compiles(self, backend, packed):
        skip_unless_available(PACKAGE, backend, "cpu", torch.float32)
        arguments = make_arguments(2, 9, 3, 4, dtype=torch.float32)
        settings = {"backend": backend, "activation": "silu", "seq_idx": numbered([{4}, {2, 5}], 9) if packed else None}
        compiled = torch.compile(causal_conv1d, backend="aot_eager", fullgraph=True)
        expected = results(causal_conv1d, arguments, **settings)
        assert_all_close(results(compiled, arguments, **settings), expected, torch.float32)

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("backend", backends_in(PACKAGE))
    def test_parameters_in_float32_get_a_gradient_summed_in_float32(self, backend, dtype, device):
        skip_unless_available(PACKAGE, backend, device, dtype)
        if backend == "triton" and device == "cpu" and dtype == torch.bfloat16:
            pytest.skip("the interpreter rounds bfloat16 wrongly")
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, 2048, 3, generator=generator).to(device, dtype)
        dy = torch.randn(2, 2048, 3, generator=generator).to(device, dtype)
        weight, bias = torch.randn(3, 4, generator=generator).to(device), torch.zeros(3, device=device)

        def gradients(x: Tensor, weight: Tensor, bias: Tensor, backend: str) -> dict[str, Tensor]:
            leaves = {"weight": weight.requires_grad_(), "bias": bias.requires_grad_()}
            y = causal_conv1d(x, **leaves, backend=backend)
            return dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), dy.to(y.dtype)), strict=True))

        expected = gradients(x.double(), weight.double(), bias.double(), "reference")
        assert_all_close(gradients(x, weight, bias, backend), expected, dtype, tolerance=1e-5)
