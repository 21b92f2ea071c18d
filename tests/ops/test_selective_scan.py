"""The selective scan: the reference against closed forms, every backend against the reference."""

import itertools
import math
import weakref
from importlib import import_module

import numpy as np
import pytest
import torch
from comparison import (
    DEVICES,
    assert_all_close,
    backends_in,
    doubled,
    named_gradients,
    restrided,
    results,
    skip_unless_available,
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

PACKAGE = "seqlab.ops.selective_scan"
OPTIONS = ("D", "z", "delta_bias", "initial_state")
HALF = (torch.bfloat16, torch.float16)


def step_sizes(kind: str, *shape: int) -> Tensor:
    """Step sizes as a model has them, or such as break a scan that divides by its decays."""
    if kind == "huge":  # every decay underflows, in float64 too
        return 1e4 * (1 + torch.rand(shape))
    if kind == "tiny":  # no decay is told from one
        return 1e-7 * (1 + torch.rand(shape))
    if kind == "mixed":
        return 10 ** (torch.rand(shape) * 8 - 6)
    return torch.rand(shape)


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


def compare(arguments: dict[str, Tensor], backend: str, **settings) -> None:
    """Hold a backend to the float64 reference in outputs, final state and every gradient."""
    dtype = arguments["u"].dtype
    skip_unless_available(PACKAGE, backend, arguments["u"].device.type, dtype)
    expected = results(selective_scan, doubled(arguments), backend="reference", **settings)
    assert_all_close(results(selective_scan, arguments, backend=backend, **settings), expected, dtype)


def set_chunk(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    monkeypatch.setattr(parallel, "CHUNK_ELEMENTS", dict.fromkeys(parallel.CHUNK_ELEMENTS, elements))


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 13 positions at (batch, d_inner, d_state) = (2, 5, 3), 40 at N = 1, and 8, the fewest, at N = 16."""
    set_chunk(monkeypatch, 400)


every_backend = pytest.mark.parametrize("backend", backends_in(PACKAGE))
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


class TestEveryBackend:
    def test_the_order_lists_every_file(self):
        assert sorted(BACKENDS) == sorted(backends_in(PACKAGE))

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
    @kernel_test
    def test_adversarial_steps(self, backend, device, steps, dtype):
        arguments = make_arguments(2, 131, 5, 3, dtype=dtype, steps=steps, device=device)
        compare(arguments | {"delta_bias": torch.zeros_like(arguments["delta_bias"])}, backend)

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
        skip_unless_available(PACKAGE, backend, device, torch.float32)

        def gradients(arguments, backend):
            leaves = {name: tensor.requires_grad_() for name, tensor in arguments.items()}
            out = selective_scan(**leaves, return_final_state=True, backend=backend)[output]
            found = torch.autograd.grad(out.sum(), list(leaves.values()), allow_unused=True)
            return {
                name: torch.zeros_like(leaf) if gradient is None else gradient
                for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
            }

        arguments = make_arguments(2, 29, 5, 3, dtype=torch.float32, device=device)
        expected = gradients(doubled(arguments), "reference")
        assert_all_close(gradients(arguments, backend), expected, torch.float32)

    @every_device
    @every_backend
    @pytest.mark.parametrize("differentiable", ["u", "A", "z", "initial_state"])
    @kernel_test
    def test_gradient_of_one_argument_alone(self, backend, device, differentiable):
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        arguments = make_arguments(2, 29, 5, 3, dtype=torch.float32, device=device)
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
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        arguments = make_arguments(2, 41, 5, 3, dtype=torch.float32, device=device)
        whole = results(selective_scan, arguments, backend=backend, delta_softplus=True)
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in arguments.items()}
        state, outputs = leaves["initial_state"], []
        for span in (slice(0, cut), slice(cut, None)):
            part = {
                name: leaf[:, span] if name in ("u", "delta", "B", "C", "z") else leaf for name, leaf in leaves.items()
            }
            part["initial_state"] = state
            y, state = selective_scan(**part, delta_softplus=True, return_final_state=True, backend=backend)
            outputs.append(y)
        y = torch.cat(outputs, dim=1)
        gradients = torch.autograd.grad(weighted_sum((y, state)), list(leaves.values()))
        halves = {"y": y, "state": state, **named_gradients(leaves, gradients)}
        assert_all_close(halves, whole, torch.float32)

    @every_backend
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

    @every_backend
    def test_gradcheck(self, backend, monkeypatch):
        skip_unless_available(PACKAGE, backend, "cpu", torch.float64)
        set_chunk(monkeypatch, 1)
        monkeypatch.setattr(parallel, "SHORTEST_CHUNK", 3)
        arguments = {name: tensor.requires_grad_() for name, tensor in make_arguments(2, 7, 2, 2).items()}

        def scan(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            named = dict(zip(arguments, tensors, strict=True))
            return selective_scan(**named, delta_softplus=True, return_final_state=True, backend=backend)

        assert torch.autograd.gradcheck(scan, tuple(arguments.values()))

    @every_device
    @every_backend
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @kernel_test
    def test_steps_follow_the_scan(self, backend, device, dtype):
        skip_unless_available(PACKAGE, backend, device, dtype)
        arguments = make_arguments(2, 21, 5, 3, dtype=dtype, device=device)
        expected_y, expected_state = selective_scan(
            **arguments, delta_softplus=True, return_final_state=True, backend=backend
        )
        state, outputs = arguments["initial_state"], []
        before = state.clone()
        for t in range(21):
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
        skip_unless_available(PACKAGE, backend, "cpu", torch.float32)
        arguments = make_arguments(2, 29, 5, 3, dtype=torch.float32)
        expected = results(selective_scan, arguments, backend=backend, delta_softplus=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = results(selective_scan, arguments, backend=backend, delta_softplus=True)
        for name in expected:
            assert torch.equal(actual[name], expected[name]), name

    @every_backend
    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # PyTorch's own, after a graph break
    def test_compiles(self, backend):
        skip_unless_available(PACKAGE, backend, "cpu", torch.float32)
        arguments = make_arguments(2, 5, 3, 2, dtype=torch.float32)
        expected = results(selective_scan, arguments, backend=backend, delta_softplus=True)
        leaves = {name: tensor.requires_grad_() for name, tensor in arguments.items()}

        @torch.compile(backend="aot_eager")
        def doubled_scan(leaves):
            return selective_scan(**leaves, delta_softplus=True, backend=backend) * 2

        y = doubled_scan(leaves)
        y.sum().backward()
        assert_all_close({"y": y / 2}, {"y": expected["y"]}, torch.float32)
        assert all(leaf.grad is not None for leaf in leaves.values())


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

    def test_second_derivatives_are_refused(self):
        leaves = {name: tensor.requires_grad_() for name, tensor in make_arguments(1, 3, 2, 2).items()}
        y = selective_scan(**leaves, backend="parallel")
        (du,) = torch.autograd.grad(y.sum(), leaves["u"], create_graph=True)
        with pytest.raises(RuntimeError, match="does not require grad"):
            du.sum().backward()


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
