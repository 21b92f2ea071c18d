"""The selective scan on a GPU: fused Triton kernels, forward and backward.

``triton_kernels.py`` holds the device code and the symbols; this file chooses how the work is cut and launches it.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqlab.ops.selective_scan.interface import Gradients, Inputs

try:
    import triton

    from seqlab.ops.selective_scan import triton_kernels as kernels
except ImportError:  # a torch wheel for CPUs may come without it
    triton = None

LANES = 128
"""Lanes of a program, as ``triton_kernels.LANES``: 4 warps, so that what they share, B and C, is fetched once."""

SEGMENT = 64
"""Positions between two states that the forward pass keeps: N / 16 bytes for each number of u."""

SHORTEST_CHUNK = 4 * SEGMENT
"""A chunk walks its positions twice, so it has to be worth a program of its own."""

STAGES = 4
"""Groups of positions in a warp's ring: this many less one are on their way while one is computed with."""

MOST_SHARED = 48 * 1024
"""Bytes of shared memory that a program may have without asking."""

PROGRAMS = {"forward": 3, "backward": 2}
"""Programs that a multiprocessor of an H100 runs at a time, by their registers (168 and 255 a lane)."""


def why_unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why not here: no Triton, no GPU that it knows, float64, which the kernels have no use for; else None."""
    if triton is None:
        return "triton is not installed"
    if device.type != "cuda" and not (device.type == "cpu" and triton.knobs.runtime.interpret):
        return f"no Triton on {device.type}" + (" without TRITON_INTERPRET=1" if device.type == "cpu" else "")
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"accumulates in float32, not enough for {dtype}"
    return None


class Plan(NamedTuple):
    """How the work is cut: see ``triton_kernels.py`` for S, M and CPT."""

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
        return triton.cdiv(d_inner, self.width)

    @property
    def width(self) -> int:
        """Channels of a program."""
        return LANES // self.lanes * self.channels

    def constants(self) -> dict[str, int]:
        return {"S": self.lanes, "M": self.tiles, "CPT": self.channels}


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def plan(u: Tensor, d_state: int, direction: str) -> Plan:
    """Cut the work of the "forward" or "backward" pass so that every multiprocessor has some.

    Many channels in a lane share what B and C cost, few make more warps; chunks make more warps still, but walk every
    position twice. The bounds are what ran fastest on an H100.
    """
    batch, length, d_inner = u.shape
    lanes = min(triton.next_power_of_2(triton.cdiv(d_state, 4)), 4)
    while 8 * lanes < d_state:
        lanes *= 2
    tiles = 1 if 4 * lanes >= d_state else 2
    multiprocessors = _multiprocessors(u.device)

    def programs(channels: int) -> int:
        return batch * triton.cdiv(d_inner, LANES // lanes * channels)

    slots = PROGRAMS[direction] * multiprocessors
    if direction == "forward":
        fewest = {4: 4.0, 2: 1.75, 1: 1.75}  # programs for each multiprocessor, by channels of a lane
        choices = [c for c in fewest if tiles == 1 or c == 1]
        channels = next((c for c in choices if programs(c) >= fewest[c] * multiprocessors), None)
        n_chunks = 1 if channels else slots // programs(choices[0])
        channels = channels or choices[0]
    else:
        channels = 2 if tiles == 1 else 1
        n_chunks = 1 if programs(channels) >= 0.8 * slots else 3 * slots // programs(channels)
    n_chunks = min(max(n_chunks, 1), triton.cdiv(length, SHORTEST_CHUNK))
    chunk = triton.cdiv(triton.cdiv(length, n_chunks), SEGMENT) * SEGMENT
    return Plan(lanes, tiles, channels, chunk, triton.cdiv(length, chunk))


def saved_shape(inputs: Inputs) -> tuple[int, ...]:
    """(Bt, segments, D, N): the state before every ``SEGMENT`` positions."""
    batch, length, d_inner = inputs.u.shape
    return batch, -(-length // SEGMENT), d_inner, inputs.A.shape[1]


class _Staged(NamedTuple):
    """What every kernel reads, laid out for it."""

    A: Tensor  # (D, N) float32
    BC: Tensor  # (Bt, L padded, 2, N padded) float32 in size; `triton_kernels` says in what order
    reset: Tensor  # (Bt, L padded) float32, empty without seq_idx
    u: Tensor
    delta: Tensor
    z: Tensor
    D: Tensor
    bias: Tensor
    masked: bool  # whether L or D is not a multiple of what a program takes

    def sizes(self, plan: Plan) -> tuple[int, ...]:
        """L, L padded, D, N, as the kernels want them."""
        return self.u.shape[1], self.BC.shape[1], self.u.shape[2], self.A.shape[1]

    @staticmethod
    def strides(*tensors: Tensor) -> list[int]:
        return [stride for tensor in tensors for stride in tensor.stride()[:2]]


def _rows(tensor: Tensor) -> Tensor:
    """The tensor with channels side by side in memory: itself where it is a slice of a projection."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _options(device: torch.device) -> dict[str, Any]:
    # One stage, on Blackwell too: nothing is pipelined through shared memory. Multiply-adds are fused on purpose.
    return {"num_warps": LANES // 32, "num_stages": 1, "enable_fp_fusion": True} if device.type == "cuda" else {}


def _stages(plan: Plan, tensors: list[Tensor], states: int) -> int:
    """Slots of a warp's ring, or 0 where it cannot be used: unlike dtypes, unaligned rows, too little shared memory."""
    if tensors[0].device.type != "cuda" or len({tensor.dtype for tensor in tensors}) > 1:
        return 0
    item = tensors[0].element_size()
    row = 32 // plan.lanes * plan.channels * item
    part = min(row, 16)
    if part < 4 or any(
        number * item % part for tensor in tensors for number in (*tensor.stride()[:2], tensor.shape[2])
    ) or any(tensor.data_ptr() % part for tensor in tensors):
        return 0
    copies = -(-len(tensors) * plan.group * (row // part) // 32) * part * 32
    slot = copies + -(-plan.group * 2 * plan.lanes * plan.tiles // 32) * 512 + 512 * states
    stages = STAGES
    while stages * slot * LANES // 32 > MOST_SHARED:
        stages //= 2
    return stages if stages > 1 else 0


def _stage(inputs: Inputs, plan: Plan) -> _Staged:
    u, A, B, C = inputs.u, inputs.A, inputs.B, inputs.C
    batch, length, d_inner = u.shape
    device = u.device
    padded = triton.cdiv(length, 4) * 4
    empty = torch.empty(0, device=device)
    BC = torch.empty(batch, padded, 2, plan.n_padded, device=device, dtype=torch.float32)
    reset = empty if inputs.seq_idx is None else torch.empty(batch, padded, device=device, dtype=torch.float32)
    seq_idx = empty if inputs.seq_idx is None else inputs.seq_idx
    rows = max(2048 // plan.n_padded, 8)
    kernels.stage_kernel[(triton.cdiv(padded, rows), batch)](
        B, C, seq_idx, BC, reset, length, padded, A.shape[1], *B.stride(), *C.stride(),
        *(seq_idx.stride() if inputs.seq_idx is not None else (0, 0)),
        N_PADDED=plan.n_padded, ROWS=rows, HAS_SEQ=inputs.seq_idx is not None,
    )  # fmt: skip
    return _Staged(
        A=A.float().contiguous(),
        BC=BC,
        reset=reset,
        u=_rows(u),
        delta=_rows(inputs.delta),
        z=empty[None, None] if inputs.z is None else _rows(inputs.z),
        D=empty if inputs.D is None else inputs.D.contiguous(),
        bias=empty if inputs.delta_bias is None else inputs.delta_bias.contiguous(),
        masked=length % plan.group != 0 or d_inner % plan.width != 0,
    )


def _flags(inputs: Inputs, staged: _Staged) -> dict[str, bool]:
    return {
        "HAS_BIAS": inputs.delta_bias is not None,
        "SOFTPLUS": inputs.delta_softplus,
        "RESETS": inputs.seq_idx is not None,
        "MASKED": staged.masked,
    }


def _chunk_tensors(inputs: Inputs, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """Room for what each chunk adds (Bt, K, D, N), its time (Bt, K, D) and its cut (Bt, K)."""
    if plan.n_chunks == 1:
        empty = torch.empty(0, device=inputs.u.device)
        return empty, empty, empty
    batch, _, d_inner = inputs.u.shape
    shape = (batch, plan.n_chunks, d_inner, inputs.A.shape[1])
    return tuple(inputs.u.new_empty(shape[:n], dtype=torch.float32) for n in (4, 3, 2))


def forward(inputs: Inputs, initial_state: Tensor | None, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """y (Bt, L, D) in u's dtype, the final state (Bt, D, N) and, if ``keep``, the states at segments."""
    cut = plan(inputs.u, inputs.A.shape[1], "forward")
    return _forward(inputs, initial_state, keep, cut)


def _forward(inputs: Inputs, initial_state: Tensor | None, keep: bool, cut: Plan) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, d_inner = inputs.u.shape
    d_state, device = inputs.A.shape[1], inputs.u.device
    staged = _stage(inputs, cut)
    chunks = _chunk_tensors(inputs, cut)
    y = torch.empty(inputs.u.shape, dtype=inputs.u.dtype, device=device)
    final = torch.empty(batch, d_inner, d_state, dtype=torch.float32, device=device)
    saved = torch.empty(saved_shape(inputs) if keep else (0,), dtype=torch.float32, device=device)
    grid = (cut.channel_tiles(d_inner), cut.n_chunks, batch)
    sizes = (*staged.sizes(cut), cut.chunk, cut.n_chunks)
    stages = _stages(cut, [staged.u, staged.delta] + [staged.z] * (inputs.z is not None), 0)
    shared = {**_flags(inputs, staged), **cut.constants(), "STAGES": stages, **_options(device)}
    if cut.n_chunks > 1:
        kernels.chunk_states_kernel[grid](
            staged.u, staged.delta, staged.A, staged.BC, staged.bias, staged.reset, *chunks, *sizes,
            *staged.strides(staged.u, staged.delta), **shared,
        )  # fmt: skip
    kernels.forward_kernel[grid](
        staged.u, staged.delta, staged.z, staged.A, staged.BC, staged.D, staged.bias,
        staged.A if initial_state is None else initial_state.contiguous(), staged.reset, *chunks, y, final, saved,
        *sizes, -(-length // SEGMENT), *staged.strides(staged.u, staged.delta, staged.z),
        HAS_D=inputs.D is not None, HAS_Z=inputs.z is not None, HAS_INITIAL=initial_state is not None,
        KEEP=keep, SEGMENT=SEGMENT, **shared,
    )  # fmt: skip
    return y, final, saved


def backward(inputs: Inputs, saved: Tensor, dy: Tensor, d_final_state: Tensor | None, deterministic: bool) -> Gradients:
    """Every gradient; with ``deterministic`` without atomics, for 4 bytes 2 N / 16 more memory a number of u."""
    return _backward(inputs, saved, dy, d_final_state, deterministic, plan(inputs.u, inputs.A.shape[1], "backward"))


def _backward(
    inputs: Inputs, saved: Tensor, dy: Tensor, d_final_state: Tensor | None, deterministic: bool, cut: Plan
) -> Gradients:
    batch, length, d_inner = inputs.u.shape
    d_state, device = inputs.A.shape[1], inputs.u.device
    staged = _stage(inputs, cut)
    chunks = _chunk_tensors(inputs, cut)
    dy = _rows(dy)
    tiles = cut.channel_tiles(d_inner)
    sizes = (*staged.sizes(cut), cut.chunk, cut.n_chunks)
    stages = _stages(cut, [staged.u, staged.delta, dy] + [staged.z] * (inputs.z is not None), cut.channels * cut.tiles)
    shared = {**_flags(inputs, staged), **cut.constants(), "STAGES": stages, **_options(device)}
    if cut.n_chunks > 1:
        kernels.chunk_gradients_kernel[(tiles, cut.n_chunks, batch)](
            staged.u, staged.delta, staged.z, dy, staged.A, staged.BC, staged.bias, staged.reset, *chunks, *sizes,
            *staged.strides(staged.delta, staged.z, dy), HAS_Z=inputs.z is not None, **shared,
        )  # fmt: skip

    def room(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    work = tiles * cut.n_chunks * batch
    programs = min(work, PROGRAMS["backward"] * _multiprocessors(device))
    scratch = room(programs, SEGMENT // cut.group, cut.channels * cut.tiles, 4 * LANES)
    du, d_delta = room(*inputs.u.shape, dtype=inputs.u.dtype), room(*inputs.u.shape, dtype=inputs.delta.dtype)
    dz = du if inputs.z is None else room(*inputs.u.shape, dtype=inputs.z.dtype)
    dBC = room(tiles * LANES // 32, *staged.BC.shape) if deterministic else torch.zeros_like(staged.BC)
    dA = room(batch * cut.n_chunks, d_inner, d_state)
    dD, d_bias = room(batch * cut.n_chunks, d_inner), room(batch * cut.n_chunks, d_inner)
    d_initial = room(batch, d_inner, d_state)
    kernels.backward_kernel[(programs,)](
        staged.u, staged.delta, staged.z, dy, staged.A, staged.BC, staged.D, staged.bias, staged.reset, saved,
        staged.A if d_final_state is None else d_final_state.contiguous(), *chunks, scratch,
        du, d_delta, dz, dBC, dA, dD, d_bias, d_initial,
        *sizes, saved.shape[1], tiles, work, batch, *staged.strides(staged.u, staged.delta, staged.z, dy),
        HAS_D=inputs.D is not None, HAS_Z=inputs.z is not None, HAS_FINAL=d_final_state is not None,
        SEGMENT=SEGMENT, DETERMINISTIC=deterministic, **shared,
    )  # fmt: skip
    if deterministic:
        dBC = dBC.sum(dim=0)
    dBC = dBC[:, :length, :, :d_state]
    return Gradients(
        u=du,
        delta=d_delta,
        A=dA.sum(dim=0).to(inputs.A.dtype),
        B=dBC[:, :, 0].to(inputs.B.dtype, memory_format=torch.contiguous_format),
        C=dBC[:, :, 1].to(inputs.C.dtype, memory_format=torch.contiguous_format),
        D=None if inputs.D is None else dD.sum(dim=0).to(inputs.D.dtype),
        z=None if inputs.z is None else dz,
        delta_bias=None if inputs.delta_bias is None else d_bias.sum(dim=0).to(inputs.delta_bias.dtype),
        initial_state=d_initial,
    )
