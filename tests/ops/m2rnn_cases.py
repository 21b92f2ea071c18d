"""Arguments of M²RNN, and what the tests of all operators need of it."""

import torch
from comparison import drawn_as
from operators import Operator
from torch import Tensor

from seqlab.ops import m2rnn, m2rnn_update
from seqlab.ops.m2rnn import spans

OPTIONS = ("initial_state",)
ALONG_TIME = ("q", "k", "v", "f")


def make_arguments(
    batch: int,
    length: int,
    n_heads: int,
    d_key: int,
    d_value: int,
    *,
    dtype: torch.dtype = torch.float32,
    options: tuple[str, ...] = OPTIONS,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Random arguments, the state at least float32. W is near the identity, as it begins: a large one is chaotic."""
    torch.manual_seed(0)
    arguments = {
        "q": torch.randn(batch, length, d_key),
        "k": torch.randn(batch, length, d_key),
        "v": torch.randn(batch, length, n_heads, d_value),
        "f": torch.rand(batch, length, n_heads),
        "W": 0.7 * torch.eye(d_value) + 0.3 * d_value**-0.5 * torch.randn(n_heads, d_value, d_value),
        "initial_state": torch.randn(batch, n_heads, d_key, d_value),
    }
    return drawn_as(arguments, dtype, device=device, wide={"initial_state"}, left_out=set(OPTIONS) - set(options))


def operands(arguments: dict[str, Tensor], seq_idx: Tensor | None, options: bool, backend: str) -> tuple[tuple, tuple]:
    given, clip = [*(arguments[name] for name in (*ALONG_TIME, "W")), seq_idx], 0.5 if options else None
    forward = (*given, arguments.get("initial_state"), clip, True, backend)
    y, final, starts = torch.ops.seqlab.m2rnn(*forward)
    dy, d_final = (torch.randn_like(y), None) if options else (None, torch.randn_like(final))
    return forward, (dy, d_final, starts, *given, clip, backend)


M2RNN = Operator(
    function=m2rnn,
    update=m2rnn_update,
    make=make_arguments,
    along_time=ALONG_TIME,
    options=OPTIONS,
    settings={},
    reproducible={},
    length=37,
    width=(2, 5, 7),
    interpreted_size=(1, 19, 1, 5, 7),
    interpreted_positions=24,
    narrow=(1, 3, 4),
    gpu_width=(4, 64, 32),
    cut_length=37,
    cuts=(1, 16, 21),
    shorten_chunks=lambda monkeypatch: monkeypatch.setattr(spans, "SPAN", 3),
    operands=operands,
    on_cpu=("spans", "spans"),
    refused=(
        ("k", (2, 5, 4), r"\(batch, length, d_key\) = \(2, 5, 3\)"),
        ("f", (2, 5), r"\(batch, length, n_heads\) = \(2, 5, 1\)"),
        ("W", (1, 4, 3), r"\(n_heads, d_value, d_value\) = \(1, 4, 4\)"),
    ),
)
