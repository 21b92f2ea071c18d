"""Arguments of the delta rule, and what the tests of all operators need of it."""

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from comparison import drawn_as, step_sizes
from operators import Operator
from torch import Tensor

from seqlab.ops import delta_rule, delta_rule_update
from seqlab.ops.delta_rule import chunked

PACKAGE = "seqlab.ops.delta_rule"
OPTIONS = ("beta", "g", "initial_state")
ALONG_TIME = ("q", "k", "v", "beta", "g", "w")
SIZE = (2, 77, 2, 5, 7)
"""Batch, length, heads, width of keys and of values: some chunks, the last not whole."""
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
    narrow=NARROW,
    gpu_width=(4, 64, 64),
    cut_length=SIZE[1],
    cuts=(1, 32, 39),
    shorten_chunks=lambda monkeypatch: monkeypatch.setattr(chunked, "CHUNK", 4),
    on_cpu=("chunked", "chunked"),
    refused=(
        ("beta", (2, 5, 1), r"\(batch, length, n_heads\) = \(2, 5, 2\)"),
        ("g", (2, 5, 2, 1), r"\(batch, length, n_heads, d_key\) = \(2, 5, 2, 8\)"),
    ),
)
BY_CHANNEL = replace(DELTA, make=partial(make_arguments, by_channel=("g", "beta")))
"""With a decay and a share erased for each key channel, and a share written for each value channel."""
