"""Mamba-3's block on a GPU, all between its two projections: Triton kernels, forward and backward.

Forward: step sizes and decays, norms, the angle before each chunk, in short launches; keys and queries of every head,
in the dtype of matrix products; a walk over the chunks for the states before them; the gated outputs. Backward: the
same but for the outputs, with the rotations kept; the walk back for the gradients of these states; of every chunk and
head the gradients of what is its own, then of what heads share, summed over several of them; and what is left.

Symbols, with those of ``__init__.py``: T positions of a chunk, K chunks, LP = K T; P channels of a head; s sums of the
logarithms of decays within a chunk, log2(e) s = ``high`` + ``low``; gamma = lam delta; ``scale``_t = gamma_t +
(1 - lam_{t+1}) delta_{t+1}, how much of x_t k_t^T is in the state that later positions read; DOT the dtype that enters
matrix products; BP, BN, BS sides of tiles.

Keys, queries and states hold their channels by blocks of BS pairs: channels 2 i of a block, then channels 2 i + 1, so
that turning them takes no exchange between columns; products over channels do not ask for their order. NN is N, filled
up to whole blocks; TURNED blocks have pairs that turn.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqlab.ops import launch
from seqlab.ops.launch import Call
from seqlab.ops.mamba3_inner.interface import Gradients, Inputs, Kept, Settings
from seqlab.ops.triton_support import ceil, multiprocessors

try:
    import triton

    from seqlab.ops.mamba3_inner import triton_angles, triton_chunks, triton_maps, triton_states, triton_steps
except ImportError:  # a torch wheel for CPUs may come without it
    triton = None

CHUNK = 64
"""Positions of a chunk, a power of two from 16 on."""


class Tile(NamedTuple):
    """The tile of a kernel, and how it runs."""

    width: int  # channels of the state, at most: BN; of a walk for heads of 64 channels
    warps: int
    stages: int = 1
    registers: int | None = None  # of a thread at most


LEAST_CHANNELS = 64
"""Least BP. With 16 and 32, ptxas 12.8 reads uniform registers that nothing wrote (docs/lab_log.md, 2026-11-30)."""

NARROW = {"walk": Tile(64, 4, 3), "outputs": Tile(128, 4), "inputs": Tile(128, 4), "maps": Tile(64, 4, 2)}
WIDE = {"walk": Tile(64, 8), "outputs": Tile(32, 8), "inputs": Tile(32, 8), "maps": Tile(64, 8)}
"""For bfloat16, and for float32."""

PAIRS = 16
"""Pairs of channels of a block, at most."""

PRECISION = "tf32x3"
"""How float32 is multiplied, as in ``ops/ssd/triton.py``."""

PROGRAMS, SHARED = 2, 8
"""Walks, and programs of several heads, for each multiprocessor from which on more, of shorter work, gain nothing."""

LEAST_SEGMENT = 8
"""Chunks of a walk, at least: one that is cut is made twice."""


def _power(n: int) -> int:
    """The next power of two, at least 16, the shortest side of a matrix product."""
    return max(16, 1 << (n - 1).bit_length())


def _parameters(tensor: Tensor) -> Tensor:
    return tensor.float().contiguous()


class _Staged:
    """The sizes, what all kernels read, and the launches that both directions share."""

    def __init__(self, call: Call, inputs: Inputs, settings: Settings):
        self.call, self.new, self.settings = call, call.empty, settings
        self.given = Inputs(*inputs[:5], *(call.converted(t, _parameters) for t in inputs[5:]))
        self.batch, self.length, self.d_inner = inputs.x.shape
        self.n_heads, self.d_state = inputs.map_bias.shape[1:]
        self.d_head = self.d_inner // self.n_heads
        self.block = min(_power(ceil(self.d_state, 2)), PAIRS)  # BS
        self.blocks = ceil(self.d_state, 2 * self.block)
        self.width = self.blocks * 2 * self.block  # NN
        self.turned = ceil(settings.n_pairs, self.block)
        self.chunks, self.heads = ceil(self.length, CHUNK), self.n_heads // settings.n_groups
        self.sizes = self.length, self.n_heads, self.chunks  # L, H and K
        self.of_chunks = self.batch, self.chunks, self.n_heads
        self.narrow = inputs.x.dtype == torch.bfloat16 and self.multiplies(inputs.x)
        self.dot = torch.bfloat16 if self.narrow else torch.float32
        self.strides = inputs.x.stride()[:2]
        per_head = self.batch, self.n_heads, self.chunks * CHUNK
        self.delta, self.gamma, self.scale, self.high, self.low = (self.new(*per_head) for _ in range(5))
        self.root = self.new(self.batch, 2 * settings.n_groups, self.chunks * CHUNK)
        self.tanh = self.new(self.batch, self.chunks * CHUNK, settings.n_pairs)
        self._steps()

    @staticmethod
    def multiplies(x: Tensor) -> bool:
        """Whether bfloat16 can be multiplied where x is: the interpreter cannot."""
        return x.is_cuda

    @property
    def share(self) -> int:
        """How many heads a program goes through: as many as leave enough programs."""
        programs, fewest = (
            self.blocks * self.chunks * self.n_heads * self.batch,
            SHARED * multiprocessors(self.given.x.device),
        )
        shares = [n for n in range(1, self.heads + 1) if self.heads % n == 0]
        return max((n for n in shares if programs // n >= fewest), default=1)

    def constants(self, kernel: str) -> dict[str, Any]:
        """The compile-time constants of a kernel with matrix products."""
        tile, channels = (NARROW if self.narrow else WIDE)[kernel], max(_power(self.d_head), LEAST_CHANNELS)
        width = min(_power(self.width), tile.width)  # beyond NN nothing is read or written
        if kernel == "walk":  # holds P BN numbers in registers
            width = min(width, tile.width * 64 // channels)
        return {
            "P": self.d_head,
            "NN": self.width,
            "T": CHUNK,
            "BP": channels,
            "DOT": triton.language.bfloat16 if self.narrow else triton.language.float32,
            "PRECISION": PRECISION,
            "num_warps": tile.warps,
            "num_stages": tile.stages,
            **({} if tile.registers is None else {"maxnreg": tile.registers}),
        } | ({"BS": self.block} if kernel == "maps" else {"BN": width})

    def _steps(self) -> None:
        heads, given, pairs = min(_power(self.n_heads), 32), self.given, self.settings.n_pairs
        self.call.launch(
            triton_steps.steps_kernel, (self.chunks, ceil(self.n_heads, heads), self.batch),
            given.heads, given.dt_bias, self.delta, self.gamma, self.scale, self.high, self.low,
            *self.sizes, *self.strides, T=CHUNK, BH=heads, RATIONAL=self.settings.act == "rational",
        )  # fmt: skip
        self.call.launch(
            triton_angles.rows_kernel, (self.chunks, 2 * self.settings.n_groups, self.batch),
            given.maps, given.angle, self.root, self.tanh, self.settings.eps, self.length, self.chunks, *self.strides,
            N=self.d_state, S=pairs, T=CHUNK, BN=_power(self.d_state), BS=_power(pairs),
        )  # fmt: skip

    def kept(self, rotate: bool) -> Kept:
        """Keys and queries, their rotations, if they are wanted, and the states before every chunk."""
        rotations = None
        if rotate:
            dtype = torch.float16 if self.narrow else torch.float32
            rotations = self.new(*self.of_chunks, self.turned, CHUNK, 2 * self.block, dtype=dtype)
        keys = self.keys(rotations)
        return Kept(keys, rotations, self.walk(self.given.x, keys, back=False))

    def keys(self, rotations: Tensor | None) -> Tensor:
        """k and q (2, Bt, K, H, T, NN); cosines, then sines, into ``rotations`` (Bt, K, H, TURNED, T, 2 BS)."""
        given, pairs = self.given, self.settings.n_pairs
        sums = self.new(*self.of_chunks, pairs, dtype=torch.int32)
        self.call.launch(
            triton_angles.sums_kernel, (self.n_heads, self.chunks, self.batch),
            self.tanh, self.delta, sums, *self.sizes[1:], S=pairs, T=CHUNK, BS=_power(pairs),
        )  # fmt: skip
        keys = self.new(2, *self.of_chunks, CHUNK, self.width, dtype=self.dot)
        self.call.launch(
            triton_angles.keys_kernel, (self.blocks * self.n_heads // self.share, self.chunks, self.batch),
            given.maps, self.tanh, self.root, given.norm_weight, given.map_bias, self.delta,
            self.before(sums, back=False), keys, rotations, *self.sizes, self.heads, *self.strides,
            N=self.d_state, NN=self.width, S=pairs, T=CHUNK, BS=self.block, SHARE=self.share, num_warps=8,
        )  # fmt: skip
        return keys

    def before(self, sums: Tensor, back: bool) -> Tensor:
        """Of numbers for each chunk (Bt, K, H, S) the sum over the chunks before it; with ``back`` after it."""
        result, pairs = self.new(*sums.shape, dtype=sums.dtype), sums.shape[3]
        self.call.launch(
            triton_angles.before_kernel, (self.n_heads, self.batch),
            sums, result, *self.sizes[1:], S=pairs, BS=_power(pairs), BK=32, BACK=back,
        )  # fmt: skip
        return result

    def walk(self, x: Tensor, keys: Tensor, back: bool) -> Tensor:
        """The states before every chunk (Bt, K, H, P, NN), in the dtype of matrix products, for inputs x (Bt, L, E).

        With ``back`` the gradients of the states after every chunk, for those dy of the outputs before the gate.
        """
        constants = self.constants("walk")
        size = self.d_head * self.width
        programs = ceil(self.width, constants["BN"]) * self.n_heads
        most = PROGRAMS * multiprocessors(x.device) // (programs * self.batch)
        per = ceil(self.chunks, max(1, min(most, self.chunks // LEAST_SEGMENT)))
        segments = ceil(self.chunks, per)
        result, start = self.new(*self.of_chunks, size, dtype=self.dot), None

        def walk(start: Tensor | None, before: Tensor | None, end: Tensor | None) -> None:
            self.call.launch(
                triton_states.walk_kernel, (programs, self.batch, segments),
                x, keys, self.scale, self.high, self.low, start, before, end, *self.sizes, per,
                *x.stride()[:2], BACK=back, **constants,
            )  # fmt: skip

        if segments > 1:
            end, start = (self.new(self.batch, segments, self.n_heads, size) for _ in range(2))
            walk(None, None, end)
            block = min(_power(size), 512)
            self.call.launch(
                triton_states.join_kernel, (ceil(size, block), self.n_heads, self.batch),
                end, start, self.high, self.low, *self.sizes[1:], per,
                SIZE=size, T=CHUNK, BLOCK=block, BK=32, SEGMENTS=segments, BACK=back,
            )  # fmt: skip
        walk(start, result, None)
        return result


def forward(inputs: Inputs, settings: Settings, keep: bool = False) -> tuple[Tensor, Kept | None]:
    """y silu(z) (Bt, L, E) in x's dtype; with ``keep`` what ``backward`` would compute again."""
    out, *kept = launch.run(_forward, inputs, settings, keep)
    return out, Kept(*kept) if keep else None


def _forward(call: Call, settings: Settings, keep: bool) -> tuple[Tensor, ...]:
    a = _Staged(call, Inputs(*call.tensors), settings)
    kept, x = a.kept(rotate=keep), a.given.x
    out = call.empty_like(x)
    call.launch(
        triton_chunks.outputs_kernel, (a.n_heads, a.chunks, a.batch),
        x, a.given.z, kept.keys, a.given.D, a.gamma, a.scale, a.high, a.low, kept.before, out,
        *a.sizes, *a.strides, *out.stride()[:2], **a.constants("outputs"),
    )  # fmt: skip
    return out, *(kept if keep else ())


def backward(
    inputs: Inputs, settings: Settings, d_out: Tensor, into: tuple[Tensor, ...], kept: Kept | None = None
) -> Gradients:
    """The gradients for that of the gated output (Bt, L, E), contiguous; those of the projection are written ``into``.

    Without atomics: bitwise reproducible.
    """
    out, *shares = launch.run(_backward, (*inputs, d_out, *into, *(kept or ())), settings)
    d_bias, d_norm, d_map, dD = (share.sum(dim=0) for share in shares)
    d_map = d_map.transpose(-1, -2).flatten(2)[..., : inputs.map_bias.shape[2]]  # (2, H, N), of (2, H, blocks, 2, BS)
    found = d_bias, d_norm, d_map, dD
    return Gradients(*(by.to(of.dtype) for by, of in zip(found, inputs[5:], strict=True)), out)


def _backward(call: Call, settings: Settings) -> tuple[Tensor, ...]:
    """The gated output, and each chunk's share of the gradients of the parameters (Bt K, ...)."""
    a = _Staged(call, Inputs(*call.tensors[:9]), settings)
    d_out, dz, dx, d_maps, d_heads, d_angle = call.tensors[9:15]
    kept = Kept(*call.tensors[15:]) if call.tensors[15:] else a.kept(rotate=True)
    grid, x, gate, pairs = (a.n_heads, a.chunks, a.batch), a.given.x, a.given.z, settings.n_pairs
    keys, rotations, before = kept
    dy, width = call.empty_like(d_out), min(_power(a.d_inner), 256)
    call.launch(
        triton_chunks.gates_kernel, (ceil(a.length, 16), ceil(a.d_inner, width), a.batch),
        d_out, gate, dy, a.length, *a.strides, *dy.stride()[:2], E=a.d_inner, T=16, BE=width,
    )  # fmt: skip
    after = a.walk(dy, keys, back=True)
    out, by_products = call.empty_like(d_out), a.new(*a.of_chunks, CHUNK, CHUNK, dtype=a.dot)
    d_log, d_scale, d_gamma = (a.new(*a.delta.shape) for _ in range(3))
    dD = a.new(a.batch * a.chunks, a.n_heads)
    call.launch(
        triton_chunks.inputs_kernel, grid,
        x, gate, keys, a.given.D, a.gamma, a.scale, a.high, a.low, before, after, d_out, dy, out, dx, dz, by_products,
        d_log, d_scale, d_gamma, dD, *a.sizes, *a.strides, *out.stride()[:2], *dx.stride()[:2],
        **a.constants("inputs"),
    )  # fmt: skip

    shares, length = a.n_heads // a.share, a.chunks * CHUNK
    parts, by_angle = a.new(a.batch, shares, 2, length, a.width), a.new(a.batch, shares, length, pairs)
    by_bias = a.new(a.batch * a.chunks, 2, a.n_heads, a.blocks, 2, a.block)
    by_turns, by_delta = a.new(*a.of_chunks, pairs), a.new(a.turned, *a.delta.shape)
    call.launch(
        triton_maps.maps_kernel, (a.blocks * shares, *grid[1:]),
        x, keys, a.tanh, rotations, a.delta, a.scale, a.high, a.low, before, after, dy, by_products,
        parts, by_bias, by_angle, by_turns, by_delta, *a.sizes, *a.strides, *dy.stride()[:2],
        S=pairs, SHARE=a.share, **a.constants("maps"),
    )  # fmt: skip

    d_bias = a.new(a.batch * a.chunks, a.n_heads)
    d_norm = a.new(a.batch * a.chunks * settings.n_groups, 2, a.d_state)
    call.launch(
        triton_steps.heads_kernel, grid[1:],
        a.given.heads, a.tanh, a.given.dt_bias, a.delta, d_log, d_scale, d_gamma, by_delta, by_angle,
        a.before(by_turns, back=True), d_heads, d_angle, d_bias, *a.sizes, *a.strides, *d_heads.stride()[:2],
        S=pairs, T=CHUNK, BS=_power(pairs), BH=16, BLOCKS=a.turned, SHARES=shares, RATIONAL=settings.act == "rational",
        PRECISION=PRECISION,
    )  # fmt: skip
    call.launch(
        triton_maps.norms_kernel, (a.chunks, 2 * settings.n_groups, a.batch),
        a.given.maps, a.given.norm_weight, a.root, parts, d_maps, d_norm, a.length, a.chunks, *a.strides,
        *d_maps.stride()[:2], N=a.d_state, NN=a.width, T=CHUNK, BN=_power(a.d_state), BS=a.block, G=settings.n_groups,
        SHARES=shares // settings.n_groups, num_warps=8,
    )  # fmt: skip
    return out, d_bias, d_norm, by_bias, dD
