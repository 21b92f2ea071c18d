"""The causal convolution: the reference against NumPy's, every backend against the reference."""

import math
from functools import partial
from importlib import import_module

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
    weighted_sum,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqlab.ops import causal_conv1d, causal_conv1d_update, triton_support
from seqlab.ops.causal_conv1d import BACKENDS, cpu, resolve_backend, torch_conv, triton
from seqlab.ops.causal_conv1d.operator import FUSED

PACKAGE = "seqlab.ops.causal_conv1d"
HALF = (torch.bfloat16, torch.float16)

every_backend = pytest.mark.parametrize("backend", backends_in(PACKAGE))
every_fused_backend = pytest.mark.parametrize("backend", FUSED)
every_device = pytest.mark.parametrize("device", DEVICES)
kernel_test = pytest.mark.usefixtures("nan_memory")


def make_arguments(
    batch: int,
    length: int,
    d_inner: int,
    d_conv: int,
    *,
    dtype: torch.dtype = torch.float64,
    bias: bool = True,
    initial_state: bool = True,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Random arguments; parameters at least float32, rounded to dtype."""
    torch.manual_seed(0)
    wide = torch.float32 if dtype in HALF else dtype
    arguments = {
        "x": torch.randn(batch, length, d_inner).to(dtype),
        "weight": torch.randn(d_inner, d_conv).to(dtype).to(wide),
        "bias": torch.randn(d_inner).to(dtype).to(wide),
        "initial_state": torch.randn(batch, d_conv - 1, d_inner).to(dtype),
    }
    absent = {name for name, present in (("bias", bias), ("initial_state", initial_state)) if not present}
    return {name: tensor.to(device) for name, tensor in arguments.items() if name not in absent}


def compare(arguments: dict[str, Tensor], backend: str, **settings) -> None:
    """Hold a backend to the float64 reference in outputs, final state and every gradient."""
    dtype = arguments["x"].dtype
    skip_unless_available(PACKAGE, backend, arguments["x"].device.type, dtype)
    expected = results(causal_conv1d, doubled(arguments), backend="reference", **settings)
    assert_all_close(results(causal_conv1d, arguments, backend=backend, **settings), expected, dtype)


def convolve_separately(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    cuts: list[set[int]],
    initial_state: Tensor | None = None,
    return_final_state: bool,
    **settings,
) -> tuple[Tensor, Tensor]:
    """What packed sequences are held to: each by itself, the first of a row from the initial state."""
    assert return_final_state
    rows = []
    for b, row in enumerate(cuts):
        before = None if initial_state is None else initial_state[b : b + 1]
        outputs = []
        for part in x[b : b + 1].tensor_split(sorted(row), dim=1):
            y, state = causal_conv1d(
                part, weight, bias, initial_state=before, return_final_state=True, backend="reference", **settings
            )
            outputs.append(y)
            before = None
        rows.append((torch.cat(outputs, dim=1), state))
    ys, states = zip(*rows, strict=True)
    return torch.cat(ys), torch.cat(states)


def compare_packed(arguments: dict[str, Tensor], cuts: list[set[int]], backend: str, **settings) -> None:
    """Hold packed sequences to the same sequences one by one, in outputs, final state and every gradient."""
    x = arguments["x"]
    skip_unless_available(PACKAGE, backend, x.device.type, x.dtype)
    seq_idx = numbered(cuts, x.shape[1]).to(x.device)
    expected = results(convolve_separately, doubled(arguments), cuts=cuts, **settings)
    actual = results(causal_conv1d, arguments, seq_idx=seq_idx, backend=backend, **settings)
    assert_all_close(actual, expected, x.dtype)


@pytest.mark.parametrize("d_conv", [1, 2, 4])
def test_the_reference_equals_numpy(d_conv):
    arguments = make_arguments(2, 9, 3, d_conv)
    y, state = causal_conv1d(**arguments, return_final_state=True, backend="reference")
    x, weight, bias, before = (arguments[name].numpy() for name in ("x", "weight", "bias", "initial_state"))
    window = np.concatenate([before, x], axis=1)
    for batch in range(2):
        for channel in range(3):
            expected = np.convolve(window[batch, :, channel], weight[channel, ::-1], mode="valid") + bias[channel]
            np.testing.assert_allclose(y[batch, :, channel].numpy(), expected, rtol=1e-12)
    np.testing.assert_array_equal(state.numpy(), window[:, 9:])


class TestEveryBackend:
    def test_the_order_lists_every_file(self):
        assert sorted(BACKENDS) == sorted(backends_in(PACKAGE))

    @every_device
    @every_backend
    @pytest.mark.parametrize("activation", [None, "silu"])
    @pytest.mark.parametrize("d_conv", [1, 2, 3, 4, 7])
    @pytest.mark.parametrize("length", [1, 2, 3, 7, 131])
    @kernel_test
    def test_lengths_and_taps(self, backend, device, length, d_conv, activation):
        arguments = make_arguments(2, length, 5, d_conv, dtype=torch.float32, device=device)
        compare(arguments, backend, activation=activation)

    @every_device
    @every_backend
    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("initial_state", [False, True])
    @pytest.mark.parametrize("length", [2, 17])
    @kernel_test
    def test_options(self, backend, device, bias, initial_state, length):
        arguments = make_arguments(
            2, length, 5, 4, dtype=torch.float32, bias=bias, initial_state=initial_state, device=device
        )
        compare(arguments, backend)

    @every_device
    @every_backend
    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("length", [1, 131])
    @kernel_test
    def test_dtypes(self, backend, device, dtype, length):
        compare(make_arguments(3, length, 7, 4, dtype=dtype, device=device), backend, activation="silu")

    @every_device
    @every_backend
    @pytest.mark.parametrize("layout", ["interleaved", "transposed", "expanded"])
    @kernel_test
    def test_strided_arguments(self, backend, device, layout):
        arguments = make_arguments(2, 29, 5, 4, dtype=torch.float32, device=device)
        arguments = {name: restrided(tensor, layout) for name, tensor in arguments.items()}
        compare(arguments, backend, activation="silu")

    @every_device
    @every_backend
    @pytest.mark.parametrize("cut", [1, 2, 10, 16])
    @kernel_test
    def test_a_cut_with_the_state_carried_changes_nothing(self, backend, device, cut):
        skip_unless_available(PACKAGE, backend, device, torch.float32)
        arguments = make_arguments(2, 17, 5, 4, dtype=torch.float32, device=device)
        whole = results(causal_conv1d, arguments, backend=backend, activation="silu")
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in arguments.items()}
        state, outputs = leaves["initial_state"], []
        for part in (leaves["x"][:, :cut], leaves["x"][:, cut:]):
            y, state = causal_conv1d(
                part,
                leaves["weight"],
                leaves["bias"],
                activation="silu",
                initial_state=state,
                return_final_state=True,
                backend=backend,
            )
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
        sizes=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 6), st.integers(1, 6)),
        bias=st.booleans(),
        initial_state=st.booleans(),
    )
    @kernel_test
    def test_any_shape(self, backend, sizes, bias, initial_state):
        arguments = make_arguments(*sizes, dtype=torch.float32, bias=bias, initial_state=initial_state)
        compare(arguments, backend, activation="silu")

    @every_backend
    def test_gradcheck(self, backend):
        skip_unless_available(PACKAGE, backend, "cpu", torch.float64)
        arguments = {name: tensor.requires_grad_() for name, tensor in make_arguments(2, 5, 3, 4).items()}

        def conv(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            named = dict(zip(arguments, tensors, strict=True))
            return causal_conv1d(**named, activation="silu", return_final_state=True, backend=backend)

        assert torch.autograd.gradcheck(conv, tuple(arguments.values()))

    @every_device
    @every_backend
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("d_conv", [1, 2, 4])
    @pytest.mark.parametrize("activation", [None, "silu"])
    @kernel_test
    def test_steps_follow_the_sequence(self, backend, device, dtype, d_conv, activation):
        skip_unless_available(PACKAGE, backend, device, dtype)
        arguments = make_arguments(2, 9, 5, d_conv, dtype=dtype, device=device)
        expected_y, expected_state = causal_conv1d(
            **arguments, activation=activation, return_final_state=True, backend=backend
        )
        state, outputs = arguments["initial_state"], []
        before = state.clone()
        for x in arguments["x"].unbind(1):
            y, state = causal_conv1d_update(state, x, arguments["weight"], arguments["bias"], activation=activation)
            assert y.dtype == state.dtype == dtype
            outputs.append(y)
        assert torch.equal(before, arguments["initial_state"])
        assert torch.equal(state, expected_state)
        assert_all_close({"y": torch.stack(outputs, dim=1)}, {"y": expected_y}, dtype)

    @every_backend
    def test_autocast_changes_nothing(self, backend):
        skip_unless_available(PACKAGE, backend, "cpu", torch.float32)
        arguments = make_arguments(2, 29, 5, 4, dtype=torch.float32)
        expected = results(causal_conv1d, arguments, backend=backend, activation="silu")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = results(causal_conv1d, arguments, backend=backend, activation="silu")
        for name in expected:
            assert torch.equal(actual[name], expected[name]), name

    @every_backend
    def test_the_state_keeps_nothing_else_alive(self, backend):
        arguments = make_arguments(2, 100, 5, 4, dtype=torch.float32)
        _, state = causal_conv1d(**arguments, return_final_state=True, backend=backend)
        assert state.untyped_storage().nbytes() == state.numel() * state.element_size()

    @every_device
    @every_backend
    @kernel_test
    def test_a_chunk_of_a_wider_tensor(self, backend, device):
        arguments = make_arguments(2, 29, 16, 4, dtype=torch.float32, device=device)
        x = arguments["x"]
        arguments["x"] = torch.cat([x, x], dim=2).chunk(2, dim=2)[1]
        compare(arguments, backend, activation="silu")

    @every_device
    @every_backend
    @kernel_test
    def test_channels_beyond_one_tile(self, backend, device):
        compare(make_arguments(1, 20, 150, 4, dtype=torch.float32, device=device), backend, activation="silu")

    @every_device
    @every_backend
    @pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # of Triton's interpreter
    @kernel_test
    def test_the_activation_far_out(self, backend, device):
        arguments = make_arguments(2, 29, 5, 4, dtype=torch.float32, device=device)
        compare(arguments | {"x": 100 * arguments["x"]}, backend, activation="silu")
        far = torch.full((1, 5, 3), -1e30, device=device)
        assert not causal_conv1d(far, torch.ones(3, 4, device=device), activation="silu", backend=backend).any()

    @every_backend
    @pytest.mark.parametrize("packed", [False, True])
    def test_compiles(self, backend, packed):
        skip_unless_available(PACKAGE, backend, "cpu", torch.float32)
        arguments = make_arguments(2, 9, 3, 4, dtype=torch.float32)
        settings = {"backend": backend, "activation": "silu", "seq_idx": numbered([{4}, {2, 5}], 9) if packed else None}
        compiled = torch.compile(causal_conv1d, backend="aot_eager", fullgraph=True)
        expected = results(causal_conv1d, arguments, **settings)
        assert_all_close(results(compiled, arguments, **settings), expected, torch.float32)

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("backend", backends_in(PACKAGE))
    def test_parameters_in_float32_get_a_gradient_summed_in_float32(self, backend, dtype, device):
        skip_unless_available(PACKAGE, backend, device, dtype)
        if backend == "triton" and device == "cpu" and dtype == torch.bfloat16:
            pytest.skip("the interpreter rounds bfloat16 wrongly")
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, 2048, 3, generator=generator).to(device, dtype)
        dy = torch.randn(2, 2048, 3, generator=generator).to(device, dtype)
        weight, bias = torch.randn(3, 4, generator=generator).to(device), torch.zeros(3, device=device)

        def gradients(x: Tensor, weight: Tensor, bias: Tensor, backend: str) -> dict[str, Tensor]:
            leaves = {"weight": weight.requires_grad_(), "bias": bias.requires_grad_()}
            y = causal_conv1d(x, **leaves, backend=backend)
            return dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), dy.to(y.dtype)), strict=True))

        expected = gradients(x.double(), weight.double(), bias.double(), "reference")
        assert_all_close(gradients(x, weight, bias, backend), expected, dtype, tolerance=1e-5)


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


class TestContract:
    @pytest.mark.parametrize(
        ("name", "shape", "expected"),
        [
            ("x", (2, 0, 3), r"\(batch, length, d_inner\) = \(at least 1, at least 1, at least 1\)"),
            ("x", (2, 3), r"\(batch, length, d_inner\) = \(at least 1, at least 1, at least 1\)"),
            ("weight", (4, 3), r"\(d_inner, d_conv\) = \(3, at least 1\)"),
            ("weight", (3, 0), r"\(d_inner, d_conv\) = \(3, at least 1\)"),
            ("bias", (4,), r"\(d_inner\) = \(3\)"),
            ("initial_state", (2, 4, 3), r"\(batch, d_conv - 1, d_inner\) = \(2, 3, 3\)"),
        ],
    )
    def test_a_wrong_shape_is_named(self, name, shape, expected):
        arguments = make_arguments(2, 5, 3, 4) | {name: torch.zeros(shape)}
        spelled = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        with pytest.raises(ValueError, match=rf"^{name} has shape \({spelled}\), expected {expected}$"):
            causal_conv1d(**arguments)

    def test_an_unknown_activation_is_refused(self):
        arguments = make_arguments(2, 5, 3, 4)
        with pytest.raises(ValueError, match=r"^activation is 'relu', expected None or 'silu'$"):
            causal_conv1d(**arguments, activation="relu")
        state, x = arguments["initial_state"], arguments["x"][:, 0]
        with pytest.raises(ValueError, match=r"^activation is 'relu', expected None or 'silu'$"):
            causal_conv1d_update(state, x, arguments["weight"], activation="relu")

    def test_every_tensor_or_none_is_float64(self):
        arguments = make_arguments(2, 5, 3, 4)
        with pytest.raises(ValueError, match=r"^weight is torch.float32 but x is torch.float64: expected"):
            causal_conv1d(**arguments | {"weight": arguments["weight"].float()})

    @pytest.mark.parametrize(
        ("seq_idx", "message"),
        [
            (
                torch.zeros(2, 4, dtype=torch.int32),
                r"seq_idx has shape \(2, 4\), expected \(batch, length\) = \(2, 5\)",
            ),
            (torch.zeros(2, 5), r"seq_idx is torch.float32, expected one of torch.int8, "),
            (torch.zeros(2, 5, dtype=torch.int32, device="meta"), r"seq_idx is on meta, expected cpu like x"),
        ],
    )
    def test_a_wrong_seq_idx_is_named(self, seq_idx, message):
        with pytest.raises(ValueError, match=rf"^{message}"):
            causal_conv1d(**make_arguments(2, 5, 3, 4), seq_idx=seq_idx)

    def test_a_step_holds_the_same_contract(self):
        weight = torch.zeros(3, 4)
        with pytest.raises(ValueError, match=r"^state has shape \(2, 4, 3\), expected .* = \(2, 3, 3\)$"):
            causal_conv1d_update(torch.zeros(2, 4, 3), torch.zeros(2, 3), weight)
        with pytest.raises(ValueError, match=r"^x has shape \(2, 5, 3\), expected \(batch, d_inner\) = "):
            causal_conv1d_update(torch.zeros(2, 3, 3), torch.zeros(2, 5, 3), weight)


class TestBackendChoice:
    def test_auto_takes_the_first_that_can_run(self, monkeypatch):
        assert resolve_backend("auto", "cpu", torch.float32) == "cpu"
        assert resolve_backend("auto", "cpu", torch.float64) == "torch_conv"
        assert resolve_backend("auto", "meta", torch.float32) == "torch_conv"
        monkeypatch.setattr(torch_conv, "why_unavailable", lambda device, dtype: "no day for it")
        assert resolve_backend("auto", "cpu", torch.float64) == "reference"

    def test_auto_never_takes_the_interpreter(self, monkeypatch):
        monkeypatch.setattr(triton, "why_unavailable", lambda device, dtype: None)
        monkeypatch.setattr(cpu, "why_unavailable", lambda device, dtype: "not today")
        assert resolve_backend("triton", "cpu", torch.float32) == "triton"
        assert resolve_backend("auto", "cpu", torch.float32) == "torch_conv"

    @pytest.mark.parametrize(("module", "asks", "package"), [(cpu, cpu, "numba"), (triton, triton_support, "triton")])
    def test_a_missing_package_is_named(self, monkeypatch, module, asks, package):
        monkeypatch.setattr(asks, "find_spec", lambda name: None)
        reason = module.why_unavailable(torch.device("cpu"), torch.float32)
        assert reason == f"the package {package} is not installed"
        assert resolve_backend("auto", "cpu", torch.float32) in ("cpu", "torch_conv")

    def test_an_unknown_name_lists_the_names(self):
        with pytest.raises(ValueError, match=r"causal_conv1d has no backend 'fast'; choose one of auto, .*reference"):
            causal_conv1d(**make_arguments(1, 1, 1, 1), backend="fast")

    def test_a_backend_that_cannot_run_says_why(self, monkeypatch):
        monkeypatch.setattr(torch_conv, "why_unavailable", lambda device, dtype: "not today")
        with pytest.raises(ValueError, match=r"backend='torch_conv' cannot run on cpu .*\(torch_conv: not today\)"):
            causal_conv1d(**make_arguments(1, 1, 1, 1), backend="torch_conv")

    def test_the_function_and_its_package_share_a_name(self):
        assert import_module("seqlab.ops").causal_conv1d is import_module(PACKAGE).causal_conv1d
