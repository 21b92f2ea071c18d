"""The fused convolution as an operator of PyTorch."""

import pytest
import torch
from comparison import assert_all_close, assert_same_bits, results, skip_unless_available
from conv_cases import PACKAGE, every_device, every_fused_backend, make_arguments

from seqlab.ops import causal_conv1d


class TestOperator:
    @every_device
    @every_fused_backend
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_results_are_the_same_bit_by_bit(self, backend, device, dtype):
        skip_unless_available(PACKAGE, backend, device, dtype)
        arguments = make_arguments(5, 70, 130 if backend == "cpu" else 5, 4, dtype=dtype, device=device)
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            first = results(causal_conv1d, arguments, activation="silu", backend=backend)
            torch.set_num_threads(3)
            second = results(causal_conv1d, arguments, activation="silu", backend=backend)
        finally:
            torch.set_num_threads(threads)
        assert_same_bits(first, second)

    @pytest.mark.gpu
    @pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.mem_get_info()[0] < 30 * 2**30,
        reason="needs 30 GB on a CUDA device",
    )
    def test_more_than_2_31_elements(self):
        """The last positions of two long sequences, outputs and gradients by x."""
        length, d_inner, tail = 2**20 + 5, 1100, 50
        torch.manual_seed(0)
        x = torch.randn(2, length, d_inner, dtype=torch.bfloat16, device="cuda").requires_grad_()
        weight = torch.randn(d_inner, 4, device="cuda")
        y = causal_conv1d(x, weight, activation="silu", backend="triton")
        (dx,) = torch.autograd.grad(y, x, y.detach())
        end = x.detach()[:, -tail:].double().requires_grad_()
        before = x.detach()[:, -tail - 3 : -tail].double()
        expected = causal_conv1d(end, weight.double(), activation="silu", initial_state=before, backend="reference")
        (d_end,) = torch.autograd.grad(expected, end, y.detach()[:, -tail:].double())
        assert_all_close({"y": y[:, -tail:], "dx": dx[:, -tail:]}, {"y": expected, "dx": d_end}, torch.bfloat16)
