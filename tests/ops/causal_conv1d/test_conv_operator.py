"""The fused convolution as an operator of PyTorch."""

import pytest
import torch
from comparison import (
    assert_all_close,
    assert_replays,
    numbered,
    results,
    skip_unless_available,
)
from conv_cases import PACKAGE, every_device, every_fused_backend, make_arguments
from torch import Tensor

from seqlab.ops import causal_conv1d


class TestOperator:
    @every_device
    @every_fused_backend
    @pytest.mark.parametrize("options", [False, True])
    def test_opcheck(self, backend, device, options):
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        arguments = make_arguments(2, 6, 3, 4, dtype=torch.float32, bias=options, initial_state=options, device=device)
        x, weight, bias, state = (arguments.get(name) for name in ("x", "weight", "bias", "initial_state"))
        seq_idx = numbered([{1}, {2, 5}], 6).to(device) if options else None
        operands = (x, weight, bias, "silu" if options else None, state, seq_idx)
        d_final = torch.randn(2, 3, 3, device=device) if options else None
        torch.library.opcheck(torch.ops.seqlab.causal_conv1d_backward.default, (x, d_final, *operands, backend))
        for tensor in arguments.values():
            tensor.requires_grad_()
        torch.library.opcheck(torch.ops.seqlab.causal_conv1d.default, (*operands, options, backend))

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
        for name in first:
            assert torch.equal(first[name], second[name]), name

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    @pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream")  # of the leaves, used on three streams here
    def test_cuda_graph_capture(self):
        arguments = make_arguments(2, 200, 64, 4, dtype=torch.bfloat16, device="cuda")
        settings = {"activation": "silu", "seq_idx": numbered([{4}, {2, 150}], 200).cuda(), "backend": "triton"}
        static = {name: tensor.clone().requires_grad_() for name, tensor in arguments.items()}

        def step() -> list[Tensor]:
            y, state = causal_conv1d(**static, return_final_state=True, **settings)
            return [y, state, *torch.autograd.grad((y, state), list(static.values()), (y.detach(), state.detach()))]

        assert_replays(step, static.values())

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
