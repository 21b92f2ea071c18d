"""The selective scan on a GPU: fused Triton kernels, forward and backward.

``triton_parts.py`` and the files it names hold the device code and the symbols; this one cuts the work and launches it.
"""

import math
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqlab.ops.selective_scan.interface import Gradients, Inputs
from seqlab.ops.triton_support import why_unavailable as why_unavailable

try:
    import triton

    from seqlab.ops.selective_scan import triton_backward, triton_ends, triton_forward
except ImportError:  # a torch wheel for CPUs may come without it
    triton = None

LANES = 128
"""Lanes of a program, as ``triton_lanes.LANES``: 4 warps, so that what they share, B and C, is fetched once."""

SEGMENT = 64
"""Positions between two states that the forward pass keeps: N / 16 bytes for each number of u."""

SHORTEST_CHUNK = 2 * SEGMENT
"""A chunk walks its positions twice, so it has to be worth a program of its own."""

MOST_SHARED = 48 * 1024
"""Bytes of shared memory that a program may have without asking for more."""


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


class Plan(NamedTuple):
    """How the work is cut: see ``triton_parts.py`` for S, M and CPT."""

    lanes: int  # S, lanes of one channel
    tiles: int  # M, tiles of 4 states that a lane holds of a channel
    channels: int  # CPT, channels of a lane
    chunk: int  # positions of a chunk
    n_chunks: int

    @property
    def n_padded(self) -> int:
        return 4 * self.lanes * self.tiles

    @property
    def group(self) -> int:
        """G, positions at a time."""
        return min(self.lanes, 4)

    def channel_tiles(self, d_inner: int) -> int:
        return _ceil(d_inner, self.width)

    @property
    def width(self) -> int:
        """Channels of a program."""
        return LANES // self.lanes * self.channels

    def constants(self) -> dict[str, int]:
        return {"S": self.lanes, "M": self.tiles, "CPT": self.channels}


class Device(NamedTuple):
    """What the launches depend on."""

    multiprocessors: int
    copies: bool  # whether it copies from memory to shared memory by itself (compute capability 8)
    adds_wide: bool  # whether it adds four numbers to memory at once (9)


@cache
def _device(index: int | None) -> Device:
    """The GPU of that number, or for ``None`` the interpreter."""
    if index is None:
        return Device(1, copies=False, adds_wide=False)
    properties = torch.cuda.get_device_properties(index)
    return Device(properties.multi_processor_count, copies=properties.major >= 8, adds_wide=properties.major >= 9)


def _device_of(tensor: Tensor) -> Device:
    return _device(tensor.device.index if tensor.device.type == "cuda" else None)


FEWEST = {4: 4.0, 2: 1.75, 1: 1.75}
"""Programs for each multiprocessor that suit the forward pass, by channels of a lane: what ran fastest on an H100."""

FORWARD_CHUNKED = 4
"""Programs for each multiprocessor where only chunks make enough of them; likewise."""

FEWEST_BACKWARD, BACKWARD_CHUNKED = 1.6, 3
"""The same for the backward pass, which has two channels to a lane."""


@cache
def _lanes(d_state: int) -> tuple[int, int]:
    """S and M for a state size: four lanes while they suffice, since sums over n cross them."""
    lanes = min(1 << (_ceil(d_state, 4) - 1).bit_length(), 4)
    while 8 * lanes < d_state:
        lanes *= 2
    return lanes, 1 if 4 * lanes >= d_state else 2


@cache
def _plan(batch: int, length: int, d_inner: int, d_state: int, direction: str, multiprocessors: int) -> Plan:
    lanes, tiles = _lanes(d_state)

    def programs(channels: int) -> int:
        return batch * _ceil(d_inner, LANES // lanes * channels)

    if direction == "forward":
        choices = [c for c in FEWEST if tiles == 1 or c == 1]
        channels = next((c for c in choices if programs(c) >= FEWEST[c] * multiprocessors), None)
        n_chunks = 1
        if channels is None:
            channels = min(2, choices[0])
            n_chunks = FORWARD_CHUNKED * multiprocessors // programs(channels)
    else:
        channels = 2 if tiles == 1 else 1
        enough = programs(channels) >= FEWEST_BACKWARD * multiprocessors
        n_chunks = 1 if enough else BACKWARD_CHUNKED * multiprocessors // programs(channels)
    n_chunks = min(max(n_chunks, 1), _ceil(length, SHORTEST_CHUNK))
    chunk = _ceil(_ceil(length, n_chunks), SEGMENT) * SEGMENT
    return Plan(lanes, tiles, channels, chunk, _ceil(length, chunk))


def plan(u: Tensor, d_state: int, direction: str) -> Plan:
    """Cut the work of the "forward" or "backward" pass so that every multiprocessor has some.

    Many channels in a lane share what B and C cost, few make more warps; chunks make more warps still, but walk every
    position twice. The bounds are what ran fastest on an H100.
    """
    return _plan(*u.shape, d_state, direction, _device_of(u).multiprocessors)


class Ring(NamedTuple):
    """How a program uses shared memory; ``triton_lanes.py`` says what for. All zeros: not at all."""

    stages: int = 0  # slots of a warp's ring
    fill_stages: int = 0  # the same memory as slots of the smaller groups that refill a segment
    sums: bool = False  # whether there is room to add dB and dC up in


def _copied(plan: Plan, tensors: list[Tensor]) -> bool:
    """Whether lanes can copy the rows of these tensors, at most 16 bytes at a time: one dtype, and all aligned."""
    dtype, item = tensors[0].dtype, tensors[0].element_size()
    part = min(32 // plan.lanes * plan.channels * item, 16)
    return part >= 4 and all(
        tensor.dtype == dtype
        and (tensor.shape[2] | tensor.stride(0) | tensor.stride(1)) * item % part == 0
        and tensor.data_ptr() % part == 0
        for tensor in tensors
    )


@cache
def _slot_bytes(plan: Plan, tensors: int, item: int, states: int) -> int:
    """As ``triton_lanes.slot_bytes``."""
    row = 32 // plan.lanes * plan.channels * item
    part = min(row, 16)
    inputs = _ceil(tensors * plan.group * (row // part), 32) * 32 * part
    return inputs + (_ceil(plan.group * 2 * plan.lanes * plan.tiles, 32) + states) * 512


@cache
def _forward_ring(plan: Plan, tensors: int, item: int) -> Ring:
    slot = _slot_bytes(plan, tensors, item, 0)
    return next((Ring(n) for n in (8, 4, 2) if n * slot * LANES // 32 <= MOST_SHARED), Ring())


@cache
def _backward_ring(plan: Plan, tensors: int, item: int) -> Ring:
    slot = _slot_bytes(plan, tensors, item, plan.channels * plan.tiles)
    fill = _slot_bytes(plan, 2, item, 0)
    for sums in (True, False) if plan.lanes == 4 else (False,):
        room = MOST_SHARED // (LANES // 32) - sums * 4 * 2 * plan.tiles * 576
        for stages in (4, 2):
            if stages * slot <= room:
                return Ring(stages, 4 if 4 * fill <= stages * slot else 2, sums)
    return Ring()


def _ring(direction: str, plan: Plan, tensors: list[Tensor]) -> Ring:
    """For the kernels of one direction that read these tensors."""
    if not (_device_of(tensors[0]).copies and _copied(plan, tensors)):
        return Ring()
    shape = _forward_ring if direction == "forward" else _backward_ring
    return shape(plan, len(tensors), tensors[0].element_size())


class Saved(NamedTuple):
    """What the forward pass leaves for the backward pass: three parts of one tensor, each at a multiple of 16 bytes."""

    BC: Tensor  # (Bt, L padded, 2, N padded) float32 in size; `triton_parts` says in what order
    reset: Tensor  # (Bt, L padded), empty without seq_idx
    states: Tensor  # (Bt, segments, D, N) before every ``SEGMENT`` positions

    @staticmethod
    def shapes(inputs: Inputs, keep: bool) -> list[tuple[int, ...]]:
        """Of the parts; without ``keep`` there are no states."""
        batch, length, d_inner = inputs.u.shape
        d_state = inputs.A.shape[1]
        lanes, tiles = _lanes(int(d_state))  # a compiler's symbol is no key of a cache
        padded = -(-length // 4) * 4
        return [
            (batch, padded, 2, 4 * lanes * tiles),
            (batch, 0 if inputs.seq_idx is None else padded),
            (batch, -(-length // SEGMENT) if keep else 0, d_inner, d_state),
        ]

    @classmethod
    def within(cls, flat: Tensor, inputs: Inputs, keep: bool) -> "Saved":
        shapes = cls.shapes(inputs, keep)
        parts = flat.split([math.prod(shape) for shape in shapes])
        return cls(*(part.view(shape) for part, shape in zip(parts, shapes, strict=True)))


def saved_shape(inputs: Inputs, keep: bool = True) -> tuple[int]:
    """Of the tensor that ``Saved`` takes apart."""
    return (sum(map(math.prod, Saved.shapes(inputs, keep))),)


def _rows(tensor: Tensor) -> Tensor:
    """The tensor with channels side by side in memory: itself where it is a slice of a projection."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


class _Staged(NamedTuple):
    """What every kernel reads, laid out for it."""

    A: Tensor  # (D, N) float32
    u: Tensor
    delta: Tensor
    z: Tensor | None
    D: Tensor | None
    bias: Tensor | None
    saved: Saved

    @classmethod
    def of(cls, inputs: Inputs, saved: Saved) -> "_Staged":
        optional = [None if tensor is None else tensor.contiguous() for tensor in (inputs.D, inputs.delta_bias)]
        z = None if inputs.z is None else _rows(inputs.z)
        return cls(inputs.A.float().contiguous(), _rows(inputs.u), _rows(inputs.delta), z, *optional, saved)

    def sizes(self, plan: Plan) -> tuple[int, ...]:
        """L, L padded, D, N, positions of a chunk, chunks: as the kernels want them."""
        _, length, d_inner = self.u.shape
        return length, self.saved.BC.shape[1], d_inner, self.A.shape[1], plan.chunk, plan.n_chunks

    def flags(self, plan: Plan, inputs: Inputs) -> dict[str, Any]:
        _, length, d_inner = self.u.shape
        return {
            "HAS_BIAS": self.bias is not None,
            "SOFTPLUS": inputs.delta_softplus,
            "RESETS": inputs.seq_idx is not None,
            "MASKED": length % plan.group != 0 or d_inner % plan.width != 0,
            **plan.constants(),
            **_options(self.u.device),
        }


def _strides(*tensors: Tensor | None) -> list[int]:
    return [stride for tensor in tensors for stride in ((0, 0) if tensor is None else tensor.stride()[:2])]


def _options(device: torch.device) -> dict[str, Any]:
    # One stage, on Blackwell too: the kernels see to their loads themselves. Multiply-adds are fused on purpose.
    return {"num_warps": LANES // 32, "num_stages": 1, "enable_fp_fusion": True} if device.type == "cuda" else {}


def _stage(inputs: Inputs, saved: Saved, plan: Plan) -> None:
    """Lay out B, C and where sequences begin."""
    B, C, seq_idx = inputs.B, inputs.C, inputs.seq_idx
    batch, padded = saved.BC.shape[:2]
    rows = max(2048 // plan.n_padded, 8)
    triton_ends.stage_kernel[(_ceil(padded, rows), batch)](
        B, C, seq_idx, saved.BC, saved.reset, B.shape[1], padded, B.shape[2], *B.stride(), *C.stride(),
        *(seq_idx.stride() if seq_idx is not None else (0, 0)),
        N_PADDED=plan.n_padded, ROWS=rows, HAS_SEQ=seq_idx is not None,
    )  # fmt: skip


def _chunk_tensors(inputs: Inputs, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """Room for what each chunk adds (Bt, K, D, N), its time (Bt, K, D) and its cut (Bt, K); any tensors if K is 1."""
    if plan.n_chunks == 1:
        return inputs.A, inputs.A, inputs.A
    batch, _, d_inner = inputs.u.shape
    shape = (batch, plan.n_chunks, d_inner, inputs.A.shape[1])
    return tuple(inputs.u.new_empty(shape[:n], dtype=torch.float32) for n in (4, 3, 2))


def forward(inputs: Inputs, initial_state: Tensor | None, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """y (Bt, L, D) in u's dtype, the final state (Bt, D, N) and, if ``keep``, what ``Saved`` describes."""
    return _forward(inputs, initial_state, keep, plan(inputs.u, inputs.A.shape[1], "forward"))


def _forward(inputs: Inputs, initial_state: Tensor | None, keep: bool, cut: Plan) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, d_inner = inputs.u.shape
    d_state, device = inputs.A.shape[1], inputs.u.device
    flat = torch.empty(saved_shape(inputs, keep), dtype=torch.float32, device=device)
    saved = Saved.within(flat, inputs, keep)
    staged = _Staged.of(inputs, saved)
    _stage(inputs, saved, cut)
    chunks = _chunk_tensors(inputs, cut)
    y = torch.empty(inputs.u.shape, dtype=inputs.u.dtype, device=device)
    final = torch.empty(batch, d_inner, d_state, dtype=torch.float32, device=device)
    grid = (cut.channel_tiles(d_inner), cut.n_chunks, batch)
    sizes, flags = staged.sizes(cut), staged.flags(cut, inputs)
    tensors = [staged.u, staged.delta] + [staged.z] * (inputs.z is not None)
    ring = _ring("forward", cut, tensors)
    if cut.n_chunks > 1:
        triton_forward.chunk_states_kernel[grid](
            staged.u, staged.delta, staged.A, saved.BC, staged.bias, saved.reset, *chunks, *sizes,
            *_strides(staged.u, staged.delta), STAGES=ring.stages, **flags,
        )  # fmt: skip
    triton_forward.forward_kernel[grid](
        staged.u, staged.delta, staged.z, staged.A, saved.BC, staged.D, staged.bias,
        staged.A if initial_state is None else initial_state.contiguous(), saved.reset, *chunks, y, final, saved.states,
        *sizes, -(-length // SEGMENT), *_strides(staged.u, staged.delta, staged.z),
        HAS_D=inputs.D is not None, HAS_Z=inputs.z is not None, HAS_INITIAL=initial_state is not None,
        KEEP=keep, SEGMENT=SEGMENT, STAGES=ring.stages, WHOLE=ring.stages > 0 and d_state == cut.n_padded, **flags,
    )  # fmt: skip
    return y, final, flat if keep else flat[:0]


def backward(inputs: Inputs, saved: Tensor, dy: Tensor, d_final_state: Tensor | None, deterministic: bool) -> Gradients:
    """Every gradient; with ``deterministic`` without atomics, for 4 bytes 2 N / 16 more memory a number of u."""
    return _backward(inputs, saved, dy, d_final_state, deterministic, plan(inputs.u, inputs.A.shape[1], "backward"))


THREE_FROM = 2.2
"""Programs for each multiprocessor from which on the backward kernel runs three at a time."""

REGISTERS = {3: 168, 2: None}
"""Registers of a lane in the backward kernel, by programs on a multiprocessor; None is as many as there are, 255."""


def _backward(
    inputs: Inputs, flat: Tensor, dy: Tensor, d_final_state: Tensor | None, deterministic: bool, cut: Plan
) -> Gradients:
    batch, _, d_inner = inputs.u.shape
    d_state, device = inputs.A.shape[1], inputs.u.device
    saved = Saved.within(flat, inputs, True)
    staged = _Staged.of(inputs, saved)
    chunks = _chunk_tensors(inputs, cut)
    dy = _rows(dy)
    tiles = cut.channel_tiles(d_inner)
    sizes, flags = staged.sizes(cut), staged.flags(cut, inputs)
    tensors = [staged.u, staged.delta, dy] + [staged.z] * (inputs.z is not None)
    gpu = _device_of(dy)
    if cut.n_chunks > 1:
        triton_backward.chunk_gradients_kernel[(tiles, cut.n_chunks, batch)](
            staged.u, staged.delta, staged.z, dy, staged.A, saved.BC, staged.bias, saved.reset, *chunks, *sizes,
            *_strides(staged.delta, staged.z, dy), HAS_Z=inputs.z is not None,
            STAGES=_ring("forward", cut, tensors).stages, **flags,
        )  # fmt: skip

    def room(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    work = tiles * cut.n_chunks * batch
    together = 3 if work > THREE_FROM * gpu.multiprocessors else 2
    programs = min(work, together * gpu.multiprocessors)
    registers = {"maxnreg": REGISTERS[together]} if gpu.copies and REGISTERS[together] else {}
    ring = _ring("backward", cut, tensors)
    scratch = room(programs, SEGMENT // cut.group, cut.channels * cut.tiles, 4 * LANES)
    du, d_delta = room(*inputs.u.shape, dtype=inputs.u.dtype), room(*inputs.u.shape, dtype=inputs.delta.dtype)
    dz = None if inputs.z is None else room(*inputs.u.shape, dtype=inputs.z.dtype)
    copies = tiles * LANES // 32 if deterministic else 1
    dBC = room(copies, *saved.BC.shape) if deterministic else torch.zeros_like(saved.BC)
    dA = room(batch * cut.n_chunks, d_inner, d_state)
    dD, d_bias = room(batch * cut.n_chunks, d_inner), room(batch * cut.n_chunks, d_inner)
    d_initial = room(batch, d_inner, d_state)
    triton_backward.backward_kernel[(programs,)](
        staged.u, staged.delta, staged.z, dy, staged.A, saved.BC, staged.D, staged.bias, saved.reset, saved.states,
        staged.A if d_final_state is None else d_final_state.contiguous(), *chunks, scratch,
        du, d_delta, dz, dBC, dA, dD, d_bias, d_initial,
        *sizes, saved.states.shape[1], tiles, work, batch, *_strides(staged.u, staged.delta, staged.z, dy),
        HAS_D=inputs.D is not None, HAS_Z=inputs.z is not None, HAS_FINAL=d_final_state is not None,
        SEGMENT=SEGMENT, DETERMINISTIC=deterministic, STAGES=ring.stages, FILL_STAGES=ring.fill_stages,
        SHARED=ring.sums, WIDE=gpu.adds_wide, **flags, **registers,
    )  # fmt: skip
    return _finish(inputs, Gradients(du, d_delta, dA, dBC, dBC, dD, dz, d_bias, d_initial), cut, copies)


def _finish(inputs: Inputs, partial: Gradients, cut: Plan, copies: int) -> Gradients:
    """Add up what programs left side by side, for A, D and the bias; and give every gradient its shape and dtype."""
    batch, length, d_inner = inputs.u.shape
    d_state = inputs.A.shape[1]
    sums = [None if given is None else torch.empty_like(given, memory_format=torch.contiguous_format)
            for given in (inputs.A, inputs.D, inputs.delta_bias)]  # fmt: skip
    dB, dC = (torch.empty(batch, length, d_state, dtype=t.dtype, device=t.device) for t in (inputs.B, inputs.C))
    programs = _ceil(d_inner * d_state, triton_ends.SUM_WIDTH.value)
    triton_ends.finish_kernel[(programs + _ceil(dB.numel(), triton_ends.ROW_WIDTH.value),)](
        partial.A, partial.D, partial.delta_bias, partial.B, *sums, dB, dC,
        batch * cut.n_chunks, d_inner * d_state, d_inner, programs, dB.numel(), length, -(-length // 4) * 4, d_state,
        batch * -(-length // 4) * 4 * 2 * cut.n_padded, copies,
        HAS_D=inputs.D is not None, HAS_BIAS=inputs.delta_bias is not None, N_PADDED=cut.n_padded,
    )  # fmt: skip
    dA, dD, d_bias = sums
    return partial._replace(A=dA, B=dB, C=dC, D=dD, delta_bias=d_bias)
