"""On a CUDA device: kernels launched again give what Triton's own launch gives, bit by bit."""

import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparison import weighted_sum
from torch import Tensor

from seqlab.ops import causal_conv1d, launch, selective_scan, ssd

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("nan_memory"),
]


def randn(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cuda") -> Tensor:
    return torch.randn(shape, dtype=dtype, device=device)


def seq_idx(batch: int, length: int, device: str) -> Tensor:
    return torch.arange(length, device=device).div(50, rounding_mode="floor").repeat(batch, 1)


def scan(
    dtype: torch.dtype, options: bool, device: str = "cuda", length: int = 200, d_inner: int = 96
) -> dict[str, Any]:
    batch, d_state = 3, 16
    u, z = randn(batch, length, 2 * d_inner, dtype=dtype, device=device).chunk(2, dim=2)
    B, C = randn(batch, length, 2 * d_state, dtype=dtype, device=device).chunk(2, dim=2)
    arguments: dict[str, Any] = {"u": u, "delta": randn(batch, length, d_inner, dtype=dtype, device=device)}
    arguments |= {"A": -torch.rand(d_inner, d_state, device=device), "B": B, "C": C, "delta_softplus": True}
    if options:
        arguments |= {"D": randn(d_inner, device=device), "z": z, "delta_bias": randn(d_inner, device=device)}
        arguments["initial_state"] = randn(batch, d_inner, d_state, device=device)
        arguments["seq_idx"] = seq_idx(batch, length, device)
    return arguments | {"deterministic": True}


def conv(dtype: torch.dtype, options: bool, device: str = "cuda", length: int = 200) -> dict[str, Any]:
    arguments: dict[str, Any] = {"x": randn(3, length, 192, dtype=dtype, device=device)[..., :96]}
    arguments["weight"] = randn(96, 4, device=device)
    if options:
        arguments |= {"bias": randn(96, device=device), "activation": "silu"}
        arguments["initial_state"] = randn(3, 3, 96, dtype=dtype, device=device)
        arguments["seq_idx"] = seq_idx(3, length, device)
    return arguments


def duality(dtype: torch.dtype, options: bool, device: str = "cuda", length: int = 200) -> dict[str, Any]:
    arguments: dict[str, Any] = {"x": randn(2, length, 4, 64, dtype=dtype, device=device), "dt_softplus": True}
    arguments |= {"dt": randn(2, length, 4, dtype=dtype, device=device), "A": -torch.rand(4, device=device)}
    arguments["B"], arguments["C"] = randn(2, length, 2, 128, dtype=dtype, device=device).chunk(2, dim=3)
    if options:
        arguments |= {"D": randn(4, device=device), "dt_bias": randn(4, device=device)}
        arguments["initial_state"] = randn(2, 4, 64, 64, device=device)
        arguments["seq_idx"] = seq_idx(2, length, device)
    return arguments


OPERATORS = {"selective_scan": (selective_scan, scan), "causal_conv1d": (causal_conv1d, conv), "ssd": (ssd, duality)}


def results(operator: Callable[..., Any], arguments: dict[str, Any]) -> list[Tensor]:
    """y, the final state and every gradient."""
    leaves = {name: v.detach() if isinstance(v, Tensor) else v for name, v in arguments.items()}
    wanted = [v.requires_grad_() for v in leaves.values() if isinstance(v, Tensor) and v.is_floating_point()]
    outputs = operator(**leaves, return_final_state=True, backend="triton")
    return [*outputs, *torch.autograd.grad(weighted_sum(outputs), wanted)]


def assert_equal(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert not b.isnan().any()
        assert torch.equal(a, b)
        assert (a.dtype, a.stride()) == (b.dtype, b.stride())


@pytest.fixture
def fresh_calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Gives the number of calls launched by Triton itself since it was last asked for."""
    made = []

    class Counted(launch.Call):
        def __init__(self, tensors):
            made.append(self.__class__)
            super().__init__(tensors)

    def count() -> int:
        number = len(made)
        made.clear()
        return number

    monkeypatch.setattr(launch, "Call", Counted)
    return count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [False, True], ids=["plain", "options"])
@pytest.mark.parametrize("name", OPERATORS)
def test_again_is_the_same(name, options, dtype, fresh_calls):
    operator, make = OPERATORS[name]
    results(operator, make(dtype, options))
    assert fresh_calls() == 2  # forward and backward
    arguments = make(dtype, options)
    again = [results(operator, arguments) for _ in range(3)]
    assert fresh_calls() == 0
    launch.RECORDINGS.clear()
    expected = results(operator, arguments)
    for found in again:
        assert_equal(found, expected)


@pytest.mark.parametrize("name", OPERATORS)
def test_signatures_that_change_between_calls(name):
    """Lengths, dtypes, strides and alignment in turn, each several times."""
    operator, make = OPERATORS[name]
    calls = [make(dtype, True, length=length) for dtype in (torch.float32, torch.bfloat16) for length in (64, 65, 1)]
    shifted = dict(calls[0])
    for key, value in calls[0].items():
        if isinstance(value, Tensor) and value.is_floating_point():
            shifted[key] = torch.cat([value.new_zeros(1), value.flatten()])[1:].view(value.shape)
    spread = {k: v.repeat_interleave(2, -1)[..., ::2] if isinstance(v, Tensor) else v for k, v in calls[0].items()}
    calls += [shifted, spread]
    expected = []
    for arguments in calls:
        launch.RECORDINGS.clear()
        expected.append(results(operator, arguments))
    launch.RECORDINGS.clear()
    for _ in range(3):
        for arguments, wanted in zip(calls, expected, strict=True):
            assert_equal(results(operator, arguments), wanted)


@pytest.mark.parametrize("d_inner", [5, 96])
def test_a_scan_cut_in_chunks(d_inner):
    """Long and of few channels: it has launches that others have not."""
    arguments = scan(torch.float32, True, length=5000, d_inner=d_inner)
    first = results(selective_scan, arguments)
    for _ in range(2):
        assert_equal(results(selective_scan, arguments), first)


@pytest.mark.parametrize("name", OPERATORS)
def test_hooks_see_every_launch(name):
    triton = pytest.importorskip("triton")
    operator, make = OPERATORS[name]
    seen = []
    hook = seen.append
    arguments = make(torch.float32, False)
    counts = []
    hooks = triton.knobs.runtime.launch_enter_hook
    if not hasattr(hooks, "add"):
        pytest.skip("this version of Triton has one hook alone")
    hooks.add(hook)
    try:
        for _ in range(3):
            seen.clear()
            results(operator, arguments)
            counts.append(len(seen))
    finally:
        hooks.remove(hook)
    assert counts[0] > 0
    assert len(set(counts)) == 1


@pytest.mark.parametrize("name", OPERATORS)
def test_in_a_graph(name):
    """What is captured is launched again, and reads what its inputs hold then."""
    operator, make = OPERATORS[name]
    arguments = make(torch.bfloat16, True)
    results(operator, arguments)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y = operator(**arguments, backend="triton")
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = operator(**arguments, backend="triton")
    other = make(torch.bfloat16, True)
    for name, tensor in other.items():
        if isinstance(tensor, Tensor):
            arguments[name].copy_(tensor)
    graph.replay()
    launch.RECORDINGS.clear()
    assert torch.equal(y, operator(**other, backend="triton"))


@pytest.mark.parametrize("name", OPERATORS)
def test_on_the_current_stream(name):
    """A launch on another would read inputs that are not there yet."""
    operator, make = OPERATORS[name]
    arguments = make(torch.float32, False)
    expected = operator(**arguments, backend="triton")
    stream = torch.cuda.Stream()
    late = {k: torch.zeros_like(v) if isinstance(v, Tensor) else v for k, v in arguments.items()}
    operator(**late, backend="triton")
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        for key, value in arguments.items():
            if isinstance(value, Tensor):
                late[key].copy_(value)
        y = operator(**late, backend="triton")
    stream.synchronize()
    assert torch.equal(y, expected)


@pytest.mark.parametrize("name", OPERATORS)
def test_from_threads(name):
    operator, make = OPERATORS[name]
    calls = [make(torch.float32, n % 2 == 0, length=100 + n // 2) for n in range(8)]
    expected = [results(operator, arguments) for arguments in calls]
    launch.RECORDINGS.clear()
    torch.cuda.synchronize()
    wrong = []

    def work(number: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                found = results(operator, calls[number])
                torch.cuda.current_stream().synchronize()
                if not all(torch.equal(a, b) for a, b in zip(found, expected[number], strict=True)):
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("name", OPERATORS)
def test_on_two_devices(name):
    operator, make = OPERATORS[name]
    arguments = make(torch.float32, True)
    moved = {k: v.to("cuda:1") if isinstance(v, Tensor) else v for k, v in make(torch.float32, True).items()}
    moved = {k: v.copy_(arguments[k]) if isinstance(v, Tensor) else v for k, v in moved.items()}
    expected = results(operator, arguments)
    for _ in range(3):  # the current device stays the first
        assert_equal([tensor.to("cuda:0") for tensor in results(operator, moved)], expected)
        assert_equal(results(operator, arguments), expected)
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("name", OPERATORS)
def test_memory_is_given_back(name):
    operator, make = OPERATORS[name]
    arguments = make(torch.bfloat16, True)
    for _ in range(2):
        results(operator, arguments)
    gc.collect()  # of other tests
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(5):
        results(operator, arguments)
    gc.collect()  # what only refers to itself is no leak
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before
