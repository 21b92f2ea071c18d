"""RMSNorm as Triton kernels: one forward, and backward one over the rows and a small one that adds up ``d_weight``.

The loops are in ``triton_kernels.py``; this file cuts rows into programs. Symbols as there.
"""

import math
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from seqlab.ops import launch
from seqlab.ops.launch import Call
from seqlab.ops.triton_support import ceil, multiprocessors
from seqlab.ops.triton_support import why_unavailable as why_unavailable

HELD = 1024  # numbers of a row, or of several short ones, that a warp holds: 32 for each lane
HELD_GATED = 512  # of a row with a gate, which takes twice as many arrays
MOST_ROWS = 32  # of a program at a time
# Warps of the backward kernel on a multiprocessor, where a row takes one and where it takes several: its four arrays of
# 32 registers leave no room for more, and programs that wait for others to end would double the time.
SINGLE_WARPS, JOINED_WARPS = 10, 8
GATED_WARPS = 12  # of at most 160 registers each lane
ALIGNED = 16  # elements; no access is wider
SHARES, COLUMNS = 256, 8  # of a program that adds shares, at a time: 32 bytes are the least that a memory reads
OPTIONS = {"num_stages": 1, "enable_fp_fusion": True}


class Out(NamedTuple):
    """Where to write gradients, else in new tensors, and the output again, if it is wanted.

    In the shapes and dtypes of what they belong to; x and y contiguous, the gate's in rows at equal distances. Those of
    x, the gate and y may share memory with the stream, the gate and dy, number by number.
    """

    x: Tensor | None = None
    gate: Tensor | None = None
    y: Tensor | None = None


ANEW = Out()


@cache
def _kernels() -> ModuleType:
    """Imported at the first call: it takes a while, and torch's wheels for CPUs come without Triton."""
    from seqlab.ops.rms_norm import triton_kernels

    return triton_kernels


def forward(
    x: Tensor,
    update: Tensor | None,
    gate: Tensor | None,
    weight: Tensor,
    eps: float,
    groups: int,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """The stream (..., W) if there is an update, y (..., W) and scale (N G,); arguments as in ``operator.py``."""
    return launch.run(_forward, (x, update, gate, weight), eps, groups, out_dtype)


def _forward(call: Call, eps: float, groups: int, out_dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    x, update, gate = (call.converted(tensor, in_rows) for tensor in call.tensors[:3])
    weight = call.converted(call.tensors[3], Tensor.contiguous)
    tile, rows = _cut(x, groups, gate is not None)
    y, scale = call.empty(*x.shape, dtype=out_dtype), call.empty(rows * groups)
    stream = call.empty(0, dtype=x.dtype) if update is None else call.empty_like(x)
    read = (part for tensor in (x, update, gate) for part in _placed(tensor))
    call.launch(
        _kernels().forward_kernel, (_programs(rows, tile), groups), stream, y, scale, *read, weight, eps, rows,
        **tile, ALIGN=_alignment(tile, x, update, gate), **OPTIONS,
    )  # fmt: skip
    return stream, y, scale


def backward(
    dy: Tensor,
    d_stream: Tensor | None,
    stream: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    scale: Tensor,
    groups: int,
    update_dtype: torch.dtype | None,
    out: Out = ANEW,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """dx (..., W) in the stream's dtype, in ``update_dtype`` too if that is another, d_gate (..., W) and d_weight (W,).

    Those of ``out`` are written there; the other arguments are as in ``operator.py``.
    """
    return launch.run(_backward, (dy, d_stream, stream, gate, weight, scale, *out), groups, update_dtype)


def _backward(
    call: Call, groups: int, update_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    dy, d_stream, stream, gate = (call.converted(tensor, in_rows) for tensor in call.tensors[:4])
    weight, (scale, dx, d_gate, y) = call.converted(call.tensors[4], Tensor.contiguous), call.tensors[5:]
    tile, rows = _cut(stream, groups, gate is not None)
    tiles, warps = _programs(rows, tile), tile["num_warps"]
    resident = GATED_WARPS if gate is not None else SINGLE_WARPS if warps == 1 else JOINED_WARPS
    together = ceil(max(1, resident // warps) * multiprocessors(stream.device), groups)
    programs = ceil(tiles, ceil(tiles, together))  # all walk the same number of tiles, or one less
    dx, d_weight = call.empty_like(stream) if dx is None else dx, call.empty_like(weight)
    rounds = update_dtype not in (None, stream.dtype)
    d_update = call.empty(*stream.shape, dtype=update_dtype) if rounds else None
    d_gate = call.empty_like(gate) if d_gate is None else d_gate
    shares = call.empty(programs, stream.shape[-1])
    read = (part for tensor in (d_gate, dy, d_stream, stream, gate) for part in _placed(tensor))
    call.launch(
        _kernels().backward_kernel, (programs, groups), dx, d_update, shares, y, *read, weight, scale, rows,
        **tile, ALIGN=_alignment(tile, d_gate, dy, d_stream, stream, gate), **OPTIONS,
    )  # fmt: skip
    grid = (ceil(stream.shape[-1], COLUMNS),)
    operands = (d_weight, shares, programs)
    call.launch(
        _kernels().sum_shares_kernel, grid, *operands, D=stream.shape[-1], S=SHARES, C=COLUMNS, num_warps=4, **OPTIONS
    )
    return dx, d_update, d_gate, d_weight


def row_stride(x: Tensor) -> int | None:
    """The distance, in elements, between neighbouring rows of x (..., D), or None if it is not the same everywhere."""
    axes = [(size, stride) for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True) if size != 1]
    if any(outer[1] != inner[0] * inner[1] for outer, inner in pairwise(axes)):
        return None
    return axes[-1][1] if axes else x.shape[-1]


def in_rows(x: Tensor) -> Tensor:
    """x (..., D) itself if its rows are contiguous and lie at equal distances; else a contiguous copy."""
    if x.is_contiguous() or ((x.stride(-1) == 1 or x.shape[-1] == 1) and row_stride(x) is not None):
        return x
    return x.contiguous()


def _placed(tensor: Tensor | None) -> tuple[Tensor | None, int]:
    """A tensor and how far its rows lie apart, in elements."""
    return (None, 0) if tensor is None else (tensor, row_stride(tensor))


def _cut(x: Tensor, groups: int, gated: bool) -> tuple[dict[str, int], int]:
    """The tile of a program, and the number of rows."""
    width, held = x.shape[-1] // groups, HELD_GATED if gated else HELD
    padded = 1 << (width - 1).bit_length()
    down = min(MOST_ROWS, max(1, held // padded))
    tile = {"D": width, "P": padded, "R": down, "G": groups, "num_warps": max(1, padded // held)}
    return tile, x.numel() // x.shape[-1]


def _programs(rows: int, tile: dict[str, int]) -> int:
    """How many tiles there are, at least one, so that there is always something to launch."""
    return max(1, ceil(rows, tile["R"]))


def _alignment(tile: dict[str, int], *tensors: Tensor | None) -> int:
    """The largest power of two up to ``ALIGNED`` that divides the place, in elements, where every row begins."""
    return math.gcd(ALIGNED, *(row_stride(tensor) for tensor in tensors if tensor is not None), tile["D"])
