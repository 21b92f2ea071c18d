"""Arguments of the causal convolution, and what the tests of all operators need of it."""

import pytest
import torch
from comparison import DEVICES, backends_in, drawn_as
from hypothesis import strategies as st
from operators import Operator
from torch import Tensor

from seqlab.ops import causal_conv1d, causal_conv1d_update
from seqlab.ops.causal_conv1d.operator import FUSED

PACKAGE = "seqlab.ops.causal_conv1d"
OPTIONS = ("bias", "initial_state")


def make_arguments(
    batch: int,
    length: int,
    d_inner: int,
    d_conv: int,
    *,
    dtype: torch.dtype = torch.float64,
    options: tuple[str, ...] = OPTIONS,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Random arguments, every optional one of ``options`` among them; parameters at least float32, rounded to dtype."""
    torch.manual_seed(0)
    arguments = {
        "x": torch.randn(batch, length, d_inner),
        "weight": torch.randn(d_inner, d_conv).to(dtype),
        "bias": torch.randn(d_inner).to(dtype),
        "initial_state": torch.randn(batch, d_conv - 1, d_inner),
    }
    left_out = set(OPTIONS) - set(options)
    return drawn_as(arguments, dtype, device=device, wide={"weight", "bias"}, left_out=left_out)


def operands(arguments: dict[str, Tensor], seq_idx: Tensor | None, options: bool, backend: str) -> tuple[tuple, tuple]:
    x, weight, bias, state = (arguments.get(name) for name in ("x", "weight", *OPTIONS))
    shared = (x, weight, bias, "silu" if options else None, state, seq_idx)
    d_final = x.new_ones(len(x), weight.shape[1] - 1, x.shape[2]) if options else None
    return (*shared, options, backend), (torch.randn_like(x), d_final, *shared, backend)


CONV = Operator(
    function=causal_conv1d,
    update=causal_conv1d_update,
    make=make_arguments,
    along_time=("x",),
    options=OPTIONS,
    settings={"activation": "silu"},
    reproducible={},
    length=29,
    width=(5, 4),
    narrow=(3, 4),
    gpu_width=(64, 4),
    cut_length=17,
    cuts=(1, 2, 10, 16),
    any_sizes=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(3, 6), st.integers(1, 6)),
    any_settings=st.just({"activation": "silu"}),
    operands=operands,
    on_cpu=("cpu", "torch_conv"),
    refused=(
        ("x", (2, 0, 3), r"\(batch, length, d_inner\) = \(at least 1, at least 1, at least 1\)"),
        ("x", (2, 3), r"\(batch, length, d_inner\) = \(at least 1, at least 1, at least 1\)"),
        ("weight", (4, 3), r"\(d_inner, d_conv\) = \(3, at least 1\)"),
        ("weight", (3, 0), r"\(d_inner, d_conv\) = \(3, at least 1\)"),
        ("bias", (4,), r"\(d_inner\) = \(3\)"),
        ("initial_state", (2, 4, 3), r"\(batch, d_conv - 1, d_inner\) = \(2, 3, 3\)"),
    ),
)

every_backend = pytest.mark.parametrize("backend", backends_in(PACKAGE))
every_fused_backend = pytest.mark.parametrize("backend", FUSED)
every_device = pytest.mark.parametrize("device", DEVICES)
kernel_test = pytest.mark.usefixtures("nan_memory")
