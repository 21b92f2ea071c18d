"""How the work of the scan's kernels is cut: lanes, channels and chunks of a program, and its shared memory.

Symbols: Bt batch, L length, D channels, N state size; S, M, CPT and G as in ``triton_parts.py``.

``triton_parts.py`` and the files it names hold the device code and the symbols.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from seqlab.ops.triton_support import ceil

LANES = 128
"""Lanes of a program, as ``triton_lanes.LANES``: 4 warps, so that B and C, which they share, are fetched once."""

SEGMENT = 64
"""Positions between two states that the forward pass saves: N / 16 bytes for each number of u."""

SHORTEST_CHUNK = 2 * SEGMENT
"""Fewest positions of a chunk, which are processed twice and so must justify a program of their own."""

MOST_SHARED = 48 * 1024
"""Bytes of shared memory that a program may use without requesting more."""

REDUCTION = LANES // 32 * 4
"""Bytes of it that Triton takes where a kernel finds the least of its lanes' numbers, as for a chunk's resets."""


class Plan(NamedTuple):
    """How the work is cut: see ``triton_parts.py`` for S, M and CPT."""

    lanes: int  # S, lanes of one channel
    tiles: int  # M, tiles of 4 states that a lane holds of a channel
    channels: int  # CPT, channels of a lane
    chunk: int  # positions of a chunk
    n_chunks: int
    parts: int = 1  # turns in which a segment is processed, each with 4 S M of the states

    @property
    def kept(self) -> int:
        """Tiles that a lane keeps for a group in the backward pass: the states, and the sums of the parts before."""
        return self.channels * self.tiles + (ceil(3 * self.channels, 4) if self.parts > 1 else 0)

    @property
    def group(self) -> int:
        """G, positions at a time."""
        return min(self.lanes, 4)

    def channel_tiles(self, d_inner: int) -> int:
        """Programs that ``d_inner`` channels take."""
        return ceil(d_inner, self.width)

    @property
    def width(self) -> int:
        """Channels of a program."""
        return LANES // self.lanes * self.channels

    def of_all(self, d_state: int) -> "Plan":
        """The same chunks, all states at a time."""
        lanes, tiles = lanes_of(d_state)
        return self if self.parts == 1 else self._replace(lanes=lanes, tiles=tiles, channels=1, parts=1)

    def constants(self) -> dict[str, int]:
        """The kernels' compile-time constants."""
        return {"S": self.lanes, "M": self.tiles, "CPT": self.channels}


class Device(NamedTuple):
    """The properties of a device that the launches depend on."""

    multiprocessors: int
    copies: bool  # whether it copies to shared memory asynchronously (compute capability 8)
    adds_wide: bool  # whether it atomically adds four numbers to memory at once (9)


@cache
def device_at(index: int | None) -> Device:
    """The GPU of that number, or for ``None`` the interpreter."""
    if index is None:
        return Device(1, copies=False, adds_wide=False)
    properties = torch.cuda.get_device_properties(index)
    return Device(properties.multi_processor_count, copies=properties.major >= 8, adds_wide=properties.major >= 9)


def device_of(tensor: Tensor) -> Device:
    """The device of a tensor of any shape."""
    return device_at(tensor.device.index if tensor.device.type == "cuda" else None)


FEWEST = {4: 4.0, 2: 1.75, 1: 1.75}
"""Fewest programs per multiprocessor in the forward pass, by channels of a lane: what ran fastest on an H100."""

FORWARD_CHUNKED = 4
"""Programs per multiprocessor where only chunks give enough of them; likewise."""

FEWEST_BACKWARD, BACKWARD_CHUNKED = 1.6, 3
"""The same for the backward pass, which has two channels to a lane."""

CHANNELS = {1: (4, 2, 1), 2: (2, 1), 4: (2, 1)}
"""Channels that a lane may have in the forward pass, by the tiles that it holds of each; 1 if nothing is said."""

TILES = 4
"""Most tiles of a channel in a lane where all states are processed at once: 16 numbers of h and as many of A."""

PART = 16
"""States that the backward pass processes at once where there are more. Twice the states halve the channels of a warp,
which for each position reads all of B and C and adds to all of dB and dC: bytes for a channel would grow with the
square of N. A smaller part repeats what is done once per position and channel more often; one of 32 leaves no room to
sum dB and dC in shared memory."""

MOST_STATES = 32
"""Most states that it still processes at once where parts, with programs of twice the channels, leave so few of these
that the sequence would be cut into chunks too, each of which is processed twice."""


def padded_states(d_state: int) -> int:
    """N padded to a power of two, at least a tile: what a row of B and C has room for."""
    return max(1 << (d_state - 1).bit_length(), 4)


def lanes_of(d_state: int) -> tuple[int, int]:
    """S and M where all states are processed at once: at most four lanes if they suffice, for sums over n go across."""
    tiles = padded_states(d_state) // 4
    lanes = min(max(min(tiles, 4), ceil(tiles, TILES)), 32)
    return lanes, tiles // lanes


@cache
def _plan(batch: int, length: int, d_inner: int, d_state: int, direction: str, multiprocessors: int) -> Plan:
    def programs(lanes: int, channels: int) -> int:
        return batch * ceil(d_inner, LANES // lanes * channels)

    (lanes, tiles), parts = lanes_of(d_state), 1
    if direction == "forward":
        choices = CHANNELS.get(tiles, (1,))
        channels = next((c for c in choices if programs(lanes, c) >= FEWEST[c] * multiprocessors), None)
        n_chunks = 1
        if channels is None:
            channels = min(2, choices[0])
            n_chunks = FORWARD_CHUNKED * multiprocessors // programs(lanes, channels)
    else:
        fewest, part = FEWEST_BACKWARD * multiprocessors, lanes_of(PART)
        if d_state > MOST_STATES or (d_state > PART and programs(part[0], 2) >= fewest):
            (lanes, tiles), parts = part, ceil(d_state, PART)
        channels = 2 if tiles == 1 else 1
        enough = programs(lanes, channels) >= fewest
        n_chunks = 1 if enough else BACKWARD_CHUNKED * multiprocessors // programs(lanes, channels)
    n_chunks = min(max(n_chunks, 1), ceil(length, SHORTEST_CHUNK))
    chunk = ceil(ceil(length, n_chunks), SEGMENT) * SEGMENT
    return Plan(lanes, tiles, channels, chunk, ceil(length, chunk), parts)


def plan(u: Tensor, d_state: int, direction: str) -> Plan:
    """Cut the work of the "forward" or "backward" pass over u (Bt, L, D) so that every multiprocessor has some.

    Many channels in a lane share the cost of B and C, few give more warps; chunks give still more warps, but process
    every position twice. The bounds are what ran fastest on an H100.
    """
    return _plan(*u.shape, d_state, direction, device_of(u).multiprocessors)


class Ring(NamedTuple):
    """How a program uses shared memory (see ``triton_lanes.py``). All zeros: not at all."""

    stages: int = 0  # slots of a warp's ring
    fill_stages: int = 0  # slots in the same memory, smaller ones, while a segment is refilled
    sums: bool = False  # whether there is room to sum dB and dC


def part_bytes(plan: Plan, tensors: list[Tensor]) -> int:
    """As ``triton_lanes.part_bytes``, of these tensors (Bt, L, D); 0 if lanes cannot copy them, too short or mixed."""
    part = min(32 // plan.lanes * plan.channels * tensors[0].element_size(), 16)
    return part if part >= 4 and len({tensor.dtype for tensor in tensors}) == 1 else 0


def in_parts(tensor: Tensor, part: int) -> bool:
    """Whether the rows of a tensor (Bt, L, D) consist of parts of that many bytes, at multiples of it in memory."""
    numbers, unit = tensor.shape[2] | tensor.stride(0) | tensor.stride(1), 1 in (tensor.shape[2], tensor.stride(2))
    return unit and (numbers * tensor.element_size() | tensor.data_ptr()) % part == 0


@cache
def _slot_bytes(plan: Plan, tensors: int, item: int, states: int) -> int:
    """As ``triton_lanes.slot_bytes``."""
    row = 32 // plan.lanes * plan.channels * item
    part = min(row, 16)
    inputs = ceil(tensors * plan.group * (row // part), 32) * 32 * part
    return inputs + (ceil(plan.group * 2 * plan.lanes * plan.tiles, 32) + states) * 512


@cache
def _forward_ring(plan: Plan, tensors: int, item: int, resets: bool) -> Ring:
    slot, room = _slot_bytes(plan, tensors, item, 0), MOST_SHARED - REDUCTION * (resets and plan.n_chunks > 1)
    return next((Ring(n) for n in (8, 4, 2) if n * slot * LANES // 32 <= room), Ring())


@cache
def _backward_ring(plan: Plan, tensors: int, item: int) -> Ring:
    slot = _slot_bytes(plan, tensors, item, plan.kept)
    fill = _slot_bytes(plan, 2, item, 0)
    for sums in (True, False) if plan.lanes == 4 else (False,):
        room = MOST_SHARED // (LANES // 32) - sums * 4 * 2 * plan.tiles * 576
        for stages in (4, 2):
            if stages * slot <= room:
                return Ring(stages, 4 if 4 * fill <= stages * slot else 2, sums)
    return Ring()


def ring_of(direction: str, plan: Plan, tensors: list[Tensor], resets: bool = False) -> Ring:
    """The ring of one direction's kernels, which read these tensors (Bt, L, D) in their parts.

    ``resets``: whether sequences begin in the middle; then "forward" is for kernels that process chunks too.
    """
    if not (device_of(tensors[0]).copies and part_bytes(plan, tensors)):
        return Ring()
    if direction == "forward":
        return _forward_ring(plan, len(tensors), tensors[0].element_size(), resets)
    return _backward_ring(plan, len(tensors), tensors[0].element_size())
