"""The fused selective scan on the CPU: the tasks of one call, on as many threads as PyTorch uses.

The arithmetic is in ``cpu_kernels``, which Numba compiles at the first call and caches on disk for the next process.
Tensors are passed as addresses and strides, so float32, bfloat16 and float16 in any layout are read in place, by the
same machine code. A task is one sequence and a group of its channels. The groups depend on the shape alone, and shares
of several tasks are summed afterwards in a fixed order, so that gradients are bitwise reproducible on any number of
threads.

Symbols: Bt batch, L length, D channels, N state size; T, W positions and channels of a tile.
"""

import gc
import threading
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seqlab.ops.cpu_threads import on_threads
from seqlab.ops.selective_scan.interface import Gradients, Inputs

TASKS = 32
"""Number of tasks, up to which sequences are split by channels."""

LEAST_NUMBERS = 2**19
"""Fewest positions x channels x states for a call: some 0.1 ms forward, where the call itself takes 0.02."""

SMALLEST_GROUP = 2
"""Fewest blocks of channels in a group: B and C are read, and their gradients folded, once per group."""

_compiling = threading.Lock()

CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


@cache
def _kernels() -> ModuleType:
    from seqlab.ops.selective_scan import cpu_kernels

    return cpu_kernels


def why_unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason this backend cannot run there, or None."""
    if device.type != "cpu":
        return f"it runs on the CPU, not on {device.type}"
    if dtype not in CODES:
        return f"it computes in float32, not in {dtype}"
    try:
        _kernels()
    except ImportError as error:
        return f"numba cannot be imported ({error})"
    return None


def saved_shape(inputs: Inputs) -> tuple[int, ...]:
    """The shape of the states before each tile: (Bt, tiles, blocks of channels, N, W)."""
    kernels = _kernels()
    batch, length, channels = inputs.u.shape
    tile, block = int(kernels.T), int(kernels.W)
    return batch, -(-length // tile), -(-channels // block), inputs.A.shape[1], block


def forward(inputs: Inputs, initial_state: Tensor | None, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """y (Bt, L, D), the final state (Bt, D, N), and the states before each tile, or without ``keep`` (0,)."""
    kernels = _kernels()
    y = torch.empty(inputs.u.shape, dtype=inputs.u.dtype)
    state = _state(inputs, initial_state)
    saved = torch.empty(saved_shape(inputs) if keep else (0,), dtype=torch.float32)
    operands = _operands({**_read(inputs), kernels.OUT_Y: y})
    groups = _groups(inputs)
    n_states = inputs.A.shape[1]
    vectors = _vectors(inputs)
    arguments = (
        operands,
        vectors.data_ptr(),
        _A(inputs),
        _fresh(inputs),
        state.numpy(),
        saved.data_ptr() if keep else 0,
        inputs.delta_softplus,
        inputs.z is not None,
    )
    places = [(span, (group.start, len(group))) for span in _spans(inputs, groups) for group in groups]
    _, _, size, *_ = kernels.scratch_layout.py_func(n_states, len(groups[0]))
    _run(kernels.forward_task, arguments, places, int(size))
    return y, state, saved


def backward(inputs: Inputs, saved: Tensor, dy: Tensor, d_final_state: Tensor | None, deterministic: bool) -> Gradients:
    """The gradients for dy (Bt, L, D) and d_final_state (Bt, D, N). Always deterministic."""
    kernels = _kernels()
    u, delta, z = inputs.u, inputs.delta, inputs.z
    (batch, length, channels), n_states = u.shape, inputs.A.shape[1]
    groups = _groups(inputs)
    du, d_delta, dz = (None if t is None else torch.empty(t.shape, dtype=t.dtype) for t in (u, delta, z))
    d_maps = torch.empty(2, len(groups), batch, length, n_states)
    dA = torch.empty(batch, channels, n_states)
    vectors = _vectors(inputs)
    d_vectors = torch.zeros(batch, *vectors.shape)
    carry = _state(inputs, d_final_state)
    outputs = {kernels.OUT_U: du, kernels.OUT_DELTA: d_delta, kernels.OUT_Z: dz}
    shares = {kernels.OUT_B: d_maps[0].flatten(0, 1), kernels.OUT_C: d_maps[1].flatten(0, 1)}
    operands = _operands({**_read(inputs), kernels.IN_DY: dy, **outputs, **shares})
    arguments = (
        operands,
        vectors.data_ptr(),
        d_vectors.data_ptr(),
        _A(inputs),
        dA.numpy(),
        _fresh(inputs),
        carry.numpy(),
        saved.data_ptr(),
        inputs.delta_softplus,
        z is not None,
    )
    places = [
        (span, (group.start, len(group)), share * batch)
        for span in _spans(inputs, groups)
        for share, group in enumerate(groups)
    ]
    *_, size = kernels.scratch_layout.py_func(n_states, len(groups[0]))
    _run(kernels.backward_task, arguments, places, int(size))
    dB, dC = d_maps.sum(dim=1) if len(groups) > 1 else d_maps[:, 0]
    skip, bias = d_vectors.sum(dim=0).transpose(0, 1).flatten(1)[:, :channels]
    return Gradients(
        du,
        d_delta,
        dA.sum(dim=0).to(inputs.A.dtype),
        dB.to(inputs.B.dtype),
        dC.to(inputs.C.dtype),
        None if inputs.D is None else skip.to(inputs.D.dtype),
        dz,
        None if inputs.delta_bias is None else bias.to(inputs.delta_bias.dtype),
        carry,
    )


def _groups(inputs: Inputs) -> list[range]:
    """The blocks of channels, in groups of a task each. They must not depend on the number of threads."""
    batch, _, channels = inputs.u.shape
    blocks = -(-channels // int(_kernels().W))
    size = max(SMALLEST_GROUP, -(-blocks * batch // TASKS))
    return [range(start, min(start + size, blocks)) for start in range(0, blocks, size)]


def _spans(inputs: Inputs, groups: list[range]) -> list[tuple[int, int]]:
    """The sequences of each task, first and end: several if one is too little work for a call from Python."""
    batch, length, _ = inputs.u.shape
    numbers = length * len(groups[0]) * int(_kernels().W) * inputs.A.shape[1]
    fair = -(-batch * len(groups) // torch.get_num_threads())  # no thread is left without a task
    together = max(1, min(LEAST_NUMBERS // numbers, fair // len(groups)))
    return [(first, min(first + together, batch)) for first in range(0, batch, together)]


def _state(inputs: Inputs, state: Tensor | None) -> Tensor:
    """A copy of a state (Bt, D, N) to be updated in place; zeros for None."""
    if state is None:
        return torch.zeros(inputs.u.shape[0], *inputs.A.shape)
    return state.detach().clone(memory_format=torch.contiguous_format)


def _A(inputs: Inputs) -> np.ndarray:  # noqa: N802
    """A (D, N) as float32, contiguous."""
    return inputs.A.detach().float().contiguous().numpy()


def _vectors(inputs: Inputs) -> Tensor:
    """D and delta_bias as float32, zeros for None: (blocks, 2, W)."""
    kernels, channels = _kernels(), inputs.u.shape[2]
    blocks, width = -(-channels // int(kernels.W)), int(kernels.W)
    vectors = torch.zeros(int(kernels.VECTORS), blocks * width)
    for row, vector in ((kernels.SKIP, inputs.D), (kernels.BIAS, inputs.delta_bias)):
        if vector is not None:
            vectors[row, :channels] = vector.detach()
    return vectors.view(-1, blocks, width).transpose(0, 1).contiguous()


def _fresh(inputs: Inputs) -> np.ndarray:
    """(Bt, L) whether a position begins a sequence, and resets the state."""
    if inputs.seq_idx is None:
        return np.zeros(inputs.u.shape[:2], dtype=np.bool_)
    changes = inputs.seq_idx[:, 1:] != inputs.seq_idx[:, :-1]
    return F.pad(changes, (1, 0)).numpy()


def _read(inputs: Inputs) -> dict[int, Tensor | None]:
    kernels = _kernels()
    return {
        kernels.IN_U: inputs.u,
        kernels.IN_DELTA: inputs.delta,
        kernels.IN_B: inputs.B,
        kernels.IN_C: inputs.C,
        kernels.IN_Z: inputs.z,
    }


def _operands(tensors: dict[int, Tensor | None]) -> np.ndarray:
    """The kernels' table of tensors: address, dtype and strides of each."""
    table = np.zeros((_kernels().OPERANDS, 5), dtype=np.int64)
    for row, tensor in tensors.items():
        if tensor is not None:
            table[row] = tensor.data_ptr(), CODES[tensor.dtype], *tensor.stride()
    return table


def _run(kernel: Any, arguments: tuple, places: list[tuple], scratch_size: int) -> None:
    """Call ``kernel(*arguments, scratch, *place)`` once for each place; an idle thread takes the next one."""
    _compile(kernel, (*arguments, 0, *places[0]))
    threads = min(torch.get_num_threads(), len(places))
    pitch = -(-scratch_size // 16) * 16  # floats, so that each buffer begins with a cache line
    scratch = torch.empty(threads * pitch)
    buffers, waiting = iter(range(threads)), iter(places)

    def work() -> None:
        scratch_at = scratch.data_ptr() + 4 * pitch * next(buffers)
        for place in waiting:
            kernel(*arguments, scratch_at, *place)

    on_threads(threads, work)


def _compile(kernel: Any, arguments: tuple) -> None:
    """Compile (or load from disk) before threads need it, without pauses for garbage collection."""
    with _compiling:
        if kernel.signatures:
            return
        collecting = gc.isenabled()
        gc.disable()
        try:
            kernel.compile(tuple(map(kernel.typeof_pyval, arguments)))
        finally:
            if collecting:
                gc.enable()
