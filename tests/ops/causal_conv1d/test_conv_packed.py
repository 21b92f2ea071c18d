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
from conv_cases import PACKAGE, compare_packed, every_backend, every_device, kernel_test, make_arguments
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

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
        compare_packed(arguments, cuts, backend, activation=activation)

    @every_device
    @every_backend
    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
    @kernel_test
    def test_dtypes(self, backend, device, dtype):
        compare_packed(make_arguments(2, 40, 7, 4, dtype=dtype, device=device), [{1, 3, 20}, {38}], backend)

    @every_backend
    @settings(
        max_examples=15,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(data=st.data(), sizes=st.tuples(st.integers(1, 2), st.integers(2, 24), st.integers(1, 6), st.integers(1, 6)))
    @kernel_test
    def test_any_packing(self, backend, data, sizes):
        batch, length = sizes[:2]
        cuts = data.draw(st.lists(st.sets(st.integers(1, length - 1)), min_size=batch, max_size=batch))
        arguments = make_arguments(*sizes, dtype=torch.float32, initial_state=data.draw(st.booleans()))
        compare_packed(arguments, cuts, backend, activation="silu")

    @every_backend
    def test_the_final_state_continues_the_last_sequence(self, backend):
        skip_unless_available(PACKAGE, backend, "cpu", torch.float32)
        arguments = make_arguments(2, 12, 5, 4, dtype=torch.float32)
        x, seq_idx = arguments.pop("x"), numbered([{6}, {3, 7}], 12)
        settings = {"activation": "silu", "return_final_state": True, "backend": backend}
        whole, final = causal_conv1d(x, **arguments, seq_idx=seq_idx, **settings)
        y, state = causal_conv1d(x[:, :8], **arguments, seq_idx=seq_idx[:, :8], **settings)
        assert not state[1, :2].any()
        arguments["initial_state"] = state
        rest, last = causal_conv1d(x[:, 8:], **arguments, seq_idx=seq_idx[:, 8:], **settings)
        assert_all_close({"y": torch.cat([y, rest], dim=1), "state": last}, {"y": whole, "state": final}, torch.float32)

    @every_backend
    @pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
    def test_any_integers_serve(self, backend, dtype):
        skip_unless_available(PACKAGE, backend, "cpu", torch.float32)
        arguments, seq_idx = make_arguments(2, 9, 3, 4, dtype=torch.float32), numbered([{4}, {2, 5}], 9)
        expected = causal_conv1d(**arguments, seq_idx=seq_idx, backend=backend)
        strided = torch.stack([seq_idx * 100, seq_idx], dim=2).to(dtype)[..., 0]
        assert torch.equal(causal_conv1d(**arguments, seq_idx=strided, backend=backend), expected)

    @every_backend
    def test_gradcheck(self, backend):
        skip_unless_available(PACKAGE, backend, "cpu", torch.float64)
        arguments = {name: tensor.requires_grad_() for name, tensor in make_arguments(2, 5, 2, 4).items()}
        settings = {"activation": "silu", "return_final_state": True, "backend": backend}

        def conv(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            named = dict(zip(arguments, tensors, strict=True))
            return causal_conv1d(**named, seq_idx=numbered([{1, 4}, {3}], 5), **settings)

        assert torch.autograd.gradcheck(conv, tuple(arguments.values()))

    @pytest.mark.parametrize("backend", backends_in(PACKAGE))
    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("poison", POISONS)
    def test_what_is_not_finite_stays_in_its_sequence(self, backend, device, poison):
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        arguments = make_arguments(2, 12, 5, 4, dtype=torch.float32, initial_state=False, device=device)
        arguments["weight"] *= 2
        hold_apart(partial(causal_conv1d, activation="silu", backend=backend), arguments, ("x",), poison, {3, 4, 9})

    @pytest.mark.parametrize("backend", backends_in(PACKAGE))
    @pytest.mark.parametrize("device", DEVICES)
    def test_padding_is_zero_and_counts_nothing(self, backend, device):
        """Held to the sequences by themselves, in float64."""
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        arguments = make_arguments(1, 12, 5, 4, dtype=torch.float32, initial_state=False, device=device)
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
