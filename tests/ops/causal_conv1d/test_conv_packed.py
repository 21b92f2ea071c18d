"""Packed sequences are convolved as each would be by itself."""

import math
from functools import partial

import pytest
import torch
from comparison import (
    DEVICES,
    POISONS,
    assert_all_close,
    backends_in,
    doubled,
    hold_apart,
    numbered,
    skip_unless_available,
    weighted_sum,
)
from conv_cases import CONV, PACKAGE, every_backend, every_device, kernel_test, make_arguments

from seqlab.ops import causal_conv1d


class TestPackedSequences:
    @every_device
    @every_backend
    @pytest.mark.parametrize("activation", [None, "silu"])
    @pytest.mark.parametrize("d_conv", [1, 2, 3, 4, 6])
    @kernel_test
    def test_short_and_long_ones(self, backend, device, d_conv, activation):
        cuts = [{1, 2, 3, 20}, {7, 39}, set()]
        arguments = make_arguments(3, 40, 5, d_conv, dtype=torch.float32, device=device)
        CONV.compare_packed(arguments, cuts, backend, activation=activation)

    @every_backend
    def test_the_final_state_is_zero_before_the_last_sequence(self, backend):
        arguments = CONV.sized(backend, torch.float32, "cpu", 2, 8, 5, 4)
        seq_idx = numbered([{6}, {3, 7}], 8)
        _, state = causal_conv1d(**arguments, seq_idx=seq_idx, return_final_state=True, backend=backend)
        assert not state[1, :2].any()
        assert state[1, 2].all()

    @pytest.mark.parametrize("backend", backends_in(PACKAGE))
    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("poison", POISONS)
    def test_what_is_not_finite_stays_in_its_sequence(self, backend, device, poison):
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        arguments = make_arguments(2, 12, 5, 4, dtype=torch.float32, options=("bias",), device=device)
        arguments["weight"] *= 2
        hold_apart(partial(causal_conv1d, activation="silu", backend=backend), arguments, ("x",), poison, {3, 4, 9})

    @pytest.mark.parametrize("backend", backends_in(PACKAGE))
    @pytest.mark.parametrize("device", DEVICES)
    def test_padding_is_zero_and_counts_nothing(self, backend, device):
        """Held to the sequences by themselves, in float64."""
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        arguments = make_arguments(1, 12, 5, 4, dtype=torch.float32, options=("bias",), device=device)
        arguments["x"][:, [3, 4, 5, 11]] = math.inf
        seq_idx = torch.tensor([[0, 0, 0, -1, -1, -1, 1, 1, 1, 2, 2, -1]], device=device)

        def padded(**leaves):
            return causal_conv1d(**leaves, activation="silu", seq_idx=seq_idx, backend=backend)

        def separately(x, **parameters):
            def alone(part):
                return causal_conv1d(x[:, part], **parameters, activation="silu", backend="reference")

            parts = [alone(slice(0, 3)), x.new_zeros(1, 3, 5), alone(slice(6, 9)), alone(slice(9, 11))]
            return torch.cat([*parts, x.new_zeros(1, 1, 5)], dim=1)

        found = []
        for operation, values in ((padded, arguments), (separately, doubled(arguments))):
            leaves = {name: tensor.detach().requires_grad_() for name, tensor in values.items()}
            y = operation(**leaves)
            gradients = torch.autograd.grad(weighted_sum([y]), list(leaves.values()))
            found.append({"y": y, **dict(zip(leaves, gradients, strict=True))})
        assert_all_close(*found, torch.float32)
        assert not found[0]["y"][:, [3, 4, 5, 11]].any()
        assert not found[0]["x"][:, [3, 4, 5, 11]].any()
