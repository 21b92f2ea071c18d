"""What holds for every backend of every operator over positions, against the reference and against itself."""

from pkgutil import iter_modules

import pytest
import torch
from comparison import (
    assert_all_close,
    assert_replays,
    assert_same_bits,
    doubled,
    numbered,
    restrided,
    results,
    skip_unless_available,
)
from hypothesis import strategies as st
from operator_table import (
    FUSED,
    OPERATORS,
    every_backend,
    every_cut,
    every_device,
    every_drawn_backend,
    every_fused_backend,
    every_triton_operator,
    kernel_test,
)
from operators import interpreted, of_drawn
from torch import Tensor

import seqlab.ops

NOT_OVER_POSITIONS = {"cross_entropy", "decoding", "linear_cross_entropy", "rms_norm", "routed_experts"}
"""Each has tests of its own."""
OF_OTHERS = {"mamba2_inner", "mamba3_inner", "mamba_inner"}
"""Put together from these, with tests of its own."""


def test_every_operator_has_an_entry():
    packages = {module.name for module in iter_modules(seqlab.ops.__path__) if module.ispkg}
    entries = {operator.name for operator in OPERATORS} | NOT_OVER_POSITIONS | OF_OTHERS
    assert packages == entries, "write an Operator for it and add it to OPERATORS in tests/ops/operator_table.py"


class TestValuesAndGradients:
    @every_device
    @every_backend
    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("length", [None, 1, 13, 131])
    @kernel_test
    def test_dtypes(self, operator, backend, device, dtype, length):
        if length is None:
            arguments = operator.usual(backend, dtype, device)
        else:
            arguments = operator.sized(backend, dtype, device, 3, length, *operator.width)
        operator.compare(arguments, backend, **operator.settings)

    @every_device
    @every_backend
    @pytest.mark.parametrize("layout", ["interleaved", "transposed", "expanded"])
    @kernel_test
    def test_strided_arguments(self, operator, backend, device, layout):
        arguments = operator.sized(backend, torch.float32, device, 2, 29, *operator.width)
        arguments = {name: restrided(tensor, layout) for name, tensor in arguments.items()}
        operator.compare(arguments, backend, **operator.settings)

    @every_drawn_backend
    @kernel_test
    def test_any_shape(self, operator, backend):
        """From 3 channels on: a gradient of one number may be a sum that cancels, too small for float32."""

        def hold(data: st.DataObject) -> None:
            sizes, options = data.draw(operator.any_sizes), data.draw(st.sets(st.sampled_from(operator.options)))
            arguments = operator.make(*sizes, dtype=torch.float32, options=tuple(options))
            operator.compare(arguments, backend, **data.draw(operator.any_settings))

        operator.sized(backend, torch.float32, "cpu", 1, 40, *operator.narrow)  # skips what is too slow
        of_drawn(backend, 40, hold)

    @every_backend
    @pytest.mark.parametrize("packed", [False, True])
    def test_gradcheck(self, operator, backend, packed, monkeypatch):
        operator.shorten_chunks(monkeypatch)
        arguments = operator.sized(backend, torch.float64, "cpu", 2, 7, *operator.narrow)
        arguments = {name: tensor.requires_grad_() for name, tensor in arguments.items()}
        settings = {**operator.settings, "return_final_state": True, "backend": backend}
        settings["seq_idx"] = numbered([{2, 3}, {6}], 7) if packed else None

        def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            return operator.function(**dict(zip(arguments, tensors, strict=True)), **settings)

        assert torch.autograd.gradcheck(function, tuple(arguments.values()))

    @every_device
    @every_backend
    @pytest.mark.parametrize("output", [0, 1], ids=["y", "state"])
    @pytest.mark.parametrize("length", [3, 33])
    @kernel_test
    def test_gradient_of_one_output_alone(self, operator, backend, device, length, output):
        def gradients(arguments: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
            leaves = {name: tensor.requires_grad_() for name, tensor in arguments.items()}
            out = operator.function(**leaves, return_final_state=True, backend=backend)[output]
            found = torch.autograd.grad(out.sum(), list(leaves.values()), materialize_grads=True)
            return dict(zip(leaves, found, strict=True))

        arguments = operator.sized(backend, torch.float32, device, 1, length, *operator.narrow)
        expected = gradients(doubled(arguments), "reference")
        assert_all_close(gradients(arguments, backend), expected, torch.float32)


class TestAgainstItself:
    @every_device
    @every_cut
    @kernel_test
    def test_a_cut_with_the_state_carried_changes_nothing(self, operator, backend, device, cut):
        arguments = operator.sized(backend, torch.float32, device, 2, operator.cut_length, *operator.width)
        operator.hold_cut(arguments, backend, cut)

    @every_device
    @every_backend
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @kernel_test
    def test_steps_follow_the_whole(self, operator, backend, device, dtype):
        operator.hold_steps(operator.usual(backend, dtype, device), backend, **operator.settings)

    @every_backend
    def test_autocast_changes_nothing(self, operator, backend):
        arguments = operator.usual(backend, torch.float32, "cpu")
        expected = results(operator.function, arguments, backend=backend, **operator.settings)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = results(operator.function, arguments, backend=backend, **operator.settings)
        assert_same_bits(actual, expected)

    @every_device
    @every_backend
    @pytest.mark.parametrize("packed", [False, True])
    def test_compiles_without_a_graph_break(self, operator, backend, device, packed):
        if packed and device == "cpu" and backend in FUSED[operator.name]:
            pytest.skip("it compiles for any length, and the compiler is slow; a GPU runs both")
        arguments = operator.sized(backend, torch.float32, device, 1, 2, *operator.narrow)
        settings = {**operator.settings, **operator.reproducible, "backend": backend}
        settings["seq_idx"] = numbered([{1}], 2).to(device) if packed else None
        torch.compiler.reset()  # it compiles one function only so many times
        compiled = torch.compile(operator.function, backend="aot_eager", fullgraph=True)
        expected = results(operator.function, arguments, **settings)
        assert_all_close(results(compiled, arguments, **settings), expected, torch.float32)

    @every_device
    @every_fused_backend
    @pytest.mark.parametrize("packed", [False, True])
    def test_compiles_for_any_length(self, operator, backend, device, packed):
        if device == "cpu" and not packed:
            pytest.skip("it compiles without, and the compiler is slow; a GPU runs both")
        torch.compiler.reset()
        compiled = torch.compile(operator.function, backend="aot_eager", fullgraph=True, dynamic=True)
        for length in (2, 3):
            arguments = operator.sized(backend, torch.float32, device, 1, length, *operator.narrow)
            settings = {**operator.settings, **operator.reproducible, "backend": backend}
            settings["seq_idx"] = numbered([{1}], length).to(device) if packed else None
            expected = results(operator.function, arguments, **settings)
            assert_all_close(results(compiled, arguments, **settings), expected, torch.float32)


class TestRegistered:
    @every_device
    @every_fused_backend
    @pytest.mark.parametrize("options", [False, True])
    def test_opcheck(self, operator, backend, device, options):
        skip_unless_available(operator.package, backend, device, torch.float32)
        if interpreted(backend, device) and not options:
            pytest.skip("the registration is the same, and slow to check; a GPU runs both")
        given = operator.options if options else ()
        batch, length = (1, 2) if interpreted(backend, device) and operator.interpreted_size else (2, 6)
        arguments = operator.make(batch, length, *operator.narrow, dtype=torch.float32, options=given, device=device)
        seq_idx = numbered([{1}, {2, 5}][:batch], length).to(device) if options else None
        forward, backward = operator.operands(arguments, seq_idx, options, backend)
        registered = torch.ops.seqlab
        torch.library.opcheck(getattr(registered, f"{operator.name}_backward").default, backward)
        for tensor in arguments.values():
            tensor.requires_grad_()
        torch.library.opcheck(getattr(registered, operator.name).default, forward)

    @every_fused_backend
    def test_second_derivatives_are_refused(self, operator, backend):
        arguments = operator.sized(backend, torch.float32, "cpu", 1, 3, *operator.narrow)
        first, *_ = leaves = [tensor.requires_grad_() for tensor in arguments.values()]
        y = operator.function(**dict(zip(arguments, leaves, strict=True)), **operator.settings, backend=backend)
        (gradient,) = torch.autograd.grad(y.sum(), first, create_graph=True)
        with pytest.raises(NotImplementedError, match="has no second derivative: use backend="):
            gradient.sum().backward()

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    @pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream")  # of the leaves, used on three streams here
    @every_triton_operator
    def test_cuda_graph_capture(self, operator):
        arguments = operator.make(2, 200, *operator.gpu_width, dtype=torch.bfloat16, device="cuda")
        settings = {**operator.settings, **operator.reproducible, "backend": "triton"}
        settings["seq_idx"] = numbered([{4}, {2, 150}], 200).cuda()
        static = {name: tensor.clone().requires_grad_() for name, tensor in arguments.items()}

        def step() -> list[Tensor]:
            y, state = operator.function(**static, return_final_state=True, **settings)
            return [y, state, *torch.autograd.grad((y, state), list(static.values()), (y.detach(), state.detach()))]

        assert_replays(step, static.values())
