"""The fused selective scan as an operator of PyTorch."""

import pytest
import torch
from comparison import assert_all_close, assert_same_bits, doubled, numbered, results
from scan_cases import OPERANDS, SCAN, every_device, every_fused_backend, gpu_test, interpreted, make_arguments, ready

from seqlab.ops import selective_scan
from seqlab.ops.selective_scan import parallel


class TestOperator:
    @every_fused_backend
    def test_keeps_nothing_unless_there_is_a_gradient(self, backend):
        ready(backend, "cpu", torch.float32)
        operands = [make_arguments(1, 2, 3, 2, dtype=torch.float32)[name] for name in OPERANDS]
        for keep in (False, True):
            _, _, saved = torch.ops.seqlab.selective_scan(*operands, None, False, None, keep, False, backend)
            assert (saved.shape == (0,)) == (not keep)

    @every_device
    @every_fused_backend
    @pytest.mark.parametrize("packed", [False, True])
    def test_deterministic_gradients_are_the_same_bit_by_bit(self, backend, device, packed):
        ready(backend, device, torch.float32)
        size = (1, 3, 70, 3) if interpreted(backend, device) else (3, 200, 130, 16)
        arguments = make_arguments(*size, dtype=torch.float32, device=device)
        settings = {"deterministic": True, "backend": backend, "delta_softplus": True}
        settings["seq_idx"] = numbered([{2}] * size[0], size[1]).to(device) if packed else None
        expected = results(selective_scan, doubled(arguments), **settings | {"backend": "reference"})
        first, second = (results(selective_scan, arguments, **settings) for _ in range(2))
        assert_all_close(first, expected, torch.float32)
        assert_same_bits(first, second)

    @pytest.mark.parametrize(("asked", "switch"), [(None, False), (None, True), (True, False), (False, True)])
    def test_deterministic_is_torchs_switch_unless_given(self, asked, switch, monkeypatch):
        seen, backward = [], parallel.backward

        def spy(*arguments):
            seen.append(arguments[-1])
            return backward(*arguments)

        monkeypatch.setattr(parallel, "backward", spy)
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: switch)
        results(selective_scan, make_arguments(1, 3, 2, 2), deterministic=asked, backend="parallel")
        assert seen == [switch if asked is None else asked]

    @pytest.mark.gpu
    @gpu_test
    @pytest.mark.parametrize("d_state", [16, 100, 256])
    @pytest.mark.parametrize("batch", [1, 3])
    def test_many_channels_and_states(self, batch, d_state):
        arguments = make_arguments(batch, 700, 200, d_state, dtype=torch.float32, device="cuda")
        SCAN.hold(arguments, "triton", delta_softplus=True)

    @pytest.mark.gpu
    @pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.mem_get_info()[0] < 50 * 2**30,
        reason="needs 50 GB on a CUDA device",
    )
    def test_more_than_2_31_elements(self):
        """The last positions of two long sequences, outputs and gradients by u; the state before them is forgotten."""
        length, d_inner, tail = 2**20 + 5, 1100, 60
        torch.manual_seed(0)
        u = torch.randn(2, length, d_inner, dtype=torch.bfloat16, device="cuda").requires_grad_()
        delta = torch.rand(2, length, 1, dtype=torch.bfloat16, device="cuda").add_(0.5).expand(-1, -1, d_inner)
        A = -4 * torch.ones(d_inner, 1, device="cuda")
        B, C = torch.randn(2, 2, length, 1, device="cuda")
        y = selective_scan(u, delta.contiguous(), A, B, C, backend="triton")
        (du,) = torch.autograd.grad(y, u, y.detach())
        end = slice(-2 * tail, None)
        last = u.detach()[:, end].double().requires_grad_()
        others = (delta[:, end].double(), A.double(), B[:, end].double(), C[:, end].double())
        expected = selective_scan(last, *others, backend="reference")
        (d_last,) = torch.autograd.grad(expected, last, y.detach()[:, end].double())
        actual = {"y": y[:, -tail:], "du": du[:, -tail:]}
        assert_all_close(actual, {"y": expected[:, -tail:], "du": d_last[:, -tail:]}, torch.bfloat16)
