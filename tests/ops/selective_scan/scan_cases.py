"""Arguments of the selective scan, and how its backends are held to the reference."""

import itertools

import pytest
import torch
from comparison import (
    DEVICES,
    assert_all_close,
    backends_in,
    doubled,
    named_gradients,
    numbered,
    results,
    skip_unless_available,
    step_sizes,
    weighted_sum,
)
from torch import Tensor

from seqlab.ops import selective_scan
from seqlab.ops.selective_scan import BACKENDS, parallel
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


every_backend = pytest.mark.parametrize("backend", backends_in(PACKAGE))
every_fused_backend = pytest.mark.parametrize("backend", FUSED)
every_fast_backend = pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "triton"])
gpu_test = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
every_device = pytest.mark.parametrize("device", DEVICES)
kernel_test = pytest.mark.usefixtures("nan_memory", "short_chunks")
