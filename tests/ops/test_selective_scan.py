"""The selective scan: the reference against closed forms, every backend against the reference."""

import itertools
import math
import weakref
from functools import partial
from importlib import import_module

import long_scan
import numpy as np
import pytest
import torch
from comparison import (
    DEVICES,
    POISONS,
    assert_all_close,
    assert_replays,
    backends_in,
    doubled,
    hold_apart,
    named_gradients,
    numbered,
    restrided,
    results,
    skip_unless_available,
    step_sizes,
    weighted_sum,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from seqlab.ops import selective_scan, selective_scan_flops, selective_state_update
from seqlab.ops.selective_scan import BACKENDS, cpu, parallel, resolve_backend, triton
from seqlab.ops.selective_scan.operator import FUSED

PACKAGE = "seqlab.ops.selective_scan"
OPTIONS = ("D", "z", "delta_bias", "initial_state")
ALONG_TIME = ("u", "delta", "B", "C", "z")
INTERPRETED = 4
"""Positions, in all sequences together, that Triton's interpreter may take in a test that all backends share: they
last 0.1 s each. What it is held to besides is in TestTritonInterpreted."""
HALF = (torch.bfloat16, torch.float16)


def make_arguments(
    batch: int,
    length: int,
    d_inner: int,
    d_state: int,
    *,
    dtype: torch.dtype = torch.float64,
    steps: str = "ordinary",
    options: tuple[str, ...] = OPTIONS,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Random arguments, every optional one of ``options`` among them; parameters and state at least float32."""
    torch.manual_seed(0)
    wide = torch.float32 if dtype in HALF else dtype
    arguments = {
        "u": torch.randn(batch, length, d_inner).to(dtype),
        "delta": step_sizes(steps, batch, length, d_inner).to(dtype),
        "A": (-torch.rand(d_inner, d_state) * 4 - 0.5).to(wide),
        "B": torch.randn(batch, length, d_state).to(dtype),
        "C": torch.randn(batch, length, d_state).to(dtype),
        "D": torch.randn(d_inner).to(wide),
        "z": torch.randn(batch, length, d_inner).to(dtype),
        "delta_bias": torch.rand(d_inner).to(wide),
        "initial_state": torch.randn(batch, d_inner, d_state).to(wide),
    }
    return {name: tensor.to(device) for name, tensor in arguments.items() if name not in OPTIONS or name in options}


def interpreted(backend: str, device: str) -> bool:
    return backend == "triton" and device == "cpu"


def ready(backend: str, device: str, dtype: torch.dtype, positions: int = 0) -> None:
    """Skip what cannot run, and what would take the interpreter too long."""
    skip_unless_available(PACKAGE, backend, device, dtype)
    if interpreted(backend, device) and positions > INTERPRETED:
        pytest.skip("too slow in Triton's interpreter")


def compare(arguments: dict[str, Tensor], backend: str, **settings) -> None:
    """Hold a backend to the float64 reference in outputs, final state and every gradient, unless that is too slow."""
    u = arguments["u"]
    ready(backend, u.device.type, u.dtype, positions=u[..., 0].numel())
    hold(arguments, backend, **settings)


def hold(arguments: dict[str, Tensor], backend: str, **settings) -> None:
    expected = results(selective_scan, doubled(arguments), backend="reference", **settings)
    actual = results(selective_scan, arguments, backend=backend, **settings)
    assert_all_close(actual, expected, arguments["u"].dtype)


def hold_cut(arguments: dict[str, Tensor], backend: str, cut: int) -> None:
    """Hold a sequence cut in two, the state carried over, to the whole."""
    whole = results(selective_scan, arguments, backend=backend, delta_softplus=True)
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in arguments.items()}
    state, outputs = leaves["initial_state"], []
    for span in (slice(0, cut), slice(cut, None)):
        part = {name: leaf[:, span] if name in ALONG_TIME else leaf for name, leaf in leaves.items()}
        part["initial_state"] = state
        y, state = selective_scan(**part, delta_softplus=True, return_final_state=True, backend=backend)
        outputs.append(y)
    y = torch.cat(outputs, dim=1)
    gradients = torch.autograd.grad(weighted_sum((y, state)), list(leaves.values()))
    halves = {"y": y, "state": state, **named_gradients(leaves, gradients)}
    assert_all_close(halves, whole, arguments["u"].dtype)


def scan_separately(
    *, cuts: list[set[int]], initial_state: Tensor | None = None, return_final_state: bool, **arguments
) -> tuple[Tensor, Tensor]:
    """What packed sequences are held to: each by itself, the first of a row from the initial state."""
    assert return_final_state
    rows = []
    for b, row in enumerate(cuts):
        before = None if initial_state is None else initial_state[b : b + 1]
        outputs = []
        bounds = [0, *sorted(row), arguments["u"].shape[1]]
        for start, end in itertools.pairwise(bounds):
            part = {
                name: value[b : b + 1, start:end] if name in ALONG_TIME else value for name, value in arguments.items()
            }
            y, state = selective_scan(**part, initial_state=before, return_final_state=True, backend="reference")
            outputs.append(y)
            before = None
        rows.append((torch.cat(outputs, dim=1), state))
    ys, states = zip(*rows, strict=True)
    return torch.cat(ys), torch.cat(states)


def compare_packed(arguments: dict[str, Tensor], cuts: list[set[int]], backend: str, **settings) -> None:
    """Hold packed sequences to the same sequences one by one, unless that is too slow."""
    u = arguments["u"]
    ready(backend, u.device.type, u.dtype, positions=u[..., 0].numel())
    hold_packed(arguments, cuts, backend, **settings)


def hold_packed(arguments: dict[str, Tensor], cuts: list[set[int]], backend: str, **settings) -> None:
    u = arguments["u"]
    seq_idx = numbered(cuts, u.shape[1]).to(u.device)
    expected = results(scan_separately, doubled(arguments), cuts=cuts, delta_softplus=True)
    actual = results(selective_scan, arguments, seq_idx=seq_idx, backend=backend, delta_softplus=True, **settings)
    assert_all_close(actual, expected, u.dtype)


def set_chunk(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    monkeypatch.setattr(parallel, "CHUNK_ELEMENTS", dict.fromkeys(parallel.CHUNK_ELEMENTS, elements))


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 13 positions at (batch, d_inner, d_state) = (2, 5, 3), 40 at N = 1, and 8, the fewest, at N = 16."""
    set_chunk(monkeypatch, 400)


every_backend = pytest.mark.parametrize("backend", backends_in(PACKAGE))
every_fused_backend = pytest.mark.parametrize("backend", FUSED)
every_fast_backend = pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "triton"])
gpu_test = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
every_device = pytest.mark.parametrize("device", DEVICES)
kernel_test = pytest.mark.usefixtures("nan_memory", "short_chunks")


class TestReference:
    @staticmethod
    def dense(arguments: dict[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """The scan as one lower-triangular matrix for each channel and state, decays from differences of sums."""
        u, delta, A, B, C, D, z, bias, state = (
            arguments[name].numpy() for name in ("u", "delta", "A", "B", "C", *OPTIONS)
        )
        delta = np.log1p(np.exp(delta + bias))
        elapsed = np.cumsum(delta, axis=1)  # (Bt, L, D)
        past = elapsed[:, :, None] - elapsed[:, None]  # (Bt, L, L, D)
        causal = np.tril(np.ones((u.shape[1],) * 2))[None, :, :, None, None]
        decay = np.exp(np.minimum(past, 1e9)[..., None] * A * causal) * causal  # (Bt, L, L, D, N)
        h = np.einsum("btsdn,bsd,bsn->btdn", decay, delta * u, B)
        h += np.exp(elapsed[..., None] * A) * state[:, None]
        y = np.einsum("btdn,btn->btd", h, C) + D * u
        return y * z / (1 + np.exp(-z)), h[:, -1]

    def test_equals_the_dense_matrix(self):
        arguments = make_arguments(2, 23, 5, 3)
        y, state = selective_scan(**arguments, delta_softplus=True, return_final_state=True, backend="reference")
        expected_y, expected_state = self.dense(arguments)
        np.testing.assert_allclose(y.numpy(), expected_y, rtol=1e-11)
        np.testing.assert_allclose(state.numpy(), expected_state, rtol=1e-11)

    def test_constant_input_is_a_geometric_series(self):
        length, decay, drive = 40, 0.75, 0.5 * 2.0 * 3.0  # delta B u
        constant = torch.full((1, length, 1), 1.0, dtype=torch.float64)
        A = torch.tensor([[math.log(decay) / 0.5]], dtype=torch.float64)
        y = selective_scan(3 * constant, 0.5 * constant, A, 2 * constant, 5 * constant, backend="reference").flatten()
        t = torch.arange(1, length + 1, dtype=torch.float64)
        torch.testing.assert_close(y, 5 * drive * (1 - decay**t) / (1 - decay), rtol=1e-13, atol=0)

    def test_one_position_by_hand(self):
        def scalar(value: float, *shape: int) -> Tensor:
            return torch.full(shape, value, dtype=torch.float64)

        y, state = selective_scan(
            u=scalar(2, 1, 1, 1),
            delta=scalar(0.25, 1, 1, 1),
            A=scalar(-4, 1, 1),
            B=scalar(3, 1, 1, 1),
            C=scalar(5, 1, 1, 1),
            D=scalar(7, 1),
            z=scalar(1, 1, 1, 1),
            delta_bias=scalar(0.25, 1),
            initial_state=scalar(11, 1, 1, 1),
            return_final_state=True,
            backend="reference",
        )
        expected_state = math.exp(-2) * 11 + 0.5 * 3 * 2
        assert state.item() == pytest.approx(expected_state, rel=1e-14)
        assert y.item() == pytest.approx((5 * expected_state + 7 * 2) / (1 + math.exp(-1)), rel=1e-14)

    @pytest.mark.parametrize("steps", ["ordinary", "huge", "tiny", "mixed"])
    @pytest.mark.parametrize("delta_softplus", [False, True])
    def test_the_scan_that_long_sequences_are_held_to(self, steps, delta_softplus):
        arguments = make_arguments(2, 127, 5, 3, steps=steps)
        expected = results(selective_scan, arguments, backend="reference", delta_softplus=delta_softplus)
        actual = results(long_scan.scan, arguments, delta_softplus=delta_softplus)
        assert_all_close(actual, expected, torch.float64)


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


class TestPackedSequences:
    @every_device
    @every_backend
    @pytest.mark.parametrize("d_state", [1, 3, 16])
    @kernel_test
    def test_short_and_long_ones(self, backend, device, d_state):
        """Among them sequences that begin where a chunk of the parallel scan does, at 13 and 26."""
        cuts = [{1, 2, 3, 20}, {13, 26, 39}]
        compare_packed(make_arguments(2, 41, 5, d_state, dtype=torch.float32, device=device), cuts, backend)

    @every_device
    @every_backend
    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
    @kernel_test
    def test_dtypes(self, backend, device, dtype):
        compare_packed(make_arguments(2, 40, 7, 4, dtype=dtype, device=device), [{1, 3, 20}, {38}], backend)

    @every_device
    @every_backend
    @kernel_test
    def test_over_tiles_and_segments(self, backend, device):
        """Sequences that begin where a tile or a segment of a fused scan does, and on either side."""
        cuts = [{31, 32, 33, 64, 65}, {63, 128, 255, 256}]
        compare_packed(make_arguments(2, 300, 70, 16, dtype=torch.float32, device=device), cuts, backend)

    @every_fast_backend
    @settings(
        max_examples=25,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(data=st.data(), sizes=st.tuples(st.integers(1, 2), st.integers(2, 40), st.integers(3, 6), st.integers(1, 6)))
    @kernel_test
    def test_any_packing(self, backend, data, sizes):
        batch, length = sizes[:2]
        cuts = data.draw(st.lists(st.sets(st.integers(1, length - 1)), min_size=batch, max_size=batch))
        options = data.draw(st.sets(st.sampled_from(OPTIONS)))
        compare_packed(make_arguments(*sizes, dtype=torch.float32, options=tuple(options)), cuts, backend)

    @every_fast_backend
    def test_the_final_state_continues_the_last_sequence(self, backend):
        ready(backend, "cpu", torch.float32)
        arguments = make_arguments(2, 12, 5, 3, dtype=torch.float32)
        settings = {"return_final_state": True, "backend": backend}
        seq_idx = numbered([{6}, {3, 9}], 12)
        y, state = selective_scan(**arguments, seq_idx=seq_idx, **settings)
        parts = []
        for span in (slice(0, 8), slice(8, None)):
            part = {name: tensor[:, span] if name in ALONG_TIME else tensor for name, tensor in arguments.items()}
            parts.append(selective_scan(**part, seq_idx=seq_idx[:, span], **settings))
            arguments["initial_state"] = parts[-1][1]
        actual = {"y": torch.cat([part[0] for part in parts], dim=1), "state": parts[-1][1]}
        assert_all_close(actual, {"y": y, "state": state}, torch.float32)

    @every_backend
    @pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
    def test_any_integers_serve(self, backend, dtype):
        ready(backend, "cpu", torch.float32)
        arguments, seq_idx = make_arguments(1, 4, 3, 2, dtype=torch.float32), numbered([{1, 3}], 4)
        expected = selective_scan(**arguments, seq_idx=seq_idx, backend=backend)
        strided = torch.stack([seq_idx * 100, seq_idx], dim=2).to(dtype)[..., 0]
        assert torch.equal(selective_scan(**arguments, seq_idx=strided, backend=backend), expected)

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("poison", POISONS)
    @pytest.mark.parametrize("names", [("u",), ("delta",), ("B", "C")])
    @pytest.mark.parametrize("backend", backends_in(PACKAGE))
    def test_what_is_not_finite_stays_in_its_sequence(self, backend, names, poison, device):
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        length, cuts = (6, {1, 4}) if interpreted(backend, device) else (300, {40, 41, 190})
        arguments = make_arguments(2, length, 3, 5, dtype=torch.float32, device=device)
        hold_apart(partial(selective_scan, delta_softplus=True, backend=backend), arguments, names, poison, cuts)

    @pytest.mark.parametrize("direction", ["forward", "backward"])
    def test_it_stays_there_across_chunks_of_the_kernels(self, monkeypatch, direction):
        skip_unless_available(PACKAGE, "triton", "cpu", torch.float32)
        cut = triton.Plan(lanes=1, tiles=1, channels=1, chunk=64, n_chunks=2)
        chosen = triton.plan
        monkeypatch.setattr(triton, "plan", lambda u, n, way: cut if way == direction else chosen(u, n, way))
        arguments = make_arguments(1, 68, 1, 2, dtype=torch.float32, options=())
        hold_apart(partial(selective_scan, backend="triton"), arguments, ("u", "C"), math.inf, {65})


class TestOperator:
    NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")

    @every_device
    @every_fused_backend
    @pytest.mark.parametrize("options", [False, True])
    def test_opcheck(self, backend, device, options):
        ready(backend, device, torch.float32)
        length = 2 if interpreted(backend, device) else 6
        arguments = make_arguments(
            1, length, 3, 2, dtype=torch.float32, options=OPTIONS if options else (), device=device
        )
        seq_idx = numbered([{1}], length).to(device) if options else None
        state, operands = arguments.get("initial_state"), [arguments.get(name) for name in self.NAMES]
        rest = (seq_idx, options, state, True, options, backend)
        y, final, saved = torch.ops.seqlab.selective_scan(*operands, *rest)
        dy, d_final = (torch.randn_like(y), None) if options else (None, torch.randn_like(final))
        given = (dy, d_final, saved, *operands, seq_idx, options, options, backend)
        torch.library.opcheck(torch.ops.seqlab.selective_scan_backward.default, given)
        for tensor in arguments.values():
            tensor.requires_grad_()
        torch.library.opcheck(torch.ops.seqlab.selective_scan.default, (*operands, *rest))

    @every_fused_backend
    def test_keeps_nothing_unless_there_is_a_gradient(self, backend):
        ready(backend, "cpu", torch.float32)
        operands = [make_arguments(1, 2, 3, 2, dtype=torch.float32)[name] for name in self.NAMES]
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
        for name in first:
            assert torch.equal(first[name], second[name]), name

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

    @every_fused_backend
    def test_second_derivatives_are_refused(self, backend):
        ready(backend, "cpu", torch.float32)
        arguments = make_arguments(1, 3, 2, 2, dtype=torch.float32)
        leaves = {name: tensor.requires_grad_() for name, tensor in arguments.items()}
        y = selective_scan(**leaves, backend=backend)
        (du,) = torch.autograd.grad(y.sum(), leaves["u"], create_graph=True)
        with pytest.raises(NotImplementedError, match="has no second derivative: use backend="):
            du.sum().backward()

    @pytest.mark.gpu
    @gpu_test
    @pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream")  # of the leaves, used on three streams here
    def test_cuda_graph_capture(self):
        arguments = make_arguments(2, 200, 64, 16, dtype=torch.bfloat16, device="cuda")
        settings = {"delta_softplus": True, "seq_idx": numbered([{4}, {2, 150}], 200).cuda(), "backend": "triton"}
        settings["deterministic"] = True
        static = {name: tensor.clone().requires_grad_() for name, tensor in arguments.items()}

        def step() -> list[Tensor]:
            y, state = selective_scan(**static, return_final_state=True, **settings)
            return [y, state, *torch.autograd.grad((y, state), list(static.values()), (y.detach(), state.detach()))]

        assert_replays(step, static.values())

    @pytest.mark.gpu
    @gpu_test
    @pytest.mark.parametrize("d_state", [16, 100, 256])
    @pytest.mark.parametrize("batch", [1, 3])
    def test_many_channels_and_states(self, batch, d_state):
        arguments = make_arguments(batch, 700, 200, d_state, dtype=torch.float32, device="cuda")
        hold(arguments, "triton", delta_softplus=True)

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


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU runs everything")
@pytest.mark.usefixtures("nan_memory")
class TestTritonInterpreted:
    """What the kernels are held to where there is no GPU: each way through them once, over few positions."""

    @pytest.fixture(autouse=True)
    def _available(self):
        skip_unless_available(PACKAGE, "triton", "cpu", torch.float32)

    @pytest.mark.parametrize("length", [1, 2, 9])
    def test_lengths(self, length):
        hold(make_arguments(1, length, 5, 3, dtype=torch.float32), "triton", delta_softplus=True)

    def test_segments(self, monkeypatch):
        monkeypatch.setattr(triton.triton_plan, "SEGMENT", 4)
        arguments = make_arguments(1, 10, 5, 3, dtype=torch.float32)
        assert triton.plan(arguments["u"], 3, "backward").n_chunks == 1
        hold(arguments, "triton", delta_softplus=True)

    @pytest.mark.parametrize("d_state", [1, 16, 33, 256])
    def test_state_sizes(self, d_state):
        hold(make_arguments(1, 5, 5, d_state, dtype=torch.float32), "triton")

    @pytest.mark.parametrize("d_inner", [1, 32, 70])
    def test_channels(self, d_inner):
        hold(make_arguments(2, 3, d_inner, 16, dtype=torch.float32), "triton")

    @pytest.mark.parametrize("option", [None, *OPTIONS])
    def test_options(self, option):
        options = () if option is None else (option,)
        hold(make_arguments(1, 5, 5, 3, dtype=torch.float32, options=options), "triton")

    @pytest.mark.parametrize("dtype", HALF, ids=str)
    def test_dtypes(self, dtype):
        hold(make_arguments(1, 9, 7, 4, dtype=dtype), "triton", delta_softplus=True)

    @pytest.mark.parametrize("layout", ["interleaved", "transposed", "expanded"])
    def test_strided_arguments(self, layout):
        arguments = make_arguments(2, 3, 5, 3, dtype=torch.float32)
        hold({name: restrided(tensor, layout) for name, tensor in arguments.items()}, "triton")

    @pytest.mark.parametrize("steps", ["huge", "tiny", "mixed"])
    def test_adversarial_steps(self, steps):
        arguments = make_arguments(1, 7, 5, 3, dtype=torch.float32, steps=steps)
        hold(arguments | {"delta_bias": torch.zeros_like(arguments["delta_bias"])}, "triton")

    def test_packed_sequences(self):
        hold_packed(make_arguments(2, 9, 5, 3, dtype=torch.float32), [{1, 2, 6}, {8}], "triton")

    def test_a_cut_with_the_state_carried_changes_nothing(self):
        hold_cut(make_arguments(1, 9, 5, 3, dtype=torch.float32), "triton", cut=5)

    @pytest.mark.parametrize(("segment", "d_state"), [(4, 3), (8, 16)])
    @pytest.mark.parametrize("packed", [False, True])
    def test_chunks(self, segment, d_state, packed, monkeypatch):
        """The state is handed from chunk to chunk, two segments each; one packed sequence begins where a chunk does.

        With 3 states positions go one by one, with 16 four at a time: a segment is several such groups.
        """
        monkeypatch.setattr(triton.triton_plan, "SEGMENT", segment)
        monkeypatch.setattr(triton.triton_plan, "SHORTEST_CHUNK", 2 * segment)
        length = 4 * segment + segment // 2 + 1
        arguments = make_arguments(1, length, 5, d_state, dtype=torch.float32)
        assert triton.plan(arguments["u"], d_state, "forward").n_chunks == 3
        if packed:
            hold_packed(arguments, [{segment + 2, 4 * segment, length - 1}], "triton", deterministic=True)
        else:
            hold(arguments, "triton", delta_softplus=True)


class StorageCounter(TorchDispatchMode):
    """Counts the bytes of all storages that operations allocate: alive together at most, and the largest."""

    def __init__(self, known: list[Tensor]):
        super().__init__()
        self.alive = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self.peak = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.count(tensor.untyped_storage())
        return result

    def count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self.alive:
            return
        self.alive[storage._cdata] = storage.nbytes()
        weakref.finalize(storage, self.alive.pop, storage._cdata)
        self.peak = max(self.peak, sum(self.alive.values()))
        self.largest = max(self.largest, storage.nbytes())


class TestParallel:
    @pytest.mark.parametrize("chunk", [1, 2, 3, 16, 17, 18, 33, 50, 64, 100, 131, 200])
    @pytest.mark.usefixtures("nan_memory")
    def test_every_chunk_length_gives_the_same(self, chunk, monkeypatch):
        monkeypatch.setattr(parallel, "SHORTEST_CHUNK", 1)
        set_chunk(monkeypatch, chunk * 2 * 5 * 3)
        compare(make_arguments(2, 131, 5, 3), "parallel", delta_softplus=True)

    @pytest.mark.parametrize("steps", ["huge", "tiny", "mixed"])
    @pytest.mark.usefixtures("nan_memory")
    def test_pairs_survive_adversarial_steps(self, steps):
        compare(make_arguments(2, 301, 5, 3, dtype=torch.float32, steps=steps), "parallel")

    def test_memory_is_that_of_boundaries_and_one_chunk(self):
        batch, d_inner, d_state, chunk = 2, 32, 16, 256
        chunk_elements = chunk * batch * d_inner * d_state
        peaks = {}
        for length in (1024, 2048):
            with pytest.MonkeyPatch.context() as patch:
                set_chunk(patch, chunk_elements)
                arguments = make_arguments(batch, length, d_inner, d_state, dtype=torch.float32)
                leaves = {name: tensor.requires_grad_() for name, tensor in arguments.items()}
                with StorageCounter(list(leaves.values())) as counter:
                    selective_scan(**leaves, delta_softplus=True, backend="parallel").sum().backward()
            expansion = 4 * batch * length * d_inner * d_state
            boundaries = expansion // chunk
            linear = 4 * batch * length * d_inner
            assert counter.peak <= 8 * linear + boundaries + 5 * 4 * chunk_elements
            assert counter.largest <= max(2.1 * 4 * chunk_elements, linear)
            peaks[length] = counter.peak
        growth = 8 * linear // 2 + boundaries // 2
        assert 0 < peaks[2048] - peaks[1024] <= growth

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("gate", [False, True])
    def test_saves_its_arguments_and_boundaries(self, dtype, gate, monkeypatch):
        set_chunk(monkeypatch, 16 * 2 * 5 * 3)
        options = ("D", "z", "delta_bias") if gate else ()
        arguments = make_arguments(2, 64, 5, 3, dtype=dtype, options=options)
        leaves = {name: tensor.requires_grad_() for name, tensor in arguments.items()}
        saved: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            saved.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            selective_scan(**leaves, delta_softplus=True, backend="parallel")
        given = {tensor.data_ptr() for tensor in leaves.values()}
        new = sorted((tuple(t.shape), t.dtype) for t in saved if t.data_ptr() not in given)
        assert new == [((4, 2, 3, 5), torch.float32)]

    def test_needs_no_matrix_product(self):
        leaves = {name: tensor.requires_grad_() for name, tensor in make_arguments(2, 40, 5, 3).items()}
        with FlopCounterMode(display=False) as counter:
            selective_scan(**leaves, backend="parallel").sum().backward()
        assert counter.get_total_flops() == 0


class TestContract:
    @pytest.mark.parametrize(
        ("name", "shape", "expected"),
        [
            ("u", (2, 5), r"\(batch, length, d_inner\) = \(at least 1, at least 1, at least 1\)"),
            ("u", (2, 0, 3), r"\(batch, length, d_inner\) = \(at least 1, at least 1, at least 1\)"),
            ("delta", (2, 5, 4), r"\(batch, length, d_inner\) = \(2, 5, 3\)"),
            ("A", (4, 3), r"\(d_inner, d_state\) = \(3, at least 1\)"),
            ("A", (3, 0), r"\(d_inner, d_state\) = \(3, at least 1\)"),
            ("B", (2, 5, 3), r"\(batch, length, d_state\) = \(2, 5, 4\)"),
            ("C", (2, 4, 5), r"\(batch, length, d_state\) = \(2, 5, 4\)"),
            ("D", (3, 1), r"\(d_inner\) = \(3\)"),
            ("z", (1, 5, 3), r"\(batch, length, d_inner\) = \(2, 5, 3\)"),
            ("delta_bias", (5,), r"\(d_inner\) = \(3\)"),
            ("initial_state", (2, 4, 3), r"\(batch, d_inner, d_state\) = \(2, 3, 4\)"),
        ],
    )
    def test_a_wrong_shape_is_named(self, name, shape, expected):
        arguments = make_arguments(2, 5, 3, 4) | {name: torch.zeros(shape)}
        spelled = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        with pytest.raises(ValueError, match=rf"^{name} has shape \({spelled}\), expected {expected}$"):
            selective_scan(**arguments)

    def test_every_tensor_or_none_is_float64(self):
        arguments = make_arguments(2, 5, 3, 4, dtype=torch.float32)
        with pytest.raises(ValueError, match=r"^A is torch.float64 but u is torch.float32: expected"):
            selective_scan(**arguments | {"A": arguments["A"].double()})

    def test_integers_are_refused(self):
        arguments = make_arguments(2, 5, 3, 4)
        with pytest.raises(ValueError, match=r"^u is torch.int64, expected one of torch.float64"):
            selective_scan(**arguments | {"u": arguments["u"].long()})

    def test_another_device_is_refused(self):
        arguments = make_arguments(2, 5, 3, 4)
        with pytest.raises(ValueError, match=r"^B is on meta, expected cpu like u$"):
            selective_scan(**arguments | {"B": arguments["B"].to("meta")})

    def test_the_state_has_the_accumulation_dtype(self):
        arguments = make_arguments(2, 5, 3, 4, dtype=torch.bfloat16)
        half = {"initial_state": arguments["initial_state"].bfloat16()}
        with pytest.raises(ValueError, match=r"^initial_state is torch.bfloat16, expected torch.float32$"):
            selective_scan(**arguments | half)

    @pytest.mark.parametrize(
        ("seq_idx", "message"),
        [
            (
                torch.zeros(2, 4, dtype=torch.int32),
                r"seq_idx has shape \(2, 4\), expected \(batch, length\) = \(2, 5\)",
            ),
            (torch.zeros(2, 5), r"seq_idx is torch.float32, expected one of torch.int8, "),
            (torch.zeros(2, 5, dtype=torch.int32, device="meta"), r"seq_idx is on meta, expected cpu like u"),
        ],
    )
    def test_a_wrong_seq_idx_is_named(self, seq_idx, message):
        with pytest.raises(ValueError, match=rf"^{message}"):
            selective_scan(**make_arguments(2, 5, 3, 4), seq_idx=seq_idx)

    def test_a_step_holds_the_same_contract(self):
        x, state = torch.zeros(2, 3), torch.zeros(2, 3, 4)
        A, B = torch.zeros(3, 4), torch.zeros(2, 4)
        with pytest.raises(ValueError, match=r"^C has shape \(2, 5\), expected \(batch, d_state\) = \(2, 4\)$"):
            selective_state_update(state, x, x, A, B, torch.zeros(2, 5))
        with pytest.raises(ValueError, match=r"^state has shape \(2, 3, 5\), expected .* = \(2, 3, 4\)$"):
            selective_state_update(torch.zeros(2, 3, 5), x, x, A, B, B)
        with pytest.raises(ValueError, match=r"^state is torch.float16, expected torch.float32$"):
            selective_state_update(state.half(), x.half(), x.half(), A, B, B)


class TestBackendChoice:
    def test_auto_takes_the_first_that_can_run(self, monkeypatch):
        assert resolve_backend("auto", "cpu", torch.float32) == "cpu"
        assert resolve_backend("auto", "cpu", torch.float64) == "parallel"
        assert resolve_backend("auto", "meta", torch.float32) == "parallel"
        monkeypatch.setattr(parallel, "why_unavailable", lambda device, dtype: "no day for it")
        assert resolve_backend("auto", torch.device("cpu"), torch.float64) == "reference"

    def test_auto_never_takes_the_interpreter(self, monkeypatch):
        monkeypatch.setattr(triton, "why_unavailable", lambda device, dtype: None)
        monkeypatch.setattr(cpu, "why_unavailable", lambda device, dtype: "not today")
        assert resolve_backend("triton", "cpu", torch.float32) == "triton"
        assert resolve_backend("auto", "cpu", torch.float32) == "parallel"

    @every_backend
    def test_a_name_means_itself(self, backend):
        skip_unless_available(PACKAGE, backend, "cpu", torch.float32)
        assert resolve_backend(backend, "cpu", torch.float32) == backend

    def test_an_unknown_name_lists_the_names(self):
        with pytest.raises(ValueError, match=r"selective_scan has no backend 'fast'; choose one of auto, .*reference"):
            selective_scan(**make_arguments(1, 1, 1, 1), backend="fast")

    def test_a_backend_that_cannot_run_says_why(self, monkeypatch):
        monkeypatch.setattr(parallel, "why_unavailable", lambda device, dtype: f"no {dtype} on {device.type}")
        message = r"backend='parallel' cannot run on cpu with torch.float64 \(parallel: no torch.float64 on cpu\)"
        with pytest.raises(ValueError, match=message):
            selective_scan(**make_arguments(1, 1, 1, 1), backend="parallel")

    def test_the_function_and_its_package_share_a_name(self):
        assert callable(import_module("seqlab.ops").selective_scan)
        assert import_module(PACKAGE).selective_scan is selective_scan


class Counted:
    """A number that counts what is done with it."""

    operations = 0

    @classmethod
    def of_operation(cls, *_) -> "Counted":
        cls.operations += 1
        return cls()

    __add__ = __mul__ = exp = of_operation


def test_flops_count_every_operation_of_the_equations(monkeypatch):
    monkeypatch.setattr(Counted, "operations", 0)
    batch, length, d_inner, d_state = 2, 3, 5, 4
    for _ in range(batch * length * d_inner):
        u, delta = Counted(), Counted()
        drive = delta * u
        products = []
        for _ in range(d_state):
            A, B, C, h = Counted(), Counted(), Counted(), Counted()
            h = (delta * A).exp() * h + drive * B
            products.append(C * h)
        y = products[0]
        for product in products[1:]:
            y = y + product
    assert selective_scan_flops(batch, length, d_inner, d_state) == Counted.operations


def test_uninitialised_memory_is_seen(nan_memory):
    assert torch.empty(3).isnan().all()
    assert torch.ones(2).new_empty(3).isnan().all()
    assert torch.empty_like(torch.ones(2)).isnan().all()
