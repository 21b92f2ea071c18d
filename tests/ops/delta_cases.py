"""Arguments of the delta rule, and what the tests of all operators need of it."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from comparison import DEVICES, backends_in, drawn_as, step_sizes
from operators import Operator, interpreted
from torch import Tensor

from seqlab.ops import delta_rule, delta_rule_update
from seqlab.ops.delta_rule import chunked

PACKAGE = "seqlab.ops.delta_rule"
OPTIONS = ("beta", "g", "initial_state")
ALONG_TIME = ("q", "k", "v", "beta", "g", "w")
SIZE = (2, 77, 2, 5, 7)
"""Batch, length, heads, width of keys and of values: some chunks, the last not whole."""
INTERPRETED_SIZE = (1, 35, 1, 5, 7)
"""The same for Triton's interpreter, which takes about 50 ms for each head and chunk of 32 positions."""
NARROW = (2, 8, 2)
"""Of narrower keys a chunk's corrections leave so little of a state that rounding shows, as ``chunked`` says."""


def make_arguments(
    batch: int,
    length: int,
    n_heads: int,
    d_key: int,
    d_value: int,
    *,
    dtype: torch.dtype = torch.float32,
    steps: str = "ordinary",
    by_channel: tuple[str, ...] = (),
    options: tuple[str, ...] = OPTIONS,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Random arguments with keys of length 1 and beta up to 2; the state at least float32.

    Those of ``by_channel``, "g" and "beta", have the key's channels; w comes with such a beta, which is up to 1 then.
    """
    torch.manual_seed(0)
    heads = (batch, length, n_heads)
    of_key = {name: (*heads, d_key) if name in by_channel else heads for name in ("g", "beta")}
    arguments = {
        "q": torch.randn(*heads, d_key),
        "k": F.normalize(torch.randn(*heads, d_key), dim=-1),
        "v": torch.randn(*heads, d_value),
        "beta": torch.rand(of_key["beta"]) * (1 if "beta" in by_channel else 2),
        "g": -step_sizes(steps, *of_key["g"]),
        "w": torch.rand(*heads, d_value),
        "initial_state": torch.randn(batch, n_heads, d_key, d_value),
    }
    left_out = set(OPTIONS) - set(options) | (set() if "beta" in by_channel else {"w"})
    return drawn_as(arguments, dtype, device=device, wide={"initial_state"}, left_out=left_out)


def operands(arguments: dict[str, Tensor], seq_idx: Tensor | None, options: bool, backend: str) -> tuple[tuple, tuple]:
    given = [*(arguments.get(name) for name in ALONG_TIME), seq_idx, arguments.get("initial_state")]
    y, final = torch.ops.seqlab.delta_rule(*given, backend)
    dy, d_final = (torch.randn_like(y), None) if options else (None, torch.randn_like(final))
    return (*given, backend), (dy, d_final, *given, backend)


DELTA = Operator(
    function=delta_rule,
    update=delta_rule_update,
    make=make_arguments,
    along_time=ALONG_TIME,
    options=OPTIONS,
    settings={},
    reproducible={},
    length=SIZE[1],
    width=SIZE[2:],
    interpreted_size=INTERPRETED_SIZE,
    interpreted_positions=33,
    narrow=NARROW,
    gpu_width=(4, 64, 64),
    cut_length=SIZE[1],
    cuts=(1, 32, 39),
    shorten_chunks=lambda monkeypatch: monkeypatch.setattr(chunked, "CHUNK", 4),
    operands=operands,
    on_cpu=("chunked", "chunked"),
    refused=(
        ("beta", (2, 5, 1), r"\(batch, length, n_heads\) = \(2, 5, 2\)"),
        ("g", (2, 5, 2, 1), r"\(batch, length, n_heads, d_key\) = \(2, 5, 2, 8\)"),
    ),
)
BY_CHANNEL = replace(DELTA, make=partial(make_arguments, by_channel=("g", "beta")))
"""With a decay and a share erased for each key channel, and a share written for each value channel."""
GATED = replace(DELTA, make=partial(make_arguments, by_channel=("g",)))
"""With a decay of each key channel alone."""


def afford(backend: str, device: str, *, unless: bool) -> None:
    if interpreted(backend, device) and unless:
        pytest.skip("too slow in Triton's interpreter")


every_backend = pytest.mark.parametrize("backend", backends_in(PACKAGE))
every_fast_backend = pytest.mark.parametrize("backend", [name for name in backends_in(PACKAGE) if name != "reference"])
every_device = pytest.mark.parametrize("device", DEVICES)
kernel_test = pytest.mark.usefixtures("nan_memory")
