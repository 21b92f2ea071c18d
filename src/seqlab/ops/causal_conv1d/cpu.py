"""The causal convolution fused for a CPU: bias and activation included, only the inputs saved for backward.

The loops are in ``cpu_kernels.py``; this file distributes them over threads. Symbols as there.
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from seqlab.ops.causal_conv1d.operator import Gradients
from seqlab.ops.cpu_threads import on_threads

ELEMENTS = {torch.float32: np.float32, torch.bfloat16: np.int16, torch.float16: np.uint16}
"""Numba has neither bfloat16 nor float16: the kernels get their bits, as signed and as unsigned integers."""
BLOCKS = 8  # most blocks of channels of a task, side by side, so that it reads longer stretches of memory
TASKS_PER_THREAD = 4
LEAST_NUMBERS = 2**16  # fewest numbers for a call or another thread: some 0.1 ms of work, as long as a thread's wake-up
GROUPS = 32  # most groups of sequences, whose shares of the parameters' gradients are summed one by one


def why_unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason this backend cannot run there, or None."""
    if device.type != "cpu":
        return "needs a CPU"
    if find_spec("numba") is None:
        return "the package numba is not installed"
    return None if dtype in ELEMENTS else "sums in float32 only"


@cache
def _kernels() -> ModuleType:
    """Imported at the first call, since Numba takes half a second."""
    from seqlab.ops.causal_conv1d import cpu_kernels

    return cpu_kernels


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
) -> Tensor:
    """y (Bt, L, D); arguments as in ``causal_conv1d``."""
    x = _unit_stride(x)
    y = torch.empty(x.shape, dtype=x.dtype)
    operands = _Operands(x, weight, bias, activation, initial_state, seq_idx)
    operands.spread(_kernels().forward, y.data_ptr())
    return y


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
) -> Gradients:
    """The gradients for dy (Bt, L, D); the other arguments as in ``forward``, which saves nothing."""
    x, dy = _unit_stride(x), _unit_stride(dy)
    dx = torch.empty(x.shape, dtype=x.dtype)
    d_state = None if initial_state is None else torch.empty(initial_state.shape, dtype=x.dtype)
    operands = _Operands(x, weight, bias, activation, initial_state, seq_idx)
    blocks, lags, width = operands.taps.shape
    shares = torch.zeros(min(GROUPS, x.shape[0]), blocks, lags + 1, width)
    written = (dx.data_ptr(), _address(d_state), shares.data_ptr())
    operands.spread(_kernels().backward, *written, _place(dy))
    total = shares.sum(0).transpose(0, 1).reshape(lags + 1, -1)[:, : x.shape[2]]  # (lags + 1, D)
    d_weight = total[: weight.shape[1]].flip(0).t().contiguous().to(weight.dtype)
    d_bias = None if bias is None else total[lags].to(bias.dtype, copy=True)
    return Gradients(dx, d_weight, d_bias, d_state)


class _Operands:
    """The arguments that both kernels read, in their order; holds references to the tensors passed by address."""

    def __init__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: str | None,
        initial_state: Tensor | None,
        seq_idx: Tensor | None,
    ):
        channels, taps = weight.shape
        lags, width = -(-taps // 4) * 4, _kernels().W
        blocks = -(-channels // width)
        padded = torch.zeros(blocks * width, lags)
        padded[:channels, :taps] = weight.flip(1)  # by lag
        self.x = x
        self.taps = padded.view(blocks, width, lags).transpose(1, 2).contiguous()  # (blocks, lags, W)
        self.bias = torch.zeros(blocks * width)
        if bias is not None:
            self.bias[:channels] = bias
        self.state = None if initial_state is None else initial_state.contiguous()
        self.seq_idx = None if seq_idx is None else seq_idx.to(torch.int64).contiguous()
        self.shape = (x.element_size(), *x.shape, lags)
        self.arguments = (
            *(_place(x), self.taps.data_ptr(), self.bias.data_ptr()),
            *(_address(self.state), taps - 1),
            *(_address(self.seq_idx), self.shape, activation == "silu"),
        )

    def spread(self, kernel: Callable[..., None], *first: int | tuple[int, ...]) -> None:
        """Run a kernel's tasks on as many threads as PyTorch uses; results do not depend on which runs what."""
        _, batch, _, _, lags = self.shape
        all_blocks, threads = self.taps.shape[0], torch.get_num_threads()
        groups = min(GROUPS, batch)
        blocks = max(1, min(BLOCKS, groups * all_blocks // (TASKS_PER_THREAD * threads), all_blocks))
        tasks = groups * -(-all_blocks // blocks)
        threads = min(threads, tasks, -(-self.x.numel() // LEAST_NUMBERS))
        tile = _kernels().T
        work = torch.empty(threads, (1 + tile) + blocks * 2 * (lags - 1 + tile), _kernels().W)
        fixed = (ELEMENTS[self.x.dtype], *first, *self.arguments)
        together = max(1, min(LEAST_NUMBERS * tasks // self.x.numel(), -(-tasks // threads)))
        buffers, waiting = iter(range(threads)), iter(range(0, tasks, together))

        def run() -> None:
            work_at = work[next(buffers)].data_ptr()
            for first in waiting:
                kernel(*fixed, work_at, (groups, blocks, first, min(first + together, tasks)))

        on_threads(threads, run)


def _unit_stride(tensor: Tensor) -> Tensor:
    """The tensor with channels, the vector axis, side by side; a slice of a wider tensor is not copied."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _place(tensor: Tensor) -> tuple[int, int, int]:
    """The address, and the strides of sequences and of positions in bytes."""
    size = tensor.element_size()
    return tensor.data_ptr(), tensor.stride(0) * size, tensor.stride(1) * size


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
