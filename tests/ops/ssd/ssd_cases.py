"""Arguments of state-space duality, and how its backends are held to the reference."""

import itertools

import pytest
import torch
from comparison import (
    DEVICES,
    assert_all_close,
    backends_in,
    doubled,
    results,
    skip_unless_available,
    step_sizes,
)
from torch import Tensor

from seqlab.ops import ssd
from seqlab.ops.ssd.operator import FUSED

PACKAGE = "seqlab.ops.ssd"
OPTIONS = ("D", "dt_bias", "initial_state")
ALONG_TIME = ("x", "dt", "B", "C")
HALF = (torch.bfloat16, torch.float16)
SIZE = (2, 77, 4, 5, 2, 7)
"""Batch, length, heads, channels of a head, groups, states: some chunks, the last not whole, and tiles not filled."""
INTERPRETED_SIZE = (1, 70, 2, 5, 1, 37)
"""The same for Triton's interpreter, which takes about 50 ms for each head and chunk."""


def make_arguments(
    batch: int,
    length: int,
    n_heads: int,
    d_head: int,
    n_groups: int,
    d_state: int,
    *,
    dtype: torch.dtype = torch.float32,
    steps: str = "ordinary",
    options: tuple[str, ...] = OPTIONS,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Random arguments, every optional one of ``options`` among them; parameters and state at least float32."""
    torch.manual_seed(0)
    wide = torch.float32 if dtype in HALF else dtype
    arguments = {
        "x": torch.randn(batch, length, n_heads, d_head).to(dtype),
        "dt": step_sizes(steps, batch, length, n_heads).to(dtype),
        "A": (-torch.rand(n_heads) * 4 - 0.5).to(wide),
        "B": torch.randn(batch, length, n_groups, d_state).to(dtype),
        "C": torch.randn(batch, length, n_groups, d_state).to(dtype),
        "D": torch.randn(n_heads).to(wide),
        "dt_bias": torch.rand(n_heads).to(wide),
        "initial_state": torch.randn(batch, n_heads, d_head, d_state).to(wide),
    }
    return {name: tensor.to(device) for name, tensor in arguments.items() if name not in OPTIONS or name in options}


def interpreted(backend: str, device: str) -> bool:
    return backend == "triton" and device == "cpu"


def size(backend: str, device: str) -> tuple[int, ...]:
    return INTERPRETED_SIZE if interpreted(backend, device) else SIZE


def afford(backend: str, device: str, *, unless: bool) -> None:
    if interpreted(backend, device) and unless:
        pytest.skip("too slow in Triton's interpreter")


def compare(arguments: dict[str, Tensor], backend: str, **settings) -> None:
    """Hold a backend to the float64 reference in outputs, final state and every gradient."""
    x = arguments["x"]
    skip_unless_available(PACKAGE, backend, x.device.type, x.dtype)
    expected = results(ssd, doubled(arguments), backend="reference", **settings)
    assert_all_close(results(ssd, arguments, backend=backend, **settings), expected, x.dtype)


def ssd_separately(*, cuts: list[set[int]], initial_state: Tensor, return_final_state: bool, **arguments):
    """What packed sequences are held to: each by itself, the first of a row from the initial state."""
    assert return_final_state
    rows = []
    for b, row in enumerate(cuts):
        before, outputs = initial_state[b : b + 1], []
        for start, end in itertools.pairwise([0, *sorted(row), arguments["x"].shape[1]]):
            part = {
                name: value[b : b + 1, start:end] if name in ALONG_TIME else value for name, value in arguments.items()
            }
            y, state = ssd(**part, initial_state=before, return_final_state=True, backend="reference")
            outputs.append(y)
            before = None
        rows.append((torch.cat(outputs, dim=1), state))
    ys, states = zip(*rows, strict=True)
    return torch.cat(ys), torch.cat(states)


every_backend = pytest.mark.parametrize("backend", backends_in(PACKAGE))
every_fused_backend = pytest.mark.parametrize("backend", FUSED)
every_device = pytest.mark.parametrize("device", DEVICES)
kernel_test = pytest.mark.usefixtures("nan_memory")
