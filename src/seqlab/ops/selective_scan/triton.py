"""The selective scan on a GPU: fused Triton kernels, forward and backward.

``triton_parts.py`` and the files it names hold the device code and the symbols; ``triton_plan.py`` cuts the work, and
this file launches it.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqlab.ops import launch
from seqlab.ops.launch import Call
from seqlab.ops.selective_scan import triton_plan
from seqlab.ops.selective_scan.interface import Gradients, Inputs, Out
from seqlab.ops.selective_scan.triton_plan import (
    LANES,
    Plan,
    Ring,
    device_of,
    in_parts,
    padded_states,
    part_bytes,
    plan,
    ring_of,
)
from seqlab.ops.triton_support import ceil
from seqlab.ops.triton_support import why_unavailable as why_unavailable

try:
    import triton

    from seqlab.ops.selective_scan import triton_backward, triton_ends, triton_forward
except ImportError:  # a torch wheel for CPUs may come without it
    triton = None


class Saved(NamedTuple):
    """What the forward pass saves for the backward pass: three parts of one tensor, each at a multiple of 16 bytes."""

    BC: Tensor  # (Bt, L padded, 2, N padded) float32 numbers, in the order of `triton_parts`
    reset: Tensor  # (Bt, L padded), empty without seq_idx
    states: Tensor  # (Bt, segments, D, N) before every ``SEGMENT`` positions

    @staticmethod
    def shapes(inputs: Inputs, keep: bool) -> list[tuple[int, ...]]:
        """The shapes of the parts; without ``keep`` there are no states."""
        batch, length, d_inner = inputs.u.shape
        d_state = inputs.A.shape[1]
        padded = -(-length // 4) * 4
        return [
            (batch, padded, 2, padded_states(int(d_state))),  # a compiler's integer may be symbolic
            (batch, 0 if inputs.seq_idx is None else padded),
            (batch, -(-length // triton_plan.SEGMENT) if keep else 0, d_inner, d_state),
        ]

    @classmethod
    def within(cls, call: Call, flat: Tensor, inputs: Inputs, keep: bool) -> "Saved":
        """The parts of ``flat``, of ``saved_shape``, as views."""
        return cls(*call.parts(flat, cls.shapes(inputs, keep)))


def saved_shape(inputs: Inputs, keep: bool = True) -> tuple[int]:
    """The shape of the flat tensor with all parts of ``Saved``."""
    return (sum(map(math.prod, Saved.shapes(inputs, keep))),)


def _matrix(A: Tensor) -> Tensor:
    return A.float().contiguous()


def _padded(call: Call, tensors: list[Tensor]) -> list[Tensor]:
    """Copies of up to four tensors (Bt, L, D) of one dtype, in rows of a multiple of 16 numbers, zeros after D."""
    batch, length, d_inner = tensors[0].shape
    width = ceil(d_inner, 16) * 16  # Triton knows of such a stride, and writes several numbers at once
    size = batch * length * width
    flat = call.empty(len(tensors) * size, dtype=tensors[0].dtype)
    rows, columns = 8, min(256, 1 << (width - 1).bit_length())
    four = tensors + (4 - len(tensors)) * tensors[:1]
    call.launch(
        triton_ends.pad_kernel, (ceil(length, rows), ceil(width, columns), batch),
        *four, flat, length, d_inner, width, size, *(stride for tensor in four for stride in tensor.stride()),
        COUNT=len(tensors), ROWS=rows, COLUMNS=columns,
    )  # fmt: skip
    return call.parts(flat, [(batch, length, width)] * len(tensors))


class _Staged(NamedTuple):
    """What every kernel reads, laid out for it."""

    A: Tensor  # (D, N) float32
    D: Tensor | None
    bias: Tensor | None
    saved: Saved
    u: Tensor  # like delta, z and dy (Bt, L, D), or wider where its rows could not be copied as they lie
    delta: Tensor
    z: Tensor | None
    dy: Tensor | None

    @classmethod
    def of(cls, call: Call, inputs: Inputs, saved: Saved, plan: Plan, dy: Tensor | None = None) -> "_Staged":
        streams = (inputs.u, inputs.delta, inputs.z, dy)
        part = part_bytes(plan, [tensor for tensor in streams if tensor is not None]) or 1
        apart = [n for n, tensor in enumerate(streams) if tensor is not None and not in_parts(tensor, part)]
        copies = _padded(call, [streams[n] for n in apart]) if apart else []
        streams = [copies[apart.index(n)] if n in apart else tensor for n, tensor in enumerate(streams)]
        optional = [call.converted(tensor, Tensor.contiguous) for tensor in (inputs.D, inputs.delta_bias)]
        return cls(call.converted(inputs.A, _matrix), *optional, saved, *streams)

    def ring(self, direction: str, plan: Plan) -> Ring:
        """The ring of the kernels of a direction, which read all streams that there are."""
        streams = [tensor for tensor in (self.u, self.delta, self.z, self.dy) if tensor is not None]
        return ring_of(direction, plan, streams, self.saved.reset.numel() > 0)

    def sizes(self, plan: Plan) -> tuple[int, ...]:
        """L, L padded, D, N, positions of a chunk, chunks: as the kernels want them."""
        return self.u.shape[1], self.saved.BC.shape[1], *self.A.shape, plan.chunk, plan.n_chunks

    def flags(self, plan: Plan, inputs: Inputs) -> dict[str, Any]:
        _, length, d_inner = inputs.u.shape
        return {
            "HAS_BIAS": self.bias is not None,
            "SOFTPLUS": inputs.delta_softplus,
            "RESETS": inputs.seq_idx is not None,
            "MASKED": length % plan.group != 0 or d_inner % plan.width != 0,
            **plan.constants(),
            **_options(self.u.device),
        }


def _whole(ring: Ring, plan: Plan, d_state: int) -> bool:
    """Whether a kernel, if it has a ring, may write tiles of states at once: rows of N consist of whole ones."""
    return ring.stages > 0 and d_state % (4 * plan.lanes * plan.tiles) == 0


def _pairs(ring: Ring, *written: Tensor | None) -> bool:
    """Whether a kernel, if it has a ring, may write these tensors (Bt, L, D) two 16-bit numbers at a time."""
    return ring.stages > 0 and all(t is None or in_parts(t, 2 * t.element_size()) for t in written)


def _strides(*tensors: Tensor | None) -> list[int]:
    return [stride for tensor in tensors for stride in ((0, 0) if tensor is None else tensor.stride()[:2])]


def _options(device: torch.device) -> dict[str, Any]:
    # One stage, on Blackwell too: the kernels schedule their loads themselves. Multiply-adds are fused on purpose.
    return {"num_warps": LANES // 32, "num_stages": 1, "enable_fp_fusion": True} if device.type == "cuda" else {}


def _stage(call: Call, inputs: Inputs, saved: Saved) -> None:
    """Lay out B, C and the resets, where sequences begin."""
    B, C, seq_idx = inputs.B, inputs.C, inputs.seq_idx
    batch, padded, _, n_padded = saved.BC.shape
    rows = max(2048 // n_padded, 8)
    call.launch(
        triton_ends.stage_kernel, (ceil(padded, rows), batch),
        B, C, seq_idx, saved.BC, saved.reset, B.shape[1], padded, B.shape[2], *B.stride(), *C.stride(),
        *(seq_idx.stride() if seq_idx is not None else (0, 0)),
        N_PADDED=n_padded, ROWS=rows, HAS_SEQ=seq_idx is not None,
    )  # fmt: skip


def _chunk_tensors(call: Call, inputs: Inputs, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """Buffers for what each chunk adds (Bt, K, D, N), its time (Bt, K, D) and its cut (Bt, K)."""
    batch, _, d_inner = inputs.u.shape
    shape = (batch, plan.n_chunks, d_inner, inputs.A.shape[1])
    return tuple(call.empty(*shape[:n]) for n in (4, 3, 2))


def _chunk_states(call: Call, inputs: Inputs, staged: _Staged, cut: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """What each chunk adds, its time and its cut, as in ``_chunk_tensors``."""
    batch, _, d_inner = inputs.u.shape
    chunks, saved = _chunk_tensors(call, inputs, cut), staged.saved
    call.launch(
        triton_forward.chunk_states_kernel, (cut.channel_tiles(d_inner), cut.n_chunks, batch),
        staged.u, staged.delta, staged.A, saved.BC, staged.bias, saved.reset, *chunks, *staged.sizes(cut),
        *_strides(staged.u, staged.delta), STAGES=staged.ring("forward", cut).stages, **staged.flags(cut, inputs),
    )  # fmt: skip
    return chunks


def ends(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """What all positions multiply the state by, and what they add: (Bt, D, N) float32 each; without ``seq_idx``."""
    added, time = launch.run(_ends, inputs._replace(z=None)[:9], inputs.delta_softplus)
    later = F.pad(time, (0, 0, 0, 1))[:, 1:].flip(1).cumsum(dim=1).flip(1)  # (Bt, K, D), of the chunks after each
    A = inputs.A.float()
    return torch.exp(time.sum(dim=1).unsqueeze(2) * A), (torch.exp(later.unsqueeze(3) * A) * added).sum(dim=1)


def _ends(call: Call, delta_softplus: bool) -> tuple[Tensor, Tensor]:
    inputs = Inputs(*call.tensors[:9], delta_softplus)
    cut = plan(inputs.u, inputs.A.shape[1], "forward")
    saved = Saved.within(call, call.empty(*saved_shape(inputs, False)), inputs, False)
    staged = _Staged.of(call, inputs, saved, cut)
    _stage(call, inputs, saved)
    return _chunk_states(call, inputs, staged, cut)[:2]


def forward(inputs: Inputs, initial_state: Tensor | None, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """y (Bt, L, D) in u's dtype, the final state (Bt, D, N) and, if ``keep``, what ``Saved`` describes."""
    return launch.run(_forward, (*inputs[:9], initial_state), inputs.delta_softplus, keep)


def _forward(call: Call, delta_softplus: bool, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    inputs, initial_state = Inputs(*call.tensors[:9], delta_softplus), call.tensors[9]
    cut = plan(inputs.u, inputs.A.shape[1], "forward")
    batch, length, d_inner = inputs.u.shape
    d_state = inputs.A.shape[1]
    flat = call.empty(*saved_shape(inputs, keep))
    saved = Saved.within(call, flat, inputs, keep)
    staged = _Staged.of(call, inputs, saved, cut)
    _stage(call, inputs, saved)
    chunks = (inputs.A,) * 3  # unused if there is one
    y, final = call.empty_like(inputs.u), call.empty(batch, d_inner, d_state)
    grid = (cut.channel_tiles(d_inner), cut.n_chunks, batch)
    sizes, flags = staged.sizes(cut), staged.flags(cut, inputs)
    ring = staged.ring("forward", cut)
    if cut.n_chunks > 1:
        chunks = _chunk_states(call, inputs, staged, cut)
    call.launch(
        triton_forward.forward_kernel, grid,
        staged.u, staged.delta, staged.z, staged.A, saved.BC, staged.D, staged.bias,
        staged.A if initial_state is None else call.converted(initial_state, Tensor.contiguous), saved.reset, *chunks,
        y, final, saved.states,
        *sizes, -(-length // triton_plan.SEGMENT), *_strides(staged.u, staged.delta, staged.z),
        HAS_D=inputs.D is not None, HAS_Z=inputs.z is not None, HAS_INITIAL=initial_state is not None,
        KEEP=keep, SEGMENT=triton_plan.SEGMENT, STAGES=ring.stages,
        WHOLE=_whole(ring, cut, d_state), PAIRS=_pairs(ring, y), **flags,
    )  # fmt: skip
    return y, final, flat if keep else call.empty(0)


THREE_FROM = 2.2
"""Programs per multiprocessor above which the backward kernel runs three at a time."""

ANEW = Out()

REGISTERS = {3: 168, 2: None}
"""Registers of a lane in the backward kernel, by programs on a multiprocessor; None for the maximum, 255."""


def backward(
    inputs: Inputs, saved: Tensor, dy: Tensor, d_final_state: Tensor | None, deterministic: bool, out: Out = ANEW
) -> Gradients:
    """The gradients for dy (Bt, L, D) and d_final_state (Bt, D, N), those of ``out`` written there.

    ``deterministic`` avoids atomic additions, for N / 2 more bytes of memory per number of u.
    """
    tensors = (*inputs[:9], saved, dy, d_final_state, *out)
    return Gradients(*launch.run(_backward, tensors, inputs.delta_softplus, deterministic))


def _chunk_gradients(call: Call, inputs: Inputs, staged: _Staged, cut: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """Each chunk's gradient of the state before it (Bt, K, D, N), its time and its cut, as in ``_chunk_tensors``."""
    batch, _, d_inner = inputs.u.shape
    chunks, saved, cut = _chunk_tensors(call, inputs, cut), staged.saved, cut.of_all(inputs.A.shape[1])
    call.launch(
        triton_backward.chunk_gradients_kernel, (cut.channel_tiles(d_inner), cut.n_chunks, batch),
        staged.u, staged.delta, staged.z, staged.dy, staged.A, saved.BC, staged.bias, saved.reset, *chunks,
        *staged.sizes(cut), *_strides(staged.delta, staged.z, staged.dy), HAS_Z=inputs.z is not None,
        STAGES=staged.ring("forward", cut).stages, **staged.flags(cut, inputs),
    )  # fmt: skip
    return chunks


def start_gradient(inputs: Inputs, saved: Tensor, dy: Tensor) -> Tensor:
    """The gradient (Bt, D, N) of the state before all positions, as ``backward`` has it without d_final_state."""
    gradients, time = launch.run(_start_gradient, (*inputs[:9], saved, dy), inputs.delta_softplus)
    earlier = F.pad(time, (0, 0, 1, 0))[:, :-1].cumsum(dim=1)  # (Bt, K, D), of the chunks before each
    return (torch.exp(earlier.unsqueeze(3) * inputs.A.float()) * gradients).sum(dim=1)


def _start_gradient(call: Call, delta_softplus: bool) -> tuple[Tensor, Tensor]:
    inputs, (flat, dy) = Inputs(*call.tensors[:9], delta_softplus), call.tensors[9:]
    cut = plan(inputs.u, inputs.A.shape[1], "backward")
    staged = _Staged.of(call, inputs, Saved.within(call, flat, inputs, True), cut, dy)
    return _chunk_gradients(call, inputs, staged, cut)[:2]


def _backward(call: Call, delta_softplus: bool, deterministic: bool) -> Gradients:
    inputs, (flat, dy, d_final_state, y, *out) = Inputs(*call.tensors[:9], delta_softplus), call.tensors[9:]
    cut = plan(inputs.u, inputs.A.shape[1], "backward")
    batch, _, d_inner = inputs.u.shape
    d_state = inputs.A.shape[1]
    saved = Saved.within(call, flat, inputs, True)
    staged = _Staged.of(call, inputs, saved, cut, dy)
    chunks = (inputs.A,) * 3
    tiles = cut.channel_tiles(d_inner)
    sizes, flags = staged.sizes(cut), staged.flags(cut, inputs)
    gpu = device_of(dy)
    if cut.n_chunks > 1:
        chunks = _chunk_gradients(call, inputs, staged, cut)

    work = tiles * cut.n_chunks * batch
    together = 3 if work > THREE_FROM * gpu.multiprocessors else 2
    programs = min(work, together * gpu.multiprocessors)
    registers = {"maxnreg": REGISTERS[together]} if gpu.copies and REGISTERS[together] else {}
    ring = staged.ring("backward", cut)
    scratch = call.empty(programs, triton_plan.SEGMENT // cut.group, cut.kept, 4 * LANES)
    du, d_delta, dz, dB, dC = map(partial(_written, call), out, inputs[:2] + inputs[6:7] + inputs[3:5])
    copies = tiles * LANES // 32 if deterministic else 1
    dBC = call.empty(copies, *saved.BC.shape, zeros=not deterministic)
    rows = batch * cut.n_chunks
    dA, dD, d_bias = call.empty(rows, d_inner, d_state), call.empty(rows, d_inner), call.empty(rows, d_inner)
    d_initial = call.empty(batch, d_inner, d_state)
    carry = call.empty(rows, d_inner, d_state) if cut.parts > 1 and cut.n_chunks > 1 else d_initial
    call.launch(
        triton_backward.backward_kernel, (programs,),
        staged.u, staged.delta, staged.z, staged.dy, staged.A, saved.BC, staged.D, staged.bias, saved.reset,
        saved.states, staged.A if d_final_state is None else call.converted(d_final_state, Tensor.contiguous),
        *chunks, scratch, carry, du, d_delta, dz, y, dBC, dA, dD, d_bias, d_initial,
        *sizes, saved.states.shape[1], tiles, work, batch,
        *_strides(staged.u, staged.delta, staged.z, staged.dy), du.stride(1),
        HAS_D=inputs.D is not None, HAS_Z=inputs.z is not None, HAS_FINAL=d_final_state is not None,
        SEGMENT=triton_plan.SEGMENT, DETERMINISTIC=deterministic, PARTS=cut.parts, KEPT=cut.kept,
        ROW=2 * saved.BC.shape[3], WHOLE=cut.parts > 1 and _whole(ring, cut, d_state),
        STAGES=ring.stages, FILL_STAGES=ring.fill_stages,
        SHARED=ring.sums, WIDE=gpu.adds_wide, PAIRS=_pairs(ring, du, d_delta, dz, y), **flags, **registers,
    )  # fmt: skip
    found = Gradients(du, d_delta, dA, dB, dC, dD, dz, d_bias, d_initial)
    return _finish(call, inputs, found, dBC, cut)


def _written(call: Call, given: Tensor | None, like: Tensor | None) -> Tensor | None:
    """What is given to be written, or else a new tensor in the shape and dtype of ``like``."""
    return call.empty_like(like) if given is None else given


def _finish(call: Call, inputs: Inputs, found: Gradients, dBC: Tensor, cut: Plan) -> Gradients:
    """Sum the programs' shares of the gradients of A, D, the bias, B and C in the shape and dtype of each."""
    batch, length, d_inner = inputs.u.shape
    d_state = inputs.A.shape[1]
    dA, dD, d_bias = map(call.empty_like, (inputs.A, inputs.D, inputs.delta_bias))
    dB, dC = found.B, found.C
    programs = ceil(d_inner * d_state, triton_ends.SUM_WIDTH.value)
    call.launch(
        triton_ends.finish_kernel, (programs + ceil(dB.numel(), triton_ends.ROW_WIDTH.value),),
        found.A, found.D, found.delta_bias, dBC, dA, dD, d_bias, dB, dC,
        batch * cut.n_chunks, d_inner * d_state, d_inner, programs, dB.numel(), length, dBC.shape[2], d_state,
        dB.stride(1), dBC[0].numel(), len(dBC),
        HAS_D=inputs.D is not None, HAS_BIAS=inputs.delta_bias is not None, N_PADDED=dBC.shape[4],
    )  # fmt: skip
    return found._replace(A=dA, D=dD, delta_bias=d_bias)
