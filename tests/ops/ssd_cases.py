"""Arguments of state-space duality, and what the tests of all operators need of it."""

import pytest
import torch
from comparison import DEVICES, backends_in, drawn_as, step_sizes
from operators import Operator, interpreted
from torch import Tensor

from seqlab.ops import ssd, ssd_update
from seqlab.ops.ssd import parallel
from seqlab.ops.ssd.operator import FUSED

PACKAGE = "seqlab.ops.ssd"
OPTIONS = ("D", "dt_bias", "initial_state")
ALONG_TIME = ("x", "dt", "B", "C")
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
    arguments = {
        "x": torch.randn(batch, length, n_heads, d_head),
        "dt": step_sizes(steps, batch, length, n_heads),
        "A": -torch.rand(n_heads) * 4 - 0.5,
        "B": torch.randn(batch, length, n_groups, d_state),
        "C": torch.randn(batch, length, n_groups, d_state),
        "D": torch.randn(n_heads),
        "dt_bias": torch.rand(n_heads),
        "initial_state": torch.randn(batch, n_heads, d_head, d_state),
    }
    left_out = set(OPTIONS) - set(options)
    return drawn_as(arguments, dtype, device=device, wide={"A", *OPTIONS}, left_out=left_out)


def operands(arguments: dict[str, Tensor], seq_idx: Tensor | None, options: bool, backend: str) -> tuple[tuple, tuple]:
    given = [arguments.get(name) for name in ("x", "dt", "A", "B", "C", "D", "dt_bias")] + [seq_idx]
    state = arguments.get("initial_state")
    y, final = torch.ops.seqlab.ssd(*given, options, state, backend)
    dy, d_final = (torch.randn_like(y), None) if options else (None, torch.randn_like(final))
    return (*given, options, state, backend), (dy, d_final, *given, state, options, backend)


SSD = Operator(
    function=ssd,
    update=ssd_update,
    make=make_arguments,
    along_time=ALONG_TIME,
    options=OPTIONS,
    settings={"dt_softplus": True},
    reproducible={},
    length=SIZE[1],
    width=SIZE[2:],
    interpreted_size=INTERPRETED_SIZE,
    interpreted_positions=33,
    narrow=(2, 3, 1, 2),
    gpu_width=(4, 64, 1, 64),
    cut_length=SIZE[1],
    cuts=(1, 32, 39),
    shorten_chunks=lambda monkeypatch: monkeypatch.setattr(parallel, "CHUNK", 3),
    operands=operands,
    on_cpu=("parallel", "parallel"),
    refused=(
        ("dt", (2, 5, 1), r"\(batch, length, n_heads\) = \(2, 5, 2\)"),
        ("C", (2, 5, 1, 1), r"\(batch, length, n_groups, d_state\) = \(2, 5, 1, 2\)"),
    ),
)


def size(backend: str, device: str) -> tuple[int, ...]:
    return INTERPRETED_SIZE if interpreted(backend, device) else SIZE


def afford(backend: str, device: str, *, unless: bool) -> None:
    if interpreted(backend, device) and unless:
        pytest.skip("too slow in Triton's interpreter")


compare = SSD.compare
every_backend = pytest.mark.parametrize("backend", backends_in(PACKAGE))
every_fused_backend = pytest.mark.parametrize("backend", FUSED)
every_device = pytest.mark.parametrize("device", DEVICES)
kernel_test = pytest.mark.usefixtures("nan_memory")
