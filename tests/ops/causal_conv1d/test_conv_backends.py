"""The causal convolution: the reference against NumPy's, every backend against the reference."""

import numpy as np
import pytest
import torch
from comparison import DEVICES, assert_all_close, backends_in, skip_unless_available
from conv_cases import CONV, OPTIONS, PACKAGE, every_backend, every_device, kernel_test, make_arguments
from torch import Tensor

from seqlab.ops import causal_conv1d


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
    @every_device
    @every_backend
    @pytest.mark.parametrize("activation", [None, "silu"])
    @pytest.mark.parametrize("d_conv", [1, 2, 3, 4, 7])
    @pytest.mark.parametrize("length", [1, 2, 3, 7, 131])
    @kernel_test
    def test_lengths_and_taps(self, backend, device, length, d_conv, activation):
        arguments = make_arguments(2, length, 5, d_conv, dtype=torch.float32, device=device)
        CONV.compare(arguments, backend, activation=activation)

    @every_device
    @every_backend
    @pytest.mark.parametrize("options", [(), ("bias",), ("initial_state",), OPTIONS], ids="+".join)
    @pytest.mark.parametrize("length", [2, 17])
    @kernel_test
    def test_options(self, backend, device, options, length):
        arguments = make_arguments(2, length, 5, 4, dtype=torch.float32, options=options, device=device)
        CONV.compare(arguments, backend)

    @every_backend
    @pytest.mark.parametrize("sizes", [(2, 9, 1, 4), (2, 9, 2, 3)])
    @kernel_test
    def test_few_channels(self, backend, sizes):
        """Fewer than the random shapes of ``test_every_operator`` have."""
        arguments = make_arguments(*sizes, dtype=torch.float32)
        CONV.compare(arguments, backend, activation="silu")
        CONV.compare_packed(arguments, [{2, 3}, {1, 8}], backend, activation="silu")

    @every_device
    @every_backend
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("d_conv", [1, 2, 4])
    @pytest.mark.parametrize("activation", [None, "silu"])
    @kernel_test
    def test_steps_follow_the_sequence(self, backend, device, dtype, d_conv, activation):
        arguments = CONV.sized(backend, dtype, device, 2, 9, 5, d_conv)
        state, expected = CONV.hold_steps(arguments, backend, activation=activation)
        assert torch.equal(state, expected)

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
        CONV.compare(arguments, backend, activation="silu")

    @every_device
    @every_backend
    @kernel_test
    def test_channels_beyond_one_tile(self, backend, device):
        CONV.compare(make_arguments(1, 20, 150, 4, dtype=torch.float32, device=device), backend, activation="silu")

    @every_device
    @every_backend
    @pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # of Triton's interpreter
    @kernel_test
    def test_the_activation_far_out(self, backend, device):
        arguments = make_arguments(2, 29, 5, 4, dtype=torch.float32, device=device)
        CONV.compare(arguments | {"x": 100 * arguments["x"]}, backend, activation="silu")
        far = torch.full((1, 5, 3), -1e30, device=device)
        assert not causal_conv1d(far, torch.ones(3, 4, device=device), activation="silu", backend=backend).any()

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
