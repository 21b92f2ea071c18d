"""The causal convolution as fused Triton kernels: bias and activation included, only the inputs saved for backward.

The loops are in ``triton_kernels.py``; this file cuts tensors into programs. Symbols as there.
"""

from functools import cache
from types import ModuleType

from torch import Tensor

from seqlab.ops import launch
from seqlab.ops.causal_conv1d.operator import Gradients
from seqlab.ops.launch import Call
from seqlab.ops.triton_support import ceil, multiprocessors, unit_stride
from seqlab.ops.triton_support import why_unavailable as why_unavailable

LINE = 128  # bytes: a row of a tile is one cache line
THREADS = 128
RUNS = (64, 32, 16, 8)
PROGRAMS_PER_PROCESSOR = 8  # enough loads in flight to keep the memory busy
COLUMNS = 32  # channels of a program that sums shares
OPTIONS = {"num_warps": THREADS // 32, "num_stages": 1, "enable_fp_fusion": True}


@cache
def _kernels() -> ModuleType:
    """Imported at the first call: it takes a while, and torch's wheels for CPUs come without Triton."""
    from seqlab.ops.causal_conv1d import triton_kernels

    return triton_kernels


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
) -> Tensor:
    """y (Bt, L, D); arguments as in ``causal_conv1d``."""
    (y,) = launch.run(_forward, (x, weight, bias, initial_state, seq_idx), activation)
    return y


def _forward(call: Call, activation: str | None) -> tuple[Tensor]:
    x, weight, *optional = call.tensors
    x = call.converted(x, unit_stride)
    y = call.empty_like(x)
    tile, programs = _cut(x, 16 // x.element_size())
    grid, taps = (programs * tile["column_blocks"],), weight.shape[1]
    operands = _operands(call, x, weight, *optional)
    call.launch(
        _kernels().forward_kernel, grid, y, *operands, **tile, K=taps, SILU=activation == "silu", U=4, **OPTIONS
    )
    return (y,)


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    dx: Tensor | None = None,
) -> Gradients:
    """The gradients for dy (Bt, L, D); the other arguments as in ``forward``, which saves nothing.

    ``dx`` (Bt, L, D) in x's dtype, whose rows may lie apart, is where to write that of x; None for a tensor of its own.
    """
    return Gradients(*launch.run(_backward, (dy, x, weight, bias, initial_state, seq_idx, dx), activation))


def _backward(call: Call, activation: str | None) -> Gradients:
    dy, x, weight, bias, initial_state, seq_idx, dx = call.tensors
    x, dy = call.converted(x, unit_stride), call.converted(dy, unit_stride)
    (_, _, channels), taps = x.shape, weight.shape[1]
    tile, programs = _cut(x, 8 // x.element_size())
    d_weight, d_bias, d_state = map(call.empty_like, (weight, bias, initial_state))
    dx = call.empty_like(x) if dx is None else dx
    partial = call.empty(programs, taps + 1, channels)
    written = (dx, *dx.stride()[:2], d_state, partial)
    operands = (*written, dy, *dy.stride()[:2], *_operands(call, x, weight, bias, initial_state, seq_idx))
    grid, silu = (programs * tile["column_blocks"],), activation == "silu"
    call.launch(_kernels().backward_kernel, grid, *operands, **tile, K=taps, SILU=silu, U=2, **OPTIONS)
    grid = (ceil(channels, COLUMNS), taps + (bias is not None))
    call.launch(
        _kernels().sum_partial_kernel, grid, d_weight, d_bias, partial, programs, channels,
        K=taps, ROWS=32, COLUMNS=COLUMNS, **OPTIONS,
    )  # fmt: skip
    return Gradients(dx, d_weight, d_bias, d_state)


def _operands(
    call: Call,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
) -> tuple:
    """The tensors that both kernels read, with their strides."""
    bias = call.converted(bias, Tensor.contiguous)
    state = call.converted(initial_state, unit_stride)
    return (
        *(x, x.stride(0), x.stride(1)),
        *(weight, weight.stride(0), weight.stride(1)),
        bias,
        *(state, *((0, 0) if state is None else state.stride()[:2])),
        *(seq_idx, *((0, 0) if seq_idx is None else seq_idx.stride())),
        *x.shape,
    )


def _cut(x: Tensor, vector: int) -> tuple[dict[str, int], int]:
    """The tile of a program, in which a thread holds ``vector`` channels, and the number of programs along time.

    Longer runs read fewer positions twice; shorter ones give more programs, to occupy the device.
    """
    batch, length, channels = x.shape
    columns = min(LINE // x.element_size(), 1 << (channels - 1).bit_length())
    rows = THREADS * vector // columns
    column_blocks = ceil(channels, columns)
    for run in RUNS:
        runs = ceil(length, run)
        programs = ceil(batch * runs, rows)
        if programs * column_blocks >= PROGRAMS_PER_PROCESSOR * multiprocessors(x.device):
            break
    return {"runs": runs, "column_blocks": column_blocks, "T": run, "R": rows, "C": columns}, programs
