"""The mixture's operations as Triton kernels: the host never waits, and no copies in sorted order are made.

The loops are in ``triton_kernels.py``; this file cuts the work into programs. Symbols as there.
"""

from functools import cache
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from seqlab.ops import compiling
from seqlab.ops.routed_experts.groups import Groups
from seqlab.ops.triton_support import ceil
from seqlab.ops.triton_support import why_unavailable as why_unavailable

PRODUCT = {  # by bytes of an element
    4: {"BM": 128, "BN": 64, "BK": 32, "num_warps": 4, "num_stages": 3},
    2: {"BM": 128, "BN": 128, "BK": 64, "num_warps": 8, "num_stages": 3},
}
OUTER = {
    4: {"BM": 32, "BN": 64, "BK": 128, "num_warps": 4, "num_stages": 3},
    2: {"BM": 64, "BN": 128, "BK": 64, "num_warps": 4, "num_stages": 3},
}
ROWS, COLUMNS = 4, 256  # of a program of the kernels between and after the products
SMALLEST = 16  # fewest rows of a tile on tensor cores
OPTIONS = {"enable_fp_fusion": True}


@cache
def _kernels() -> ModuleType:
    """Imported at the first call: it takes a while, and torch's wheels for CPUs come without Triton."""
    from seqlab.ops.routed_experts import triton_kernels

    return triton_kernels


def _precision() -> Literal["tf32", "tf32x3"]:
    """Of float32 products, as ``torch.set_float32_matmul_precision`` sets it; other dtypes ignore it."""
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def product(x: Tensor, weight: Tensor, groups: Groups, *, spread: bool = False) -> Tensor:
    """(M, N), each row of x times its expert's matrix; arguments as in ``grouped.product``."""
    x, weight = x.contiguous(), _summands_together(weight)
    (places,), (experts, inner, columns) = groups.order.shape, weight.shape
    tile: dict[str, Any] = dict(PRODUCT[x.element_size()])
    tile["BM"] = min(tile["BM"], max(SMALLEST, _power_of_two(places)))
    y = x.new_empty(places, columns)
    row_tiles = ceil(places, tile["BM"]) + min(experts, places)  # each expert may have one that is not full
    kernel, grid = _kernels().product_kernel, (row_tiles * ceil(columns, tile["BN"]),)
    operands = (y, x, weight, *weight.stride(), groups.order, groups.ends, experts, inner, columns)
    fixed = {"FAN": groups.top_k, "SPREAD": spread, "EXPERTS": _power_of_two(experts), "PRECISION": _precision()}
    with torch.cuda.device_of(x):
        compiling.launch(kernel, grid, *operands, **fixed, **tile, **OPTIONS)
    return y


def _summands_together(right: Tensor) -> Tensor:
    """The right factor (..., K, N) of a product over K, in float32 with K contiguous in memory.

    Tensor cores read TensorFloat32 from shared memory in no other layout, and Triton's other way takes twice the time.
    """
    if right.dtype != torch.float32 or not right.is_cuda or right.stride(-2) == 1:
        return right
    return right.mT.contiguous().mT


def outer(left: Tensor, right: Tensor, groups: Groups, *, spread: Literal["left", "right"]) -> Tensor:
    """(E, K, N), the sum of outer products over each expert's rows; arguments as in ``grouped.outer``."""
    y = left.new_empty(len(groups.ends), left.shape[1], right.shape[1])
    if left.dtype == torch.float32 and left.shape[1] < right.shape[1]:  # the right factor is copied: the narrower one
        _outer(y.mT, right, left, groups, {"left": "right", "right": "left"}[spread])
    else:
        _outer(y, left, right, groups, spread)
    return y


def _outer(y: Tensor, left: Tensor, right: Tensor, groups: Groups, spread: Literal["left", "right"]) -> None:
    """Write the outer products into y (E, K, N), in any layout of an expert's matrix."""
    left, right, spreads_right = left.contiguous(), right.contiguous(), spread == "right"
    if right.dtype == torch.float32 and right.is_cuda:
        right = _summands_together(right.index_select(0, groups.tokens) if spreads_right else right)
        spreads_right = False
    _, inner, columns = y.shape
    tile = OUTER[left.element_size()]
    kernel, grid = _kernels().outer_kernel, (ceil(inner, tile["BK"]) * ceil(columns, tile["BN"]), len(y))
    fixed = {"FAN": groups.top_k, "LEFT": spread == "left", "RIGHT": spreads_right, "PRECISION": _precision()}
    operands = (y, left, right, *right.stride(), groups.order, groups.ends, inner, columns, *y.stride()[1:])
    with torch.cuda.device_of(left):
        compiling.launch(kernel, grid, *operands, **fixed, **tile, **OPTIONS)


def activate(hidden: Tensor, gates: Tensor, groups: Groups) -> Tensor:
    """(M, H), silu(a) b times the row's gate; arguments as in ``grouped.activate``."""
    places, width = len(hidden), hidden.shape[1] // 2
    active = hidden.new_empty(places, width)
    operands = (active, hidden, gates.contiguous(), groups.order, places, width)
    kernel, grid = _kernels().activate_kernel, (ceil(places, ROWS), ceil(width, COLUMNS))
    with torch.cuda.device_of(hidden):
        compiling.launch(kernel, grid, *operands, ROWS=ROWS, COLUMNS=COLUMNS, **OPTIONS)
    return active


def activate_backward(d_active: Tensor, hidden: Tensor, gates: Tensor, groups: Groups) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of hidden (M, 2 H) and the gates (T, k), and between them the result of ``activate`` (M, H)."""
    places, width = d_active.shape
    d_hidden, active = torch.empty_like(hidden), torch.empty_like(d_active)
    d_gates = torch.empty_like(gates, memory_format=torch.contiguous_format)
    operands = (d_hidden, active, d_gates, d_active, hidden, gates.contiguous(), groups.order, places, width)
    kernel, grid = _kernels().activate_backward_kernel, (ceil(places, ROWS),)
    with torch.cuda.device_of(hidden):
        compiling.launch(kernel, grid, *operands, ROWS=ROWS, COLUMNS=COLUMNS, **OPTIONS)
    return d_hidden, active, d_gates


def collect(rows: Tensor, groups: Groups) -> Tensor:
    """(T, D), for each token the sum over its ``rows`` (M, D), which are in sorted order."""
    (tokens, fan), width = groups.inverse.shape, rows.shape[1]
    y = rows.new_empty(tokens, width)
    operands = (y, rows, groups.inverse, tokens, width)
    kernel, grid = _kernels().collect_kernel, (ceil(tokens, ROWS), ceil(width, COLUMNS))
    with torch.cuda.device_of(rows):
        compiling.launch(kernel, grid, *operands, FAN=fan, ROWS=ROWS, COLUMNS=COLUMNS, **OPTIONS)
    return y
