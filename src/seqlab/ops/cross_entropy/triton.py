"""Cross-entropy as two Triton kernels, each of which moves the logits once.

The loops are in ``triton_kernels.py``; this file cuts rows into programs. Symbols as there.
"""

from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from seqlab.ops import compiling
from seqlab.ops.triton_support import ceil, unit_stride
from seqlab.ops.triton_support import why_unavailable as why_unavailable

ACCESS = 16  # bytes that a thread reads or writes at once
IN_FLIGHT = 2  # such accesses of a thread in one round of the loop
LONG = 32_768  # a row of more columns occupies more warps
MOST_ROWS = 32  # of a program
KNOWN = 16  # all that Triton sees of a number is whether this divides it; other rows are aligned as if they had edges
OPTIONS = {"num_stages": 1, "enable_fp_fusion": True}


@cache
def _kernels() -> ModuleType:
    """Imported at the first call: it takes a while, and torch's wheels for CPUs come without Triton."""
    from seqlab.ops.cross_entropy import triton_kernels

    return triton_kernels


def forward(logits: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """losses (N,) and kept (2, N); arguments as in ``operator.py``."""
    logits, targets = unit_stride(logits), targets.contiguous()
    rows, columns = logits.shape
    losses = logits.new_empty(rows, dtype=torch.float32)
    kept = logits.new_empty(2, rows, dtype=torch.float32)
    tile, programs = _cut(logits)
    kernel = _kernels().forward_kernel
    operands = (losses, kept, logits, logits.stride(0), targets, ignore_index, rows, columns)
    with torch.cuda.device_of(logits):
        compiling.launch(kernel, (programs,), *operands, **tile, **OPTIONS)
    return losses, kept


def backward(
    d_losses: Tensor, logits: Tensor, targets: Tensor, kept: Tensor, ignore_index: int, *, in_place: bool = False
) -> Tensor:
    """d_logits (N, V) in the logits' dtype, or with ``in_place`` the logits, of unit stride, overwritten by it.

    The other arguments are as in ``operator.py``. In place, a thread has read what it writes over, since source and
    target are the same columns of the same row.
    """
    logits, targets = unit_stride(logits), targets.contiguous()
    rows, columns = logits.shape
    d_logits = logits if in_place else logits.new_empty(rows, columns)
    stride, d_stride = logits.stride(0), d_logits.stride(0)
    tile, programs = _cut(logits)
    aligned = (stride - d_stride) % tile["W"] == 0
    kernel = _kernels().backward_kernel
    operands = (d_logits, d_stride, d_losses, d_losses.stride(0), logits, stride, targets, kept, ignore_index)
    with torch.cuda.device_of(logits):
        compiling.launch(kernel, (programs,), *operands, rows, columns, **tile, ALIGNED=aligned, **OPTIONS)
    return d_logits


def _cut(logits: Tensor) -> tuple[dict[str, int], int]:
    """The tile of a program, in which a thread holds ``IN_FLIGHT`` groups, and the number of programs."""
    rows, columns = logits.shape
    warps = 8 if columns > LONG else 4
    group = ACCESS // logits.element_size()
    groups = 32 * warps * IN_FLIGHT  # of a tile
    across = min(groups, 1 << (ceil(columns, group) - 1).bit_length())
    down = min(MOST_ROWS, groups // across)
    edges = columns % KNOWN != 0 or logits.stride(0) % KNOWN != 0
    tile = {"R": down, "T": across, "W": group, "EDGES": edges, "num_warps": warps}
    return tile, ceil(rows, down)
