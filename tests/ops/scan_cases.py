"""Arguments of the selective scan, and what the tests of all operators need of it."""

import pytest
import torch
from comparison import DEVICES, backends_in, drawn_as, skip_unless_available, step_sizes
from hypothesis import strategies as st
from operators import Operator, interpreted
from torch import Tensor

from seqlab.ops import selective_scan, selective_state_update
from seqlab.ops.selective_scan import parallel
from seqlab.ops.selective_scan.operator import FUSED

PACKAGE = "seqlab.ops.selective_scan"
OPTIONS = ("D", "z", "delta_bias", "initial_state")
OPERANDS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
INTERPRETED = 4
"""Positions, in all sequences together, that Triton's interpreter may take in a test that all backends share: they
last 0.1 s each. What it is held to besides is in TestTritonInterpreted."""


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
    arguments = {
        "u": torch.randn(batch, length, d_inner),
        "delta": step_sizes(steps, batch, length, d_inner),
        "A": -torch.rand(d_inner, d_state) * 4 - 0.5,
        "B": torch.randn(batch, length, d_state),
        "C": torch.randn(batch, length, d_state),
        "D": torch.randn(d_inner),
        "z": torch.randn(batch, length, d_inner),
        "delta_bias": torch.rand(d_inner),
        "initial_state": torch.randn(batch, d_inner, d_state),
    }
    wide, left_out = {"A", "D", "delta_bias", "initial_state"}, set(OPTIONS) - set(options)
    return drawn_as(arguments, dtype, device=device, wide=wide, left_out=left_out)


def update(state: Tensor, *, u: Tensor, **arguments) -> tuple[Tensor, Tensor]:
    return selective_state_update(state, u, **arguments)


def operands(arguments: dict[str, Tensor], seq_idx: Tensor | None, options: bool, backend: str) -> tuple[tuple, tuple]:
    state, given = arguments.get("initial_state"), [arguments.get(name) for name in OPERANDS]
    forward = (*given, seq_idx, options, state, True, options, backend)
    y, final, saved = torch.ops.seqlab.selective_scan(*forward)
    dy, d_final = (torch.randn_like(y), None) if options else (None, torch.randn_like(final))
    return forward, (dy, d_final, saved, *given, seq_idx, options, options, backend)


def set_chunk(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    monkeypatch.setattr(parallel, "CHUNK_ELEMENTS", dict.fromkeys(parallel.CHUNK_ELEMENTS, elements))


def shorten_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    set_chunk(monkeypatch, 1)
    monkeypatch.setattr(parallel, "SHORTEST_CHUNK", 3)


SCAN = Operator(
    function=selective_scan,
    update=update,
    make=make_arguments,
    along_time=("u", "delta", "B", "C", "z"),
    options=OPTIONS,
    settings={"delta_softplus": True},
    reproducible={"deterministic": True},
    length=29,
    width=(5, 3),
    interpreted_size=(1, 3, 5, 3),
    interpreted_positions=INTERPRETED,
    narrow=(3, 2),
    gpu_width=(64, 16),
    cut_length=41,
    cuts=(1, 13, 20, 40),
    any_sizes=st.tuples(st.integers(1, 3), st.integers(1, 60), st.integers(3, 8), st.integers(1, 6)),
    any_settings=st.fixed_dictionaries({"delta_softplus": st.booleans()}),
    shorten_chunks=shorten_chunks,
    operands=operands,
    on_cpu=("cpu", "parallel"),
    refused=(
        ("u", (2, 5), r"\(batch, length, d_inner\) = \(at least 1, at least 1, at least 1\)"),
        ("u", (2, 0, 3), r"\(batch, length, d_inner\) = \(at least 1, at least 1, at least 1\)"),
        ("delta", (2, 5, 4), r"\(batch, length, d_inner\) = \(2, 5, 3\)"),
        ("A", (4, 3), r"\(d_inner, d_state\) = \(3, at least 1\)"),
        ("A", (3, 0), r"\(d_inner, d_state\) = \(3, at least 1\)"),
        ("B", (2, 5, 3), r"\(batch, length, d_state\) = \(2, 5, 2\)"),
        ("C", (2, 4, 5), r"\(batch, length, d_state\) = \(2, 5, 2\)"),
        ("D", (3, 1), r"\(d_inner\) = \(3\)"),
        ("z", (1, 5, 3), r"\(batch, length, d_inner\) = \(2, 5, 3\)"),
        ("delta_bias", (5,), r"\(d_inner\) = \(3\)"),
        ("initial_state", (2, 4, 3), r"\(batch, d_inner, d_state\) = \(2, 3, 2\)"),
    ),
)


def ready(backend: str, device: str, dtype: torch.dtype, positions: int = 0) -> None:
    """Skip what cannot run, and what would take the interpreter too long."""
    skip_unless_available(PACKAGE, backend, device, dtype)
    if interpreted(backend, device) and positions > INTERPRETED:
        pytest.skip("too slow in Triton's interpreter")


def compare(arguments: dict[str, Tensor], backend: str, **settings) -> None:
    """Hold a backend to the float64 reference in outputs, final state and every gradient, unless that is too slow."""
    u = arguments["u"]
    ready(backend, u.device.type, u.dtype, positions=u[..., 0].numel())
    SCAN.hold(arguments, backend, **settings)


def compare_packed(arguments: dict[str, Tensor], cuts: list[set[int]], backend: str) -> None:
    """Hold packed sequences to the same sequences one by one, unless that is too slow."""
    u = arguments["u"]
    ready(backend, u.device.type, u.dtype, positions=u[..., 0].numel())
    SCAN.hold_packed(arguments, cuts, backend, delta_softplus=True)


every_backend = pytest.mark.parametrize("backend", backends_in(PACKAGE))
every_fused_backend = pytest.mark.parametrize("backend", FUSED)
gpu_test = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
every_device = pytest.mark.parametrize("device", DEVICES)
kernel_test = pytest.mark.usefixtures("nan_memory", "short_chunks")
