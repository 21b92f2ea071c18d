"""What is the fused CPU scan's own: tiles and blocks, packed sequences, memory layouts.

Its values and gradients on everything that all backends share are in ``test_scan_backends``.
"""

import long_scan
import pytest
import torch
from comparison import TOLERANCE, assert_all_close, assert_same_bits, doubled, numbered, results, weighted_sum
from cpu_scan_cases import S, T, W, compare, expected, fused, inputs_of
from scan_cases import OPTIONS, SCAN, make_arguments
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from seqlab.ops import selective_scan
from seqlab.ops.selective_scan import cpu
from seqlab.ops.selective_scan.interface import Inputs


def test_the_edges_are_where_this_file_expects_them():
    kernels = cpu._kernels()
    assert (kernels.T, kernels.W, kernels.S) == (T, W, S)


@pytest.mark.usefixtures("nan_memory")
class TestEdges:
    @pytest.mark.parametrize("d_state", [1, S - 1, S, S + 1, 2 * S + 3])
    @pytest.mark.parametrize("d_inner", [1, W - 1, W, W + 1, 5 * W - 3])
    def test_channels_and_states(self, d_inner, d_state):
        compare(make_arguments(2, 37, d_inner, d_state, dtype=torch.float32))

    @pytest.mark.parametrize("length", [1, 2, T - 1, T, T + 1, 2 * T, 3 * T + 5])
    @pytest.mark.parametrize("d_state", [3, S + 1])
    def test_lengths(self, length, d_state):
        compare(make_arguments(2, length, W + 1, d_state, dtype=torch.float32))

    @pytest.mark.parametrize("tasks", [1, 3, 1000])
    def test_groups_of_channels(self, tasks, monkeypatch):
        monkeypatch.setattr(cpu, "TASKS", tasks)
        compare(make_arguments(2, 37, 9 * W - 1, 5, dtype=torch.float32))

    def test_the_largest_state(self):
        compare(make_arguments(1, 40, 3, 256, dtype=torch.float32))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_sixteen_bits(self, dtype):
        compare(make_arguments(2, 2 * T + 3, W + 3, S + 1, dtype=dtype))

    def test_a_long_sequence(self):
        arguments = make_arguments(1, 65_537, 2, 2, dtype=torch.float32)
        expected = results(long_scan.scan, doubled(arguments), delta_softplus=True)
        actual = results(selective_scan, arguments, backend="cpu", delta_softplus=True)
        assert_all_close(actual, expected, torch.float32)


@pytest.mark.usefixtures("nan_memory")
class TestPackedSequences:
    @pytest.mark.parametrize(
        "bounds",
        [[0, 1, 80], [0, 31, 80], [0, 32, 80], [0, 33, 34, 35, 64, 80], [0, 79, 80], [0, 40, 41, 42, 43, 80]],
        ids=str,
    )
    def test_equals_the_sequences_apart(self, bounds):
        arguments = make_arguments(2, 80, W + 3, S + 1, dtype=torch.float32)
        both = [set(bounds[1:-1]), {17, 50}]
        assert_all_close(fused(arguments, numbered(both, 80)), expected(arguments, both), torch.float32)

    def test_only_a_change_counts(self):
        arguments = make_arguments(1, 80, 5, 3, dtype=torch.float32)
        up, down = torch.zeros(1, 80, dtype=torch.int64), torch.full((1, 80), 7)
        up[:, 40:], down[:, 40:] = 3, -2
        assert_same_bits(fused(arguments, up), fused(arguments, down))

    def test_a_constant_index_changes_nothing(self):
        arguments = make_arguments(2, 80, 5, 3, dtype=torch.float32)
        assert_same_bits(fused(arguments, torch.full((2, 80), 4)), fused(arguments))

    def test_what_overflowed_is_forgotten_too(self):
        arguments = make_arguments(1, 8, 3, 2, dtype=torch.float32, options=())
        arguments["A"] = -arguments["A"]
        arguments["delta"][:, :4] = 1e4
        seq_idx = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]])
        y, _, _ = cpu.forward(inputs_of(arguments, seq_idx), None, keep=False)
        assert y[:, 4:].isfinite().all()


class Allocations(TorchDispatchMode):
    """The number of elements of every new tensor."""

    def __init__(self):
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        self.sizes += [
            t.untyped_storage().nbytes() // t.element_size()
            for t in tree_leaves(result)
            if isinstance(t, Tensor) and t.untyped_storage()._cdata not in known
        ]
        return result


@pytest.mark.usefixtures("nan_memory")
class TestLayouts:
    LAYOUTS = ("slices of projections", "channels first")

    @staticmethod
    def arguments(layout: str, length: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """None of what runs along time is contiguous."""
        arguments = make_arguments(2, length, W + 3, 2, dtype=dtype)
        if layout == "channels first":
            for name in SCAN.along_time:
                arguments[name] = arguments[name].transpose(1, 2).contiguous().transpose(1, 2)
        else:
            wide, rows = (torch.randn(2, length, 2 * (W + 3)).to(dtype) for _ in range(2))
            arguments["u"], arguments["z"] = wide.chunk(2, dim=-1)
            arguments["delta"] = rows[..., : W + 3]
            arguments["B"], arguments["C"], _ = torch.randn(2, length, 7).to(dtype).split((2, 2, 3), dim=-1)
        assert not any(arguments[name].is_contiguous() for name in SCAN.along_time)
        return arguments

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_values_and_gradients(self, layout, dtype):
        compare(self.arguments(layout, 70, dtype))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_nothing_is_copied(self, layout, dtype):
        """The forward pass allocates y and nothing else of its size, but what it keeps; the backward pass du, d_delta
        and dz."""
        inputs = inputs_of(self.arguments(layout, 4001, dtype))
        with Allocations() as forward:
            y, _, saved = cpu.forward(inputs, None, keep=True)
        dy, size = torch.randn_like(y), y.numel()
        with Allocations() as backward:
            cpu.backward(inputs, saved, dy, None, deterministic=True)
        assert sum(n >= size for n in forward.sizes) == 1
        assert saved.numel() < size
        assert sum(n >= size for n in backward.sizes) == 3

    def test_one_gradient_for_all(self):
        arguments = make_arguments(2, 40, 5, 3, dtype=torch.float32)
        inputs = inputs_of(arguments)
        y, _, saved = cpu.forward(inputs, None, keep=True)
        one = torch.ones(1, 1, 1)
        narrow = cpu.backward(inputs, saved, one.expand_as(y), None, deterministic=True)
        wide = cpu.backward(inputs, saved, torch.ones_like(y), None, deterministic=True)
        for a, b in zip(narrow, wide, strict=True):
            assert torch.equal(a, b)

    def test_every_value_of_sixteen_bits_passes_through(self):
        """With C = 0 and D = 1 the output is the input, bit by bit; subnormal bfloat16 may become zero."""
        bits = torch.arange(-(2**15), 2**15).to(torch.int16)
        for dtype in (torch.bfloat16, torch.float16):
            u = bits.view(dtype).reshape(1, -1, 1)
            zeros = torch.zeros(1, u.shape[1], 1)
            inputs = Inputs(u, zeros, torch.zeros(1, 1), zeros, zeros, torch.ones(1), None, None, None, False)
            finite = u.isfinite()
            y, _, _ = cpu.forward(inputs._replace(u=u.where(finite, 1)), None, keep=False)
            keeps = finite & ((u.abs() >= torch.finfo(dtype).tiny) if dtype == torch.bfloat16 else True)
            assert torch.equal(y[keeps], u[keeps])
            assert (y[~keeps & finite].abs() <= torch.finfo(dtype).tiny).all()

    def test_one_machine_code_serves_all(self):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            fused(make_arguments(2, 5, 3, 2, dtype=dtype))
            fused(make_arguments(1, 1, 1, 1, dtype=dtype, options=()))
        kernels = cpu._kernels()
        assert len(kernels.forward_task.signatures) == len(kernels.backward_task.signatures) == 1


class TestArithmetic:
    def test_nan_stays_where_it_comes_from(self):
        arguments = make_arguments(1, 70, W + 1, 3, dtype=torch.float32, options=())
        arguments["u"][0, 40, 2] = float("nan")
        y, state, _ = cpu.forward(inputs_of(arguments), None, keep=False)
        assert y[0, 40:, 2].isnan().all()
        assert state[0, 2].isnan().all()
        y[0, 40:, 2], state[0, 2] = 0, 0
        assert y.isfinite().all()
        assert state.isfinite().all()

    @pytest.mark.parametrize("value", [-1e4, -200.0, -90.0, 19.9, 20.1, 90.0, 1e4])
    def test_softplus_far_out(self, value):
        arguments = make_arguments(1, 40, 3, 2, dtype=torch.float32, options=("D",))
        arguments["delta"] += value
        actual, exact = fused(arguments), expected(arguments)
        for name in exact:
            assert actual[name].isfinite().all(), name
            scale = exact[name].norm().item()
            error = (actual[name].double() - exact[name]).norm().item()
            assert error <= TOLERANCE[torch.float32] * scale + 1e-30, name

    def test_threads_go_on_with_subnormal_numbers(self):
        fused(make_arguments(4, 40, 5 * W, 3, dtype=torch.float32))
        assert (torch.full((1 << 17,), 1e-39) * 0.5 > 0).all()


def test_without_keeping_nothing_is_saved():
    arguments = make_arguments(2, 40, 5, 3, dtype=torch.float32, options=OPTIONS)
    y, state, saved = cpu.forward(inputs_of(arguments), arguments["initial_state"], keep=False)
    kept_y, kept_state, _ = cpu.forward(inputs_of(arguments), arguments["initial_state"], keep=True)
    assert saved.shape == (0,)
    assert torch.equal(y, kept_y)
    assert torch.equal(state, kept_state)
    assert weighted_sum((y, state)).isfinite()
