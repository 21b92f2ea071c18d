"""RMSNorm as Triton kernels: one forward, and backward one over the rows and a small one that adds up ``d_weight``.

The loops are in ``triton_kernels.py``; this file cuts rows into programs. Symbols as there.
"""

import math
from functools import cache
from itertools import pairwise
from types import ModuleType

import torch
from torch import Tensor

from seqlab.ops import launch
from seqlab.ops.launch import Call
from seqlab.ops.triton_support import ceil, multiprocessors
from seqlab.ops.triton_support import why_unavailable as why_unavailable

HELD = 1024  # numbers of a row, or of several short ones, that a warp holds: 32 for each lane
MOST_ROWS = 32  # of a program at a time
# Warps of the backward kernel on a multiprocessor, where a row takes one and where it takes several: its four arrays of
# 32 registers leave no room for more, and programs that wait for others to end would double the time.
SINGLE_WARPS, JOINED_WARPS = 10, 8
ALIGNED = 16  # elements; no access is wider
SHARES, COLUMNS = 256, 8  # of a program that adds shares, at a time: 32 bytes are the least that a memory reads
OPTIONS = {"num_stages": 1, "enable_fp_fusion": True}


@cache
def _kernels() -> ModuleType:
    """Imported at the first call: it takes a while, and torch's wheels for CPUs come without Triton."""
    from seqlab.ops.rms_norm import triton_kernels

    return triton_kernels


def forward(
    x: Tensor, update: Tensor | None, weight: Tensor, eps: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The stream (..., D) if there is an update, y (..., D) and scale (N,); arguments as in ``operator.py``."""
    return launch.run(_forward, (x, update, weight), eps, out_dtype)


def _forward(call: Call, eps: float, out_dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    x, update = (call.converted(tensor, in_rows) for tensor in call.tensors[:2])
    weight = call.converted(call.tensors[2], Tensor.contiguous)
    tile, rows = _cut(x)
    y, scale = call.empty(*x.shape, dtype=out_dtype), call.empty(rows)
    stream = call.empty(0, dtype=x.dtype) if update is None else call.empty_like(x)
    added = x if update is None else update
    operands = (stream, y, scale, x, row_stride(x), added, row_stride(added), weight, eps, rows)
    flags = {"ALIGN": _alignment(x, added), "HAS_UPDATE": update is not None}
    call.launch(_kernels().forward_kernel, (_programs(rows, tile),), *operands, **tile, **flags, **OPTIONS)
    return stream, y, scale


def backward(
    dy: Tensor, d_stream: Tensor | None, stream: Tensor, weight: Tensor, scale: Tensor, update_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    """dx (..., D) in the stream's dtype, the same in ``update_dtype`` if that is another, and d_weight (D,).

    Arguments as in ``operator.py``.
    """
    return launch.run(_backward, (dy, d_stream, stream, weight, scale), update_dtype)


def _backward(call: Call, update_dtype: torch.dtype | None) -> tuple[Tensor, Tensor, Tensor]:
    dy, d_stream, stream = (call.converted(tensor, in_rows) for tensor in call.tensors[:3])
    weight, scale = call.converted(call.tensors[3], Tensor.contiguous), call.tensors[4]
    tile, rows = _cut(stream)
    tiles, warps = _programs(rows, tile), tile["num_warps"]
    together = (SINGLE_WARPS if warps == 1 else JOINED_WARPS // warps) * multiprocessors(stream.device)
    programs = ceil(tiles, ceil(tiles, together))  # all walk the same number of tiles, or one less
    dx, d_weight = call.empty_like(stream), call.empty_like(weight)
    rounds = update_dtype not in (None, stream.dtype)
    d_update = call.empty(*stream.shape, dtype=update_dtype) if rounds else call.empty(0, dtype=stream.dtype)
    shares = call.empty(programs, stream.shape[-1])
    along = dy if d_stream is None else d_stream
    operands = (dx, d_update, shares, dy, row_stride(dy), along, row_stride(along), stream, row_stride(stream))
    flags = {"ALIGN": _alignment(stream, dy, along), "HAS_D_STREAM": d_stream is not None, "ROUNDS_UPDATE": rounds}
    call.launch(
        _kernels().backward_kernel, (programs,), *operands, weight, scale, rows, **tile, **flags, **OPTIONS
    )  # fmt: skip
    grid = (ceil(stream.shape[-1], COLUMNS),)
    operands = (d_weight, shares, programs)
    call.launch(
        _kernels().sum_shares_kernel, grid, *operands, D=stream.shape[-1], S=SHARES, C=COLUMNS, num_warps=4, **OPTIONS
    )
    return dx, d_update, d_weight


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


def _cut(x: Tensor) -> tuple[dict[str, int], int]:
    """The tile of a program, and the number of rows."""
    width = x.shape[-1]
    padded = 1 << (width - 1).bit_length()
    down = min(MOST_ROWS, max(1, HELD // padded))
    return {"D": width, "P": padded, "R": down, "num_warps": max(1, padded // HELD)}, x.numel() // width


def _programs(rows: int, tile: dict[str, int]) -> int:
    """How many tiles there are, at least one, so that there is always something to launch."""
    return max(1, ceil(rows, tile["R"]))


def _alignment(*tensors: Tensor) -> int:
    """The largest power of two up to ``ALIGNED`` that divides the place, in elements, where every row begins."""
    return math.gcd(ALIGNED, *(row_stride(tensor) for tensor in tensors), tensors[0].shape[-1])
