"""Every backend of the selective scan against the reference."""

import itertools

import long_scan
import pytest
import torch
from comparison import assert_all_close, doubled, results, weighted_sum
from scan_cases import (
    OPTIONS,
    SCAN,
    compare,
    every_backend,
    every_device,
    every_fused_backend,
    kernel_test,
    make_arguments,
    ready,
)

from seqlab.ops import selective_scan


class TestEveryBackend:
    @every_device
    @every_backend
    @pytest.mark.parametrize("d_state", [1, 3, 16])
    @pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 11, 13, 17, 37, 41, 127, 257])
    @kernel_test
    def test_lengths_and_state_sizes(self, backend, device, length, d_state):
        arguments = make_arguments(2, length, 5, d_state, dtype=torch.float32, device=device)
        compare(arguments, backend, delta_softplus=True)

    @every_device
    @every_backend
    @pytest.mark.parametrize("delta_softplus", [False, True])
    @pytest.mark.parametrize(
        "options", [chosen for n in range(5) for chosen in itertools.combinations(OPTIONS, n)], ids="+".join
    )
    @kernel_test
    def test_options(self, backend, device, options, delta_softplus):
        arguments = make_arguments(2, 19, 5, 3, dtype=torch.float32, options=options, device=device)
        compare(arguments, backend, delta_softplus=delta_softplus)

    @every_device
    @every_backend
    @pytest.mark.parametrize("steps", ["huge", "tiny", "mixed"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("length", [1, 127])
    @kernel_test
    def test_adversarial_steps(self, backend, device, length, steps, dtype):
        arguments = make_arguments(2, length, 5, 3, dtype=dtype, steps=steps, device=device)
        compare(arguments | {"delta_bias": torch.zeros_like(arguments["delta_bias"])}, backend)

    @every_device
    @every_fused_backend
    @pytest.mark.parametrize("steps", ["huge", "tiny", "mixed"])
    def test_adversarial_steps_over_a_long_sequence(self, backend, device, steps):
        """Decays of tiny steps are so close to 1 that float32 rounds most of them away, at each of 65,537 positions.

        The reference itself in float32 is up to 5e-4 off. ``parallel`` multiplies decays before they meet a state, and
        is held to what rounding can do at most: half a unit of each decay, whichever way the device's exponential
        rounds.
        """
        ready(backend, device, torch.float32, positions=65_537)
        tolerance = {"tiny": 65_537 * 2.0**-24 if backend == "parallel" else 5e-4}.get(steps)
        arguments = make_arguments(1, 65_537, 2, 2, dtype=torch.float32, steps=steps)
        arguments["delta_bias"].zero_()
        expected = results(long_scan.scan, doubled(arguments))
        on_device = {name: tensor.to(device) for name, tensor in arguments.items()}
        actual = {name: tensor.cpu() for name, tensor in results(selective_scan, on_device, backend=backend).items()}
        assert_all_close(actual, expected, torch.float32, tolerance)

    @every_device
    @every_backend
    @pytest.mark.parametrize("d_state", [1, 5, 16, 64, 100, 256])
    @kernel_test
    def test_any_state_size(self, backend, device, d_state):
        compare(make_arguments(1, 29, 5, d_state, dtype=torch.float32, device=device), backend, delta_softplus=True)

    @every_device
    @every_backend
    @kernel_test
    def test_mixed_dtypes(self, backend, device):
        arguments = make_arguments(2, 29, 5, 3, dtype=torch.bfloat16, device=device)
        arguments["delta"] = arguments["delta"].float()
        arguments["A"] = arguments["A"].bfloat16()
        compare(arguments, backend, delta_softplus=True)

    @every_device
    @every_backend
    @pytest.mark.parametrize("differentiable", ["u", "A", "z", "initial_state"])
    @kernel_test
    def test_gradient_of_one_argument_alone(self, backend, device, differentiable):
        arguments = SCAN.usual(backend, torch.float32, device)
        expected = results(selective_scan, doubled(arguments), backend="reference")["d" + differentiable]
        leaf = arguments[differentiable].requires_grad_()
        outputs = selective_scan(**arguments, return_final_state=True, backend=backend)
        (actual,) = torch.autograd.grad(weighted_sum(outputs), leaf)
        assert_all_close({"d": actual}, {"d": expected}, torch.float32)


def test_uninitialised_memory_is_seen(nan_memory):
    assert torch.empty(3).isnan().all()
    assert torch.ones(2).new_empty(3).isnan().all()
    assert torch.empty_like(torch.ones(2)).isnan().all()
