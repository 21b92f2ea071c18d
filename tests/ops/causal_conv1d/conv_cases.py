"""Arguments of the causal convolution, and how its backends are held to the reference."""

import pytest
import torch
from comparison import (
    DEVICES,
    assert_all_close,
    backends_in,
    doubled,
    numbered,
    results,
    skip_unless_available,
)
from torch import Tensor

from seqlab.ops import causal_conv1d
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
