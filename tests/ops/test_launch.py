"""A replayed call gives what the call gives, with other tensors of the same signature."""

import ctypes
import gc
import sys
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from comparison import skip_unless_available
from torch import Tensor

from seqlab.ops import causal_conv1d, launch, selective_scan, ssd
from seqlab.ops.causal_conv1d import triton as conv
from seqlab.ops.recent import Recent

pytestmark = pytest.mark.usefixtures("nan_memory")


def at_addresses(kernel: Any, grid: tuple[int, ...], dtypes: list[torch.dtype | None], *values: Any) -> None:
    """Run a kernel in the interpreter on addresses, which takes tensors alone."""
    memory = [
        value if dtype is None else torch.frombuffer((ctypes.c_byte * dtype.itemsize).from_address(value), dtype=dtype)
        for value, dtype in zip(values, dtypes, strict=True)
    ]
    kernel[grid](*memory)


class InterpretedCall(launch.Call):
    """Records launches of the interpreter too, and counts those that are no repetition."""

    launched = 0

    def launch(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **named: Any) -> None:
        kernel[grid](*arguments, **named)
        InterpretedCall.launched += 1
        given = dict(zip(kernel.arg_names, arguments, strict=False)) | named
        dtypes = [given[name].dtype if isinstance(given[name], Tensor) else None for name in kernel.arg_names]
        self._record(partial(at_addresses, kernel, grid, dtypes), kernel.arg_names, arguments, named)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Calls on the CPU are recorded and done again; gives the number of launches since it was last asked for."""
    skip_unless_available("seqlab.ops.selective_scan", "triton", "cpu", torch.float32)
    monkeypatch.setattr(launch, "Call", InterpretedCall)
    InterpretedCall.launched = 0

    def launched() -> int:
        number, InterpretedCall.launched = InterpretedCall.launched, 0
        return number

    return launched


def numbers(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def scan_arguments(seed: int, options: bool, length: int = 3) -> dict[str, Any]:
    batch, d_inner, d_state = 2, 5, 3
    wide = numbers(batch, length, 2 * d_inner, seed=seed)
    arguments: dict[str, Any] = {"u": wide[..., :d_inner], "delta": numbers(batch, length, d_inner, seed=seed + 1)}
    arguments["A"] = -numbers(d_state, d_inner, seed=seed + 2).t()  # has to be laid out anew
    arguments["B"], arguments["C"] = numbers(batch, length, 2 * d_state, seed=seed + 3).chunk(2, dim=2)
    if options:
        arguments["D"], arguments["delta_bias"] = numbers(d_inner, seed=seed + 4), numbers(d_inner, seed=seed + 5)
        arguments["z"] = wide[..., d_inner:]
        arguments["initial_state"] = numbers(batch, d_inner, d_state, seed=seed + 6)
        arguments["seq_idx"] = torch.arange(length).div(2, rounding_mode="floor").repeat(batch, 1)
    return arguments


def conv_arguments(seed: int, options: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {"x": numbers(2, 9, 5, seed=seed), "weight": numbers(5, 4, seed=seed + 1)}
    if options:
        arguments["bias"], arguments["activation"] = numbers(10, seed=seed + 2)[::2], "silu"
        arguments["initial_state"] = numbers(2, 3, 5, seed=seed + 3)
        arguments["seq_idx"] = torch.arange(9).div(4, rounding_mode="floor").repeat(2, 1)
    return arguments


def ssd_arguments(seed: int, options: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {"x": numbers(1, 5, 2, 4, seed=seed), "dt": numbers(1, 5, 2, seed=seed + 1)}
    arguments |= {"A": -numbers(2, seed=seed + 2), "B": numbers(1, 5, 1, 3, seed=seed + 3)}
    arguments["C"] = numbers(1, 5, 3, 1, seed=seed + 4).mT  # has to be laid out anew
    if options:
        arguments["D"], arguments["dt_bias"] = numbers(2, seed=seed + 5), numbers(4, seed=seed + 6)[::2]
        arguments["initial_state"] = numbers(1, 2, 4, 3, seed=seed + 7)
        arguments["seq_idx"] = torch.tensor([[0, 0, 1, 1, 1]])
    return arguments


OPERATORS = {
    "selective_scan": (selective_scan, scan_arguments),
    "causal_conv1d": (causal_conv1d, conv_arguments),
    "ssd": (ssd, ssd_arguments),
}


def results(operator: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Tensor]:
    """y, the final state and every gradient."""
    leaves = {
        name: value.requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in ((name, v.detach() if isinstance(v, Tensor) else v) for name, v in arguments.items())
    }
    outputs = operator(**leaves, return_final_state=True, backend="triton")
    wanted = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, Tensor) and leaf.requires_grad}
    weights = [numbers(*out.shape, seed=100 + n) for n, out in enumerate(outputs)]
    gradients = torch.autograd.grad(outputs, list(wanted.values()), weights)
    return dict(zip(("y", "state", *wanted), (*outputs, *gradients), strict=True))


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name
        assert actual[name].dtype == expected[name].dtype, name


@pytest.mark.parametrize("options", [False, True], ids=["plain", "options"])
@pytest.mark.parametrize("name", OPERATORS)
def test_again_with_other_numbers(name, options, recorded):
    operator, make = OPERATORS[name]
    results(operator, make(0, options))
    assert recorded() > 0
    again = results(operator, make(50, options))
    assert recorded() == 0
    launch.RECORDINGS.clear()
    assert_equal(again, results(operator, make(50, options)))
    assert recorded() > 0
    results(operator, make(0, not options))
    assert recorded() > 0  # another signature


def test_inference_has_recordings_of_its_own(recorded):
    """They keep no states, which a backward pass needs."""
    for grad in (False, True, False, True):
        with torch.set_grad_enabled(grad):
            arguments = {name: value.requires_grad_(grad) for name, value in scan_arguments(0, False).items()}
            y = selective_scan(**arguments, backend="triton")
        assert y.requires_grad == grad
        assert not y.isnan().any()
    assert len(launch.RECORDINGS) == 2


def test_a_tensor_given_twice_is_not_taken_for_one(recorded):
    same = scan_arguments(0, False)
    same["delta"] = same["u"] = same["u"].contiguous()
    selective_scan(**same, backend="triton")
    recorded()
    different = scan_arguments(0, False)
    different["u"] = different["u"].contiguous()
    y = selective_scan(**different, backend="triton")
    assert recorded() == 0
    launch.RECORDINGS.clear()
    assert torch.equal(y, selective_scan(**different, backend="triton"))


def test_what_is_given_to_be_written_is_written_and_returned(recorded):
    weight = numbers(5, 4, seed=1)
    for seed in (0, 50):
        x, dy = numbers(2, 9, 5, seed=seed), numbers(2, 9, 5, seed=seed + 1)
        wide = torch.full((2, 9, 11), -1.0)
        found = conv.backward(dy, x, weight, None, "silu", None, None, wide[..., 3:8])
        assert recorded() == (2 if seed == 0 else 0)
        assert found.x.data_ptr() == wide[..., 3:].data_ptr()
        assert torch.equal(wide[..., 3:8], conv.backward(dy, x, weight, None, "silu", None, None).x)
        assert (wide[..., :3] == -1).all() and (wide[..., 8:] == -1).all()
        recorded()


@pytest.mark.parametrize("change", ["length", "strides", "alignment", "dtype"])
def test_another_signature_is_launched_anew(change, recorded):
    x, weight = numbers(1, 8, 4, seed=0), numbers(4, 4, seed=1)
    causal_conv1d(x, weight, backend="triton")
    assert recorded() == 1
    x = {
        "length": lambda: numbers(1, 7, 4, seed=0),
        "strides": lambda: numbers(1, 8, 8, seed=0)[..., :4],
        "alignment": lambda: numbers(33, seed=0)[1:].view(1, 8, 4),
        "dtype": lambda: x.half(),
    }[change]()
    y = causal_conv1d(x, weight, backend="triton")
    assert recorded() == 1
    expected = causal_conv1d(x.float(), weight, backend="reference")
    assert torch.allclose(y.float(), expected, atol=1e-6 if change != "dtype" else 1e-2)


def test_no_tensor_is_kept(recorded):
    memory = {name: value.numpy() for name, value in conv_arguments(0, False).items()}
    before = [sys.getrefcount(array) for array in memory.values()]
    y = causal_conv1d(**{name: torch.from_numpy(array) for name, array in memory.items()}, backend="triton")
    assert len(launch.RECORDINGS) == 1
    result = weakref.ref(y)
    del y
    assert result() is None
    gc.collect()  # the interpreter leaves circles of references
    assert [sys.getrefcount(array) for array in memory.values()] == before


def test_the_interpreter_leaves_nothing_recorded():
    skip_unless_available("seqlab.ops.causal_conv1d", "triton", "cpu", torch.float32)
    causal_conv1d(**conv_arguments(0, False), backend="triton")
    assert len(launch.RECORDINGS) == 0


def test_the_latest_are_remembered():
    recent = Recent(2)
    for key in "abc":
        recent.keep(key, key.upper())
    assert [recent.get(key) for key in "abc"] == [None, "B", "C"]
    recent.keep("b", "B")  # after c
    recent.keep("d", "D")
    assert [recent.take(key) for key in "bcb"] == ["B", None, None]
    assert len(recent) == 1
    recent.clear()
    assert len(recent) == 0
