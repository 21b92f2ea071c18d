"""Mamba-3's block on a GPU, all between its two projections: Triton kernels, forward and backward.

Of what a head has of each position, such as its keys and queries, nothing is written but what the backward pass sums
over heads: every kernel makes them again from B and C, which all heads share.

Forward: step sizes and decays, norms, the angle before each chunk (three short launches); a walk over the chunks for
the states between them; the gated outputs. Backward: the same without the outputs; the walk back for the gradients of
these states; then ``triton_backward.py``, and what is left in ``triton_finish.py``.

Symbols, with those of ``__init__.py``: T positions of a chunk, K chunks, LP = K T; P channels of a head; NP = N / 2
pairs of channels, rounded up, S of them turned; alpha_t = exp(delta_t A_t), its logarithms' sums s within a chunk, kept
as log2(e) s = ``high`` + ``low``; gamma = lam delta; ``scale``_t = gamma_t + (1 - lam_{t+1}) delta_{t+1}, what of x_t k_t^T
is in the state that later positions read; DOT the dtype that enters matrix products; BP, BS sides of tiles.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqlab.ops import launch
from seqlab.ops.launch import Call
from seqlab.ops.triton_support import ceil, multiprocessors
from seqlab.ops.triton_support import why_unavailable as why_unavailable

try:
    import triton

    from seqlab.ops.mamba3_inner import triton_backward, triton_finish, triton_forward, triton_steps
except ImportError:  # a torch wheel for CPUs may come without it
    triton = None

MOST_STATES, MOST_CHANNELS = 256, 128
"""Largest state size and channels of a head: a program holds all channels, and a row of B or C."""

CHUNK = 64
"""Positions of a chunk, a power of two from 16 on."""

PAIRS = 32
"""Most pairs of channels of a tile."""

PRECISION = "tf32x3"
"""How float32 is multiplied, as in ``ops/ssd/triton.py``."""

WARPS = {"walk": 4, "outputs": 4, "inputs": 8, "maps": 8}
STAGES = {"walk": 2, "outputs": 1, "inputs": 1, "maps": 1}
PROGRAMS = 2
"""Programs for each multiprocessor from which on more, of shorter work, gain nothing."""


class Settings(NamedTuple):
    """What is not a tensor."""

    n_groups: int
    n_pairs: int  # S
    eps: float
    act: str


class Inputs(NamedTuple):
    """Parts of the projection, rows at equal distances of each other, and parameters."""

    z: Tensor  # (Bt, L, E)
    x: Tensor  # (Bt, L, E)
    maps: Tensor  # (Bt, L, 2 G N)
    heads: Tensor  # (Bt, L, 3 H)
    angle: Tensor  # (Bt, L, S)
    dt_bias: Tensor  # (H,)
    norm_weight: Tensor  # (2, N)
    map_bias: Tensor  # (2, H, N)
    D: Tensor  # (H,)


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
        self.chunks, self.heads = ceil(self.length, CHUNK), self.n_heads // settings.n_groups
        self.n_pairs = ceil(self.d_state, 2)
        narrow = inputs.x.dtype == torch.bfloat16 and inputs.x.is_cuda  # which the interpreter cannot multiply
        self.dot = torch.bfloat16 if narrow else torch.float32
        self.strides = inputs.x.stride()[:2]
        per_head = self.batch, self.n_heads, self.chunks * CHUNK
        self.delta, self.gamma, self.scale, self.high, self.low = (self.new(*per_head) for _ in range(5))
        self.root = self.new(self.batch, 2 * settings.n_groups, self.chunks * CHUNK)
        self._steps()
        self.turns = self._turns()

    @property
    def sizes(self) -> tuple[int, ...]:
        """L, H, K and heads of a group, in the kernels' order."""
        return self.length, self.n_heads, self.chunks, self.heads

    @property
    def of_chunks(self) -> tuple[int, int, int]:
        """Bt, K and H."""
        return self.batch, self.chunks, self.n_heads

    @property
    def rational(self) -> bool:
        return self.settings.act == "rational"

    @property
    def block(self) -> int:
        """BS."""
        return min(_power(self.n_pairs), PAIRS)

    def constants(self, kernel: str) -> dict[str, Any]:
        """The compile-time constants of a kernel with matrix products."""
        return {
            "P": self.d_head,
            "N": self.d_state,
            "S": self.settings.n_pairs,
            "T": CHUNK,
            "BP": _power(self.d_head),
            "BS": self.block,
            "DOT": triton.language.bfloat16 if self.dot == torch.bfloat16 else triton.language.float32,
            "PRECISION": PRECISION,
            "num_warps": WARPS[kernel],
            "num_stages": STAGES[kernel],
        }

    def _steps(self) -> None:
        heads, given = min(_power(self.n_heads), 32), self.given
        self.call.launch(
            triton_steps.steps_kernel, (self.chunks, ceil(self.n_heads, heads), self.batch),
            given.heads, given.dt_bias, self.delta, self.gamma, self.scale, self.high, self.low,
            *self.sizes[:3], *self.strides, T=CHUNK, BH=heads, RATIONAL=self.rational,
        )  # fmt: skip
        self.call.launch(
            triton_steps.roots_kernel, (self.chunks, 2 * self.settings.n_groups, self.batch),
            given.maps, self.root, self.settings.eps, self.length, self.chunks, *self.strides,
            N=self.d_state, T=CHUNK, BN=_power(self.d_state),
        )  # fmt: skip

    def _turns(self) -> Tensor:
        """The angle before each chunk (Bt, K, H, S), whole numbers of 2^-32 turns."""
        pairs = self.settings.n_pairs
        sums = self.new(*self.of_chunks, pairs, dtype=torch.int32)
        self.call.launch(
            triton_steps.sums_kernel, (self.n_heads, self.chunks, self.batch),
            self.given.angle, self.delta, sums, *self.sizes[:3], *self.strides, S=pairs, T=CHUNK, BS=_power(pairs),
        )  # fmt: skip
        return self.before(sums, back=False)

    def before(self, sums: Tensor, back: bool) -> Tensor:
        """Of a number for each chunk (Bt, K, H, S) the sum over the chunks before it; with ``back`` after it."""
        result, pairs = self.new(*sums.shape, dtype=sums.dtype), sums.shape[3]
        self.call.launch(
            triton_steps.before_kernel, (self.n_heads, self.batch),
            sums, result, self.n_heads, self.chunks, S=pairs, BS=_power(pairs), BK=32, BACK=back,
        )  # fmt: skip
        return result

    def walk(self, d_out: Tensor | None = None) -> Tensor:
        """The states before every chunk (Bt, K, H, 2, P, NP), in the dtype of matrix products.

        For the gradient of the gated output (Bt, L, E) those of the states after every chunk.
        """
        blocks, back = ceil(self.n_pairs, self.block), d_out is not None
        size = 2 * self.d_head * self.n_pairs
        programs = blocks * self.n_heads * self.batch
        segments = max(1, min(PROGRAMS * multiprocessors(self.turns.device) // programs, self.chunks // 8))
        per = ceil(self.chunks, segments)
        segments = ceil(self.chunks, per)
        result = self.new(*self.of_chunks, size, dtype=self.dot)
        x = self.given.x if d_out is None else d_out

        def launch(start: Tensor | None, before: Tensor | None, end: Tensor | None) -> None:
            self.call.launch(
                triton_forward.walk_kernel, (blocks * self.n_heads, self.batch, segments),
                x, self.given.z, self.given.maps, self.given.angle, self.given.norm_weight, self.given.map_bias,
                self.delta, self.scale, self.high, self.low, self.root, self.turns, start, before, end,
                *self.sizes, per, *self.strides, *x.stride()[:2], BACK=back, **self.constants("walk"),
            )  # fmt: skip

        start = None
        if segments > 1:
            end, start = (self.new(self.batch, segments, self.n_heads, size) for _ in range(2))
            launch(None, None, end)
            block = min(_power(size), 512)
            self.call.launch(
                triton_forward.join_kernel, (ceil(size, block), self.n_heads, self.batch),
                end, start, self.high, self.low, self.n_heads, self.chunks, per,
                SIZE=size, T=CHUNK, BLOCK=block, BK=32, SEGMENTS=segments, BACK=back,
            )  # fmt: skip
        launch(start, result, None)
        return result

    @property
    def of_head(self) -> tuple[Tensor, ...]:
        """What the kernels of a chunk and head read, in their order."""
        given = self.given
        return (
            given.x, given.z, given.maps, given.angle, given.norm_weight, given.map_bias, given.D, self.delta, self.gamma,
            self.scale, self.high, self.low, self.root, self.turns,
        )  # fmt: skip


def forward(inputs: Inputs, settings: Settings) -> Tensor:
    """y silu(z) (Bt, L, E) in x's dtype."""
    return launch.run(_forward, inputs, settings)[0]


def _forward(call: Call, settings: Settings) -> tuple[Tensor]:
    a = _Staged(call, Inputs(*call.tensors), settings)
    out = call.empty_like(a.given.x)
    call.launch(
        triton_forward.outputs_kernel, (a.n_heads, a.chunks, a.batch),
        *a.of_head, a.walk(), out, *a.sizes, *a.strides, *out.stride()[:2], **a.constants("outputs"),
    )  # fmt: skip
    return (out,)


class Gradients(NamedTuple):
    """The gradients of the parameters, and the gated output again."""

    dt_bias: Tensor
    norm_weight: Tensor
    map_bias: Tensor
    D: Tensor
    out: Tensor  # (Bt, L, E)


def backward(inputs: Inputs, settings: Settings, d_out: Tensor, into: tuple[Tensor, ...]) -> Gradients:
    """The gradients for that of the gated output (Bt, L, E), contiguous; those of the projection are written ``into``.

    Without atomics: bitwise reproducible.
    """
    out, *shares = launch.run(_backward, (*inputs, d_out, *into), settings)
    d_bias, d_norm, d_map, dD = (share.sum(dim=0) for share in shares)
    d_map = d_map.transpose(-1, -2).flatten(-2)[..., : inputs.map_bias.shape[2]]  # (2, H, N)
    found = d_bias, d_norm, d_map, dD
    return Gradients(*(by.to(of.dtype) for by, of in zip(found, inputs[5:], strict=True)), out)


def _backward(call: Call, settings: Settings) -> tuple[Tensor, ...]:
    """The gated output, and each chunk's share of the gradients of the parameters (Bt K, ...)."""
    a = _Staged(call, Inputs(*call.tensors[:9]), settings)
    d_out, dz, dx, d_maps, d_heads, d_angle = call.tensors[9:]
    before, after = a.walk(), a.walk(d_out)
    out, pairs = call.empty_like(d_out), a.new(*a.of_chunks, CHUNK, CHUNK, dtype=a.dot)
    d_log, d_scale, d_gamma = (a.new(*a.delta.shape) for _ in range(3))
    of_chunks = a.batch * a.chunks
    dD = a.new(of_chunks, a.n_heads)
    call.launch(
        triton_backward.inputs_kernel, (a.n_heads, a.chunks, a.batch),
        *a.of_head, before, after, d_out, out, dx, dz, pairs, d_log, d_scale, d_gamma, dD,
        *a.sizes, *a.strides, *out.stride()[:2], *dx.stride()[:2], **a.constants("inputs"),
    )  # fmt: skip

    blocks, share = ceil(a.n_pairs, a.block), _share(a)
    shares, turned = a.n_heads // share, ceil(settings.n_pairs, a.block)
    length = a.chunks * CHUNK
    parts = a.new(a.batch, shares, 2, length, 2 * a.n_pairs)
    by_bias = a.new(of_chunks, 2, a.n_heads, 2, a.n_pairs)
    by_angle = a.new(a.batch, shares, length, settings.n_pairs)
    by_turns, by_delta = a.new(*a.turns.shape), a.new(turned, *a.delta.shape)
    of_head = [tensor for tensor in a.of_head if tensor is not a.given.D and tensor is not a.gamma]
    call.launch(
        triton_backward.maps_kernel, (blocks * shares, a.chunks, a.batch),
        *of_head, before, after, d_out, pairs, parts, by_bias, by_angle, by_turns, by_delta,
        *a.sizes, *a.strides, *d_out.stride()[:2], SHARE=share, **a.constants("maps"),
    )  # fmt: skip

    d_bias, d_norm = a.new(of_chunks, a.n_heads), a.new(of_chunks * settings.n_groups, 2, a.d_state)
    call.launch(
        triton_finish.heads_kernel, (a.chunks, a.batch),
        a.given.heads, a.given.angle, a.given.dt_bias, a.delta, d_log, d_scale, d_gamma, by_delta, by_angle,
        a.before(by_turns, back=True), d_heads, d_angle, d_bias, *a.sizes[:3], *a.strides, *d_heads.stride()[:2],
        S=settings.n_pairs, T=CHUNK, BA=_power(settings.n_pairs), BH=16, BLOCKS=turned, SHARES=shares,
        RATIONAL=a.rational, PRECISION=PRECISION,
    )  # fmt: skip
    call.launch(
        triton_finish.norms_kernel, (a.chunks, 2 * settings.n_groups, a.batch),
        a.given.maps, a.given.norm_weight, a.root, parts, d_maps, d_norm, a.length, a.chunks, *a.strides,
        *d_maps.stride()[:2], N=a.d_state, T=CHUNK, BN=_power(a.d_state), G=settings.n_groups,
        SHARES=shares // settings.n_groups, num_warps=8,
    )  # fmt: skip
    return out, d_bias, d_norm, by_bias, dD


def _share(a: _Staged) -> int:
    """How many heads a program sums over: as many as leave enough programs."""
    programs = ceil(a.n_pairs, a.block) * a.chunks * a.n_heads * a.batch
    fewest = 4 * PROGRAMS * multiprocessors(a.turns.device)
    shares = [n for n in range(1, a.heads + 1) if a.heads % n == 0]
    return max((n for n in shares if programs // n >= fewest), default=1)
