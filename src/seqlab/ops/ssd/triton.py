"""State-space duality on a GPU: fused Triton kernels, forward and backward (arXiv:2405.21060, section 6).

Four launches forward: step sizes and decays, what each chunk adds to the state, the recurrence over the chunks, the
outputs. Backward the first three again, the last two of those also for the gradient of the state, then one for the
gradients of x and dt, and one each for those of B and C. The device code and its symbols are in ``triton_states.py``,
``triton_outputs.py`` and ``triton_backward.py``.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqlab.ops import launch
from seqlab.ops.launch import Call
from seqlab.ops.ssd.interface import Gradients, Inputs, Out
from seqlab.ops.triton_support import ceil, multiprocessors, unit_stride
from seqlab.ops.triton_support import why_unavailable as why_unavailable

try:
    import triton

    from seqlab.ops.ssd import triton_backward, triton_outputs, triton_states
except ImportError:  # a torch wheel for CPUs may come without it
    triton = None

MOST_STATES = 256
"""Largest state size, since a program holds whole rows of B and C."""


class Tile(NamedTuple):
    """The tile of a kernel with matrix products, and how it runs.

    The kernels assume, and ``tile_of`` asserts: sides are powers of two from 16 on, as matrix products need; the N of
    "projections", which has no loop over states, covers all of them; and P is at least 4 channels per warp, also where
    a head has fewer: with 2 a run on an H200 ended in an illegal access, and why is not known (docs/lab_log.md).

    In bfloat16, "outputs" has 2 warps where heads are of 16 channels or less or the number of states is odd: then its
    products are not ``wgmma``, Hopper's instruction for 4. Rows of odd length are loaded number by number, and with so
    many addresses ptxas 12.8, which Triton 3.6 and 3.7 bring, loses those of ``wgmma``'s operands where P is 16 or 32:
    an access may be illegal (``findings/ptxas_reads_a_uniform_register_that_nothing_wrote.sh``). With 16 channels and
    32 states outputs were wrong on an H200 as well (docs/lab_log.md).
    """

    P: int  # channels of a head, at most
    N: int  # states, at most
    warps: int
    stages: int


NARROW = {
    "states": Tile(64, 128, 4, 1),
    "outputs": Tile(64, MOST_STATES, 4, 2),
    "inputs": Tile(32, MOST_STATES, 8, 2),
    "projections": Tile(64, MOST_STATES, 4, 2),
}
"""For bfloat16: tiles that fit into the registers, or nearly."""

WIDE = {
    "states": Tile(64, 128, 8, 1),
    "outputs": Tile(64, 32, 4, 1),
    "inputs": Tile(32, 32, 8, 1),
    "projections": Tile(32, MOST_STATES, 8, 2),
}
"""For float32, whose rows of B and C are too wide to stay in registers: products over N load 32 states at a time."""

PRECISION = "tf32x3"
"""How float32 is multiplied: on tensor cores, as three products of factors split in two, which keeps about 21 of its 24
bits. With exact products, which tensor cores lack, the kernels were no faster than ``parallel``."""

CHUNK = 64
"""Positions of a chunk, a power of two from 16 on."""


class Plan(NamedTuple):
    """How the work is cut."""

    T: int  # positions of a chunk
    n_chunks: int
    share: int  # heads of a program, which share the products of B and C
    narrow: bool  # whether matrix products are of bfloat16, not float32


PROGRAMS = 4
"""Programs per multiprocessor up to which more programs gain more than products shared among heads."""


def _power(n: int) -> int:
    """The next power of two, at least 16, the shortest side of a matrix product."""
    return max(16, 1 << (n - 1).bit_length())


def tile_of(kernel: str, narrow: bool, d_head: int, d_state: int) -> Tile:
    """The tile for heads of these sizes."""
    most = (NARROW if narrow else WIDE)[kernel]
    tile = most._replace(P=min(max(_power(d_head), 4 * most.warps), most.P), N=min(_power(d_state), most.N))
    assert all(side == _power(side) for side in (CHUNK, tile.P, tile.N)), f"{kernel}: {CHUNK}, {tile}"
    assert 4 * tile.warps <= tile.P, f"{kernel}: too many warps for {tile}"
    assert kernel != "projections" or d_state <= tile.N, f"{kernel}: {tile} leaves states out"
    without_wgmma = kernel == "outputs" and narrow and (d_state % 2 or tile.P == 16)
    return tile._replace(warps=2) if without_wgmma else tile


def plan(inputs: Inputs) -> Plan:
    """Cut the work: as many heads per program as leave enough programs.

    Raises:
        ValueError: d_state is above ``MOST_STATES``.
    """
    batch, length, n_heads, _ = inputs.x.shape
    n_groups, d_state = inputs.B.shape[2:]
    if d_state > MOST_STATES:
        raise ValueError(f'ssd backend="triton" takes d_state up to {MOST_STATES}, not {d_state}')
    n_chunks = ceil(length, CHUNK)
    fewest = PROGRAMS * multiprocessors(inputs.x.device)
    heads = n_heads // n_groups
    shares = [n for n in range(1, heads + 1) if heads % n == 0]
    share = max((n for n in shares if batch * n_chunks * n_heads // n >= fewest), default=1)
    return Plan(CHUNK, n_chunks, share, inputs.x.dtype == torch.bfloat16)


def _parameters(tensor: Tensor) -> Tensor:
    return tensor.float().contiguous()


_Taints = tuple[Tensor | None, Tensor | None]
"""Taints of x or dy (Bt H, LP) and of B or C (Bt G, LP), written by the kernel of the states; None without seq_idx."""


class _Staged:
    """The kernels' inputs, laid out for them, and the launches that both directions share."""

    def __init__(self, call: Call, inputs: Inputs):
        self.call, self.new = call, call.empty
        self.plan = cut = plan(inputs)
        self.batch, self.length, self.n_heads, self.d_head = inputs.x.shape
        self.d_state = inputs.B.shape[3]
        self.heads = self.n_heads // inputs.B.shape[2]  # of a group
        self.x, self.B, self.C = (call.converted(t, unit_stride) for t in (inputs.x, inputs.B, inputs.C))
        self.dt, self.softplus, self.seq_idx = inputs.dt, inputs.dt_softplus, inputs.seq_idx
        self.A, self.D, self.bias = (call.converted(t, _parameters) for t in (inputs.A, *inputs[5:7]))
        multiplies = inputs.x.is_cuda  # the interpreter cannot, with bfloat16
        self.dot = torch.bfloat16 if cut.narrow and multiplies else torch.float32
        shape = (self.batch, self.n_heads, cut.n_chunks * cut.T)
        self.steps, self.high, self.low = (self.new(*shape) for _ in range(3))
        packed = self.seq_idx is not None
        self.numbers = self.new(self.batch, shape[2], dtype=torch.int32) if packed else None
        shape = (self.batch, cut.n_chunks, self.n_heads, self.d_head, self.d_state)
        self.added = self.new(*shape)  # what chunks add to the state, in one walk after the other
        self._decays()

    @property
    def decays(self) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
        """Numbers (Bt, LP) or None; steps, high and low (Bt, H, LP)."""
        return self.numbers, self.steps, self.high, self.low

    @property
    def sizes(self) -> tuple[int, ...]:
        """L, H, K and heads of a group, in the kernels' order."""
        return self.length, self.n_heads, self.plan.n_chunks, self.heads

    def constants(self, kernel: str) -> dict[str, Any]:
        """The compile-time constants of a kernel with matrix products."""
        tile = tile_of(kernel, self.plan.narrow, self.d_head, self.d_state)
        return {
            "P": self.d_head,
            "N": self.d_state,
            "T": self.plan.T,
            "BP": tile.P,
            "BN": tile.N,
            "RESETS": self.numbers is not None,
            "DOT": triton.language.bfloat16 if self.dot == torch.bfloat16 else triton.language.float32,
            "PRECISION": PRECISION,
            "num_warps": tile.warps,
            "num_stages": tile.stages,
        }

    @property
    def shares(self) -> tuple[int, int, int]:
        """The grid where a program has several heads."""
        return self.plan.n_chunks, self.n_heads // self.plan.share, self.batch

    def _decays(self) -> None:
        heads = min(_power(self.n_heads), 32)
        self.call.launch(
            triton_states.decays_kernel, (self.plan.n_chunks, ceil(self.n_heads, heads), self.batch),
            self.dt, self.A, self.bias, self.seq_idx, *self.decays, *self.sizes[:3], *self.dt.stride(),
            *((0, 0) if self.seq_idx is None else self.seq_idx.stride()), T=self.plan.T, BH=heads,
            HAS_BIAS=self.bias is not None, SOFTPLUS=self.softplus, RESETS=self.numbers is not None,
        )  # fmt: skip

    def _taints(self) -> _Taints:
        if self.numbers is None:
            return None, None
        length = self.numbers.shape[1]
        shapes = [(self.batch * self.n_heads, length), (self.batch * self.n_heads // self.heads, length)]
        return tuple(self.call.parts(self.new(sum(map(math.prod, shapes)), zeros=True), shapes))

    def walk(self, x: Tensor, B: Tensor, start: Tensor | None, back: bool) -> tuple[Tensor, Tensor, _Taints]:
        """The states before every chunk (Bt, K, H, P, N), in the dtype of matrix products, after the last, and taints.

        With ``back``, for dy and C, the gradients of the states after every chunk, before the first, and taints.
        """
        cut, size = self.plan, self.d_head * self.d_state
        added, taints = self.added, self._taints()
        constants = self.constants("states")
        tiles = ceil(self.d_head, constants["BP"]) * ceil(self.d_state, constants["BN"])
        self.call.launch(
            triton_states.states_kernel, (cut.n_chunks, tiles * self.n_heads, self.batch),
            x, B, *self.decays, added, *taints, *self.sizes, *x.stride()[:3], *B.stride()[:3],
            BACK=back, **constants,
        )  # fmt: skip
        before = self.new(*added.shape, dtype=self.dot)
        final = self.new(self.batch, self.n_heads, self.d_head, self.d_state)
        block = min(_power(size), 512)
        self.call.launch(
            triton_states.walk_kernel, (ceil(size, block), self.n_heads, self.batch),
            added, self.numbers, self.high, self.low, self.call.converted(start, Tensor.contiguous), before, final,
            self.n_heads, cut.n_chunks, SIZE=size, T=cut.T, BLOCK=block, AHEAD=4, HAS_START=start is not None,
            BACK=back, RESETS=self.numbers is not None, num_warps=4,
        )  # fmt: skip
        return before, final, taints


ANEW = Out()
"""Every gradient in a new tensor."""


def forward(inputs: Inputs, initial_state: Tensor | None) -> tuple[Tensor, Tensor]:
    """y (Bt, L, H, P) in x's dtype and the final state (Bt, H, P, N)."""
    return forward_with_states(inputs, initial_state)[:2]


def forward_with_states(inputs: Inputs, initial_state: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """What ``forward`` gives, and the states before every chunk (Bt, K, H, P, N), which ``backward`` takes."""
    return launch.run(_forward, (*inputs[:8], initial_state), inputs.dt_softplus)


def _forward(call: Call, dt_softplus: bool) -> tuple[Tensor, Tensor, Tensor]:
    a = _Staged(call, Inputs(*call.tensors[:8], dt_softplus))
    cut = a.plan
    before, final, (x_taint, _) = a.walk(a.x, a.B, call.tensors[8], back=False)
    y = call.empty_like(a.x)
    call.launch(
        triton_outputs.outputs_kernel, a.shares,
        a.x, a.B, a.C, a.D, *a.decays, before, x_taint, y, *a.sizes,
        *(stride for tensor in (a.x, a.B, a.C, y) for stride in tensor.stride()[:3]),
        SHARE=cut.share, HAS_D=a.D is not None, **a.constants("outputs"),
    )  # fmt: skip
    return y, final, before


def final_state(inputs: Inputs) -> Tensor:
    """The state (Bt, H, P, N) after all positions from zeros, without y."""
    return launch.run(_final_state, inputs[:8], inputs.dt_softplus)[0]


def _final_state(call: Call, dt_softplus: bool) -> tuple[Tensor]:
    a = _Staged(call, Inputs(*call.tensors[:8], dt_softplus))
    return (a.walk(a.x, a.B, None, back=False)[1],)


def start_gradient(inputs: Inputs, dy: Tensor) -> Tensor:
    """The gradient (Bt, H, P, N) of the state before all positions, as ``backward`` has it without d_final_state."""
    return launch.run(_start_gradient, (*inputs[:8], dy), inputs.dt_softplus)[0]


def _start_gradient(call: Call, dt_softplus: bool) -> tuple[Tensor]:
    a = _Staged(call, Inputs(*call.tensors[:8], dt_softplus))
    return (a.walk(call.converted(call.tensors[8], unit_stride), a.C, None, back=True)[1],)


def backward(
    inputs: Inputs,
    initial_state: Tensor | None,
    dy: Tensor,
    d_final_state: Tensor | None,
    out: Out = ANEW,
    before: Tensor | None = None,
) -> Gradients:
    """The gradients for dy (Bt, L, H, P) and d_final_state (Bt, H, P, N), without atomics: bitwise reproducible.

    Those of ``out`` are written there. ``before`` are the states of ``forward_with_states``, if they are at hand and no
    sequences packed; else they are computed again.
    """
    tensors = (*inputs[:8], initial_state, dy, d_final_state, before, *out)
    dx, ddt, dB, dC, sums, d_initial = launch.run(_backward, tensors, inputs.dt_softplus)
    dA, dD, d_bias = sums.sum(dim=1)  # (H,) each; those not needed are not written
    return Gradients(
        dx,
        ddt,
        dA.to(inputs.A.dtype),
        dB,
        dC,
        None if inputs.D is None else dD.to(inputs.D.dtype),
        None if inputs.dt_bias is None else d_bias.to(inputs.dt_bias.dtype),
        d_initial,
    )


def _backward(call: Call, dt_softplus: bool) -> tuple[Tensor, ...]:
    """The gradients of x, dt, B and C, those of A, D and the bias for each chunk (3, Bt K, H), that of the state."""
    inputs, (initial_state, dy, d_final_state, before, *out) = Inputs(*call.tensors[:8], dt_softplus), call.tensors[8:]
    a = _Staged(call, inputs)
    cut, dy = a.plan, call.converted(dy, unit_stride)
    B_taint = None
    if before is None:
        before, _, (_, B_taint) = a.walk(a.x, a.B, initial_state, back=False)
    after, d_initial, (dy_taint, C_taint) = a.walk(dy, a.C, d_final_state, back=True)

    likes = *inputs[:2], *inputs[3:5]
    dx, ddt, dB, dC = (call.empty_like(like) if to is None else to for like, to in zip(likes, out, strict=True))
    pairs = a.new(a.batch, cut.n_chunks, a.n_heads // cut.share, cut.T, cut.T)
    sums = a.new(3, a.batch * cut.n_chunks, a.n_heads)
    call.launch(
        triton_backward.inputs_kernel, a.shares,
        a.x, a.dt, a.A, a.B, a.C, a.D, a.bias, *a.decays, before, after, dy, dy_taint, dx, ddt, pairs, sums,
        *a.sizes, *a.x.stride()[:3], *a.dt.stride(), *(stride for t in (a.B, a.C, dy, dx) for stride in t.stride()[:3]),
        *ddt.stride(),
        SHARE=cut.share, HAS_D=a.D is not None, HAS_BIAS=a.bias is not None, SOFTPLUS=a.softplus,
        **a.constants("inputs"),
    )  # fmt: skip
    grid = (cut.n_chunks, inputs.B.shape[2], a.batch)
    for x, other, taint, states, by, back in (
        (a.x, a.C, C_taint, after, dB, False),
        (dy, a.B, B_taint, before, dC, True),
    ):
        call.launch(
            triton_backward.projections_kernel, grid,
            x, other, *a.decays, states, pairs, taint, by, *a.sizes, *x.stride()[:3], *other.stride()[:3],
            *by.stride()[:3],
            SHARE=cut.share, BACK=back, **a.constants("projections"),
        )  # fmt: skip
    return dx, ddt, dB, dC, sums, d_initial
