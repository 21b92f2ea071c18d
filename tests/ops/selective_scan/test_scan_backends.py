"""Every backend of the selective scan against the reference."""

import itertools

import long_scan
import pytest
import torch
from comparison import (
    assert_all_close,
    backends_in,
    doubled,
    numbered,
    restrided,
    results,
    weighted_sum,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scan_cases import (
    OPTIONS,
    PACKAGE,
    compare,
    every_backend,
    every_device,
    every_fast_backend,
    every_fused_backend,
    hold_cut,
    interpreted,
    kernel_test,
    make_arguments,
    ready,
    set_chunk,
)
from torch import Tensor

from seqlab.ops import selective_scan, selective_state_update
from seqlab.ops.selective_scan import BACKENDS, parallel


class TestEveryBackend:
    def test_the_order_lists_every_file(self):
        assert sorted(BACKENDS) == sorted(backends_in(PACKAGE))

    @staticmethod
    def size(backend: str, device: str) -> tuple[int, int, int, int]:
        """Batch, length, d_inner and d_state for what does not depend on the length."""
        return (1, 3, 5, 3) if interpreted(backend, device) else (2, 29, 5, 3)

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
    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("length", [1, 13, 131])
    @kernel_test
    def test_dtypes(self, backend, device, dtype, length):
        arguments = make_arguments(3, length, 7, 4, dtype=dtype, device=device)
        compare(arguments, backend, delta_softplus=True)

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
    @pytest.mark.parametrize("layout", ["interleaved", "transposed", "expanded"])
    @kernel_test
    def test_strided_arguments(self, backend, device, layout):
        arguments = make_arguments(2, 29, 5, 3, dtype=torch.float32, device=device)
        arguments = {name: restrided(tensor, layout) for name, tensor in arguments.items()}
        compare(arguments, backend, delta_softplus=True)

    @every_device
    @every_backend
    @pytest.mark.parametrize("output", [0, 1], ids=["y", "state"])
    @kernel_test
    def test_gradient_of_one_output_alone(self, backend, device, output):
        ready(backend, device, torch.float32)

        def gradients(arguments, backend):
            leaves = {name: tensor.requires_grad_() for name, tensor in arguments.items()}
            out = selective_scan(**leaves, return_final_state=True, backend=backend)[output]
            found = torch.autograd.grad(out.sum(), list(leaves.values()), allow_unused=True)
            return {
                name: torch.zeros_like(leaf) if gradient is None else gradient
                for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
            }

        arguments = make_arguments(*self.size(backend, device), dtype=torch.float32, device=device)
        expected = gradients(doubled(arguments), "reference")
        assert_all_close(gradients(arguments, backend), expected, torch.float32)

    @every_device
    @every_backend
    @pytest.mark.parametrize("differentiable", ["u", "A", "z", "initial_state"])
    @kernel_test
    def test_gradient_of_one_argument_alone(self, backend, device, differentiable):
        ready(backend, device, torch.float32)
        arguments = make_arguments(*self.size(backend, device), dtype=torch.float32, device=device)
        expected = results(selective_scan, doubled(arguments), backend="reference")["d" + differentiable]
        leaf = arguments[differentiable].requires_grad_()
        outputs = selective_scan(**arguments, return_final_state=True, backend=backend)
        (actual,) = torch.autograd.grad(weighted_sum(outputs), leaf)
        assert_all_close({"d": actual}, {"d": expected}, torch.float32)

    @every_device
    @every_backend
    @pytest.mark.parametrize("cut", [1, 13, 20, 40])
    @kernel_test
    def test_a_cut_with_the_state_carried_changes_nothing(self, backend, device, cut):
        ready(backend, device, torch.float32, positions=2 * 41)
        hold_cut(make_arguments(2, 41, 5, 3, dtype=torch.float32, device=device), backend, cut)

    @every_fast_backend
    @settings(
        max_examples=40,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(
        sizes=st.tuples(st.integers(1, 3), st.integers(1, 60), st.integers(3, 8), st.integers(1, 6)),
        options=st.sets(st.sampled_from(OPTIONS)),
        delta_softplus=st.booleans(),
    )
    @kernel_test
    def test_any_shape(self, backend, sizes, options, delta_softplus):
        """From 3 channels on: a gradient of one number may be a sum that cancels, too small for float32."""
        arguments = make_arguments(*sizes, dtype=torch.float32, options=tuple(options))
        compare(arguments, backend, delta_softplus=delta_softplus)

    @pytest.mark.parametrize("backend", ["reference", "parallel"])
    @pytest.mark.parametrize("packed", [False, True])
    def test_gradcheck(self, backend, packed, monkeypatch):
        set_chunk(monkeypatch, 1)
        monkeypatch.setattr(parallel, "SHORTEST_CHUNK", 3)
        arguments = {name: tensor.requires_grad_() for name, tensor in make_arguments(2, 7, 2, 2).items()}
        settings = {"delta_softplus": True, "return_final_state": True, "backend": backend}
        settings["seq_idx"] = numbered([{2, 3}, {6}], 7) if packed else None

        def scan(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            return selective_scan(**dict(zip(arguments, tensors, strict=True)), **settings)

        assert torch.autograd.gradcheck(scan, tuple(arguments.values()))

    @every_device
    @every_backend
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @kernel_test
    def test_steps_follow_the_scan(self, backend, device, dtype):
        ready(backend, device, dtype)
        arguments = make_arguments(*self.size(backend, device), dtype=dtype, device=device)
        expected_y, expected_state = selective_scan(
            **arguments, delta_softplus=True, return_final_state=True, backend=backend
        )
        state, outputs = arguments["initial_state"], []
        before = state.clone()
        for t in range(arguments["u"].shape[1]):
            u, delta, B, C, z = (arguments[name][:, t] for name in ("u", "delta", "B", "C", "z"))
            y, state = selective_state_update(
                state,
                u,
                delta,
                arguments["A"],
                B,
                C,
                arguments["D"],
                z,
                arguments["delta_bias"],
                delta_softplus=True,
            )
            assert y.dtype == dtype
            outputs.append(y)
        assert torch.equal(before, arguments["initial_state"])
        actual = {"y": torch.stack(outputs, dim=1), "state": state}
        assert_all_close(actual, {"y": expected_y, "state": expected_state}, dtype)

    @every_backend
    def test_autocast_changes_nothing(self, backend):
        ready(backend, "cpu", torch.float32)
        arguments = make_arguments(*self.size(backend, "cpu"), dtype=torch.float32)
        expected = results(selective_scan, arguments, backend=backend, delta_softplus=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = results(selective_scan, arguments, backend=backend, delta_softplus=True)
        for name in expected:
            assert torch.equal(actual[name], expected[name]), name

    @every_device
    @every_backend
    @pytest.mark.parametrize("packed", [False, True])
    def test_compiles_without_a_graph_break(self, backend, device, packed):
        ready(backend, device, torch.float32)
        arguments = make_arguments(1, 3, 3, 2, dtype=torch.float32, device=device)
        settings = {"delta_softplus": True, "seq_idx": numbered([{2}], 3).to(device) if packed else None}
        settings |= {"backend": backend, "deterministic": True}
        torch.compiler.reset()  # it compiles one function only so many times
        compiled = torch.compile(selective_scan, backend="aot_eager", fullgraph=True)
        expected = results(selective_scan, arguments, **settings)
        assert_all_close(results(compiled, arguments, **settings), expected, torch.float32)

    @every_device
    @every_fused_backend
    def test_compiles_for_any_length(self, backend, device):
        ready(backend, device, torch.float32)
        torch.compiler.reset()
        compiled = torch.compile(selective_scan, backend="aot_eager", fullgraph=True, dynamic=True)
        for length in (2, 3):
            arguments = make_arguments(1, length, 3, 2, dtype=torch.float32, device=device)
            expected = results(selective_scan, arguments, backend=backend)
            assert_all_close(results(compiled, arguments, backend=backend), expected, torch.float32)


def test_uninitialised_memory_is_seen(nan_memory):
    assert torch.empty(3).isnan().all()
    assert torch.ones(2).new_empty(3).isnan().all()
    assert torch.empty_like(torch.ones(2)).isnan().all()
