"""The delta rule on a GPU: Triton kernels, forward and backward (arXiv:2406.06484, section 3; arXiv:2510.26692).

Three launches forward: the chunks before their states are known, the states from chunk to chunk, the outputs. Backward
the first two again, then the gradients of the states from the last chunk to the first, and those of each chunk, over
values and over keys. The device code and its symbols are in ``triton_parts.py``, ``triton_chunks.py``,
``triton_states.py`` and ``triton_gradients.py``.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqlab.ops import launch
from seqlab.ops.delta_rule.interface import MOST_KEYS, Gradients, Inputs
from seqlab.ops.launch import Call
from seqlab.ops.triton_support import ceil, multiprocessors, unit_stride
from seqlab.ops.triton_support import why_unavailable as why_unavailable

try:
    import triton

    from seqlab.ops.delta_rule import triton_chunks, triton_gradients, triton_states
except ImportError:  # a torch wheel for CPUs may come without it
    triton = None


class Tile(NamedTuple):
    """The tile of a kernel, of key channels and of values, and how it runs; sides are powers of two from 16 on."""

    K: int
    V: int
    warps: int
    stages: int


CHUNK = 32
"""Positions of a chunk, a power of two. Products of 32 rows do without ``wgmma``, Hopper's instruction for 64. In
chunks of 64 ptxas 12.8, which Triton 3.6 and 3.7 bring, makes wrong addresses of some of its operands: by channel at
all widths tried, by head where a tile is narrow (``findings/ptxas_reads_a_uniform_register_that_nothing_wrote.sh``)."""

NARROW = {
    "chunks": Tile(64, 64, 4, 2),
    "walk": Tile(MOST_KEYS, 64, 4, 2),
    "outputs": Tile(64, 64, 4, 2),
    "values": Tile(0, 64, 4, 1),
    "keys": Tile(64, 64, 8, 2),
}
"""For bfloat16: the tile of each kernel, at most."""
NARROW_BY_CHANNEL = NARROW | {"chunks": Tile(32, 64, 4, 1), "keys": Tile(32, 64, 4, 1)}
"""With a decay of each key channel."""
WIDE = {
    "chunks": Tile(32, 32, 4, 1),
    "walk": Tile(MOST_KEYS, 16, 4, 1),
    "outputs": Tile(32, 32, 4, 2),
    "values": Tile(0, 32, 4, 1),
    "keys": Tile(16, 32, 4, 1),
}
"""For float32, and for float16, whose range is too small for states."""

SUMS = {True: "tf32", False: "tf32x3"}
"""How float32 is multiplied on tensor cores, for bfloat16 arguments and for others: as factors of 11 bits, in exponents
and in the inverse alone, or as three products of factors split in two, which keeps about 21 bits of 24."""


def _power(n: int) -> int:
    """The next power of two, at least 16, the shortest side of a matrix product."""
    return max(16, 1 << (n - 1).bit_length())


class _Given(NamedTuple):
    """What the kernels get: ``Inputs`` with w in v, and what erases in one tensor."""

    q: Tensor  # (Bt, L, H, K)
    k: Tensor  # (Bt, L, H, K)
    v: Tensor  # (Bt, L, H, V)
    erase: Tensor | None  # (Bt, L, H) beta, or (Bt, L, H, K) beta k
    g: Tensor | None  # (Bt, L, H), or (Bt, L, H, K)
    seq_idx: Tensor | None  # (Bt, L)


def _given(inputs: Inputs) -> _Given:
    q, k, v, erase, g, w, seq_idx = inputs
    if erase is not None and erase.dim() == 4:
        erase = (erase * k).to(k.dtype)
    return _Given(q, k, v if w is None else (w * v).to(v.dtype), erase, g, seq_idx)


class _Staged:
    """The kernels' inputs, laid out for them, and the launches that both directions share."""

    def __init__(self, call: Call, inputs: _Given, write: bool):
        self.call, self.new, self.inputs = call, call.empty, inputs
        self.batch, self.length, self.n_heads, self.d_key = inputs.q.shape
        self.d_value = inputs.v.shape[3]
        self.narrow = inputs.q.dtype == torch.bfloat16
        self.by_channel = inputs.g is not None and inputs.g.dim() == 4
        self.tiles = (NARROW_BY_CHANNEL if self.by_channel else NARROW) if self.narrow else WIDE
        self.n_chunks = ceil(self.length, CHUNK)
        self.q, self.k, self.v = (call.converted(tensor, unit_stride) for tensor in inputs[:3])
        self.seq_idx, self.write = inputs.seq_idx, write  # whether beta says what is written, too
        self.erases = 0 if inputs.erase is None else inputs.erase.dim() - 2
        self.erase = call.converted(inputs.erase, unit_stride) if self.erases == 2 else inputs.erase
        self.g = call.converted(inputs.g, unit_stride) if self.by_channel else inputs.g
        multiplies = inputs.q.is_cuda  # the interpreter cannot, with bfloat16
        self.dot = torch.bfloat16 if self.narrow and multiplies else torch.float32

    @property
    def sizes(self) -> tuple[int, int, int]:
        """L, H and N."""
        return self.length, self.n_heads, self.n_chunks

    def strides(self, *names: str) -> list[int]:
        """Those along batch, length and heads, and of seq_idx along batch and length; zeros for None."""
        found = []
        for name in names:
            tensor, n = getattr(self, name), 2 if name == "seq_idx" else 3
            found += (0,) * n if tensor is None else tensor.stride()[:n]
        return found

    def constants(self, kernel: str, *, gates: bool = False) -> dict[str, Any]:
        """The compile-time constants of a kernel, and with ``gates`` of one that reads g and seq_idx."""
        narrow = self.dot == torch.bfloat16
        tile = self.tiles[kernel]
        found = {
            "V": self.d_value,
            "T": CHUNK,
            "BV": min(tile.V, _power(self.d_value)),
            "BY_CHANNEL": self.by_channel,
            "DOT": triton.language.bfloat16 if narrow else triton.language.float32,
            "PRECISION": SUMS[narrow],
            "num_stages": tile.stages,
        }
        if tile.K:
            found |= {"K": self.d_key, "BK": min(tile.K, _power(self.d_key))}
        # At least 4 columns for a warp, as ``ssd.triton.Tile`` says
        found["num_warps"] = min(tile.warps, found["BV"] // 4, found.get("BK", tile.V) // 4)
        if kernel != "outputs":
            found["ERASE"] = self.erases
        if gates:
            found |= {"HAS_G": self.g is not None, "RESETS": self.seq_idx is not None}
        return found

    @property
    def levels(self) -> int:
        """log2 CHUNK."""
        return CHUNK.bit_length() - 1

    def rows(self, width: int | None = None) -> Tensor:
        """Scratch memory for each position and head."""
        shape = (self.batch, self.length, self.n_heads)
        return self.new(*shape) if width is None else self.new(*shape, width, dtype=self.dot)

    def states(self) -> Tensor:
        """Scratch memory for a state of each chunk."""
        return self.new(self.batch, self.n_chunks, self.n_heads, self.d_key, self.d_value, dtype=self.dot)

    def cut(self, back: bool) -> None:
        """The chunks before the state is known."""
        width = self.d_key if self.by_channel else None
        self.start, self.end = self.rows(width), self.rows(width)
        self.decay = self.new(self.batch, self.n_chunks, self.n_heads, width or 1)
        self.qk, self.U = self.rows(CHUNK), self.rows(self.d_value)
        self.W = self.rows(self.d_key) if self.erases else None
        self.ek, self.X = (self.rows(CHUNK), self.rows(CHUNK)) if back and self.erases else (None, None)
        self.call.launch(
            triton_chunks.chunks_kernel, (self.n_chunks, self.n_heads, self.batch),
            self.q, self.k, self.v, self.erase, self.g, self.seq_idx, self.start, self.end, self.decay, self.ek,
            self.qk, self.X, self.W, self.U, *self.sizes, *self.strides("q", "k", "v", "erase", "g", "seq_idx"),
            LEVELS=self.levels, WRITE=self.write, BACK=back, **self.constants("chunks", gates=True),
        )  # fmt: skip
        # By channel q and k enter with their decays, and without where the decay is a row's
        self.read, self.written = (self.start, self.end) if self.by_channel else (self.q, self.k)

    def columns(self, kernel: str) -> tuple[tuple[int, int, int], dict[str, Any]]:
        """Grid and constants of a walk over the chunks: as wide as leaves a program for each multiprocessor."""
        constants = self.constants(kernel)
        if constants["BK"] > 128:  # two stages would not fit into shared memory
            constants["num_stages"] = 1
        fewest = multiprocessors(self.q.device)
        while constants["BV"] > 16 and ceil(self.d_value, constants["BV"]) * self.n_heads * self.batch < fewest:
            constants["BV"] //= 2
        return (ceil(self.d_value, constants["BV"]), self.n_heads, self.batch), constants

    def walk(self, initial_state: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The state before each chunk, u, and the state after the last."""
        before, u = self.states(), self.rows(self.d_value)
        final = self.new(self.batch, self.n_heads, self.d_key, self.d_value)
        grid, constants = self.columns("walk")
        self.call.launch(
            triton_states.walk_kernel, grid, self.written, self.end, self.decay, self.W, self.U,
            self.call.converted(initial_state, Tensor.contiguous), before, u, final, *self.sizes,
            *self.strides("written"), HAS_START=initial_state is not None, **constants,
        )  # fmt: skip
        return before, u, final

    def walk_back(self, dy: Tensor, d_final_state: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of the state after each chunk, of u, and of the initial state."""
        after, du = self.states(), self.rows(self.d_value)
        d_initial = self.new(self.batch, self.n_heads, self.d_key, self.d_value)
        grid, constants = self.columns("walk")
        self.call.launch(
            triton_states.walk_back_kernel, grid, self.read, self.written, self.start, self.end, self.decay, self.qk,
            self.W, dy, self.call.converted(d_final_state, Tensor.contiguous), after, du, d_initial, *self.sizes,
            *self.strides("read", "written"), *dy.stride()[:3], HAS_START=d_final_state is not None, **constants,
        )  # fmt: skip
        return after, du, d_initial


def forward(inputs: Inputs, initial_state: Tensor | None) -> tuple[Tensor, Tensor]:
    """y (Bt, L, H, V) in q's dtype and the final state (Bt, H, K, V); arguments as in ``delta_rule``."""
    return launch.run(_forward, (*_given(inputs), initial_state), inputs.w is None)


def _forward(call: Call, write: bool) -> tuple[Tensor, Tensor]:
    a = _Staged(call, _Given(*call.tensors[:6]), write)
    a.cut(back=False)
    before, u, final = a.walk(call.tensors[6])
    y = call.empty(*a.v.shape, dtype=a.q.dtype)
    constants = a.constants("outputs")
    call.launch(
        triton_states.outputs_kernel, (a.n_chunks, ceil(a.d_value, constants["BV"]) * a.n_heads, a.batch),
        a.read, a.start, a.qk, before, u, y, *a.sizes, *a.strides("read"), **constants,
    )  # fmt: skip
    return y, final


def backward(inputs: Inputs, initial_state: Tensor | None, dy: Tensor, d_final_state: Tensor | None) -> Gradients:
    """The gradients for dy (Bt, L, H, V) and d_final_state (Bt, H, K, V), without atomics: bitwise reproducible."""
    tensors = (*_given(inputs), initial_state, dy, d_final_state)
    dq, dk, dv, d_beta, dg, d_initial = launch.run(_backward, tensors, inputs.w is None)
    _, k, v, beta, g, w, _ = inputs
    dw = None
    if w is not None:
        dw, dv = (dv * v).to(w.dtype), (dv * w).to(v.dtype)
    if beta is not None and beta.dim() == 4:
        d_beta, dk = d_beta * k, (dk + beta * d_beta).to(k.dtype)
    elif beta is not None:
        d_beta = d_beta.sum(dim=0)
    if g is not None:
        dg = (dg if g.dim() == 4 else dg.sum(dim=0)).to(g.dtype)
    return Gradients(dq, dk, dv, None if beta is None else d_beta.to(beta.dtype), dg, dw, d_initial)


def _backward(call: Call, write: bool) -> tuple[Tensor | None, ...]:
    """The gradients; those of beta, and of g by head, in shares (parts, Bt, L, H)."""
    a = _Staged(call, _Given(*call.tensors[:6]), write)
    initial_state, dy, d_final_state = call.tensors[6:]
    dy = call.converted(dy, unit_stride)
    a.cut(back=True)
    before, u, _ = a.walk(initial_state)
    after, du, d_initial = a.walk_back(dy, d_final_state)

    dq, dk, dv = map(call.empty_like, a.inputs[:3])
    d_qk, d_ek, f = a.rows(CHUNK), a.rows(CHUNK) if a.erases else None, a.rows(a.d_value) if a.erases else du
    constants = a.constants("keys", gates=True)
    parts = ceil(a.d_key, constants["BK"])
    shares = (parts + 1, a.batch, a.length, a.n_heads)  # the first ones of key channels, the last of values
    d_beta, dg = (
        None if tensor is None else call.empty(*(tensor.shape if tensor.dim() == 4 else shares))
        for tensor in (a.erase, a.g)
    )
    call.launch(
        triton_gradients.values_kernel, (a.n_chunks, a.n_heads, a.batch),
        a.v, a.erase, a.g, a.seq_idx, a.ek, a.qk, a.X, u, du, dy, dv, f, d_ek, d_qk, d_beta, dg, parts, *a.sizes[:2],
        *a.strides("v", "erase", "g", "seq_idx"), *dy.stride()[:3], WRITE=write, **a.constants("values", gates=True),
    )  # fmt: skip
    call.launch(
        triton_gradients.keys_kernel, (a.n_chunks, parts * a.n_heads, a.batch),
        a.q, a.k, a.erase, a.g, a.seq_idx, a.start, a.end, a.decay, before, after, u, f, dy, d_ek, d_qk, dq, dk, d_beta,
        dg, *a.sizes, *a.strides("q", "k", "erase", "g", "seq_idx"), *dy.stride()[:3], LEVELS=a.levels, **constants,
    )  # fmt: skip
    return dq, dk, dv, d_beta, dg, d_initial
