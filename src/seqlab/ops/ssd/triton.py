"""State-space duality on a GPU: fused Triton kernels, forward and backward (arXiv:2405.21060, section 6).

Four launches forward: step sizes and decays, what each chunk adds to the state, the walk over the chunks, the outputs.
Backward the first three again, the last two of those for the gradient by the state, then one for the gradients by x and
dt, and one each for those by B and C. The device code and its symbols are in ``triton_states.py``,
``triton_outputs.py`` and ``triton_backward.py``.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqlab.ops.ssd.interface import Gradients, Inputs

try:
    import triton

    from seqlab.ops.ssd import triton_backward, triton_outputs, triton_states
except ImportError:  # a torch wheel for CPUs may come without it
    triton = None

MOST_STATES = 256
"""Largest state size: a program holds whole rows of B and C."""


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
    """How the work is cut."""

    T: int  # positions of a chunk
    BP: int  # channels of a head at a time
    BN: int  # states, a power of two
    n_chunks: int
    share: int  # heads of a program, which share the products of B and C
    narrow: bool  # whether bfloat16 enters matrix products, and not float32


@cache
def _multiprocessors(index: int | None) -> int:
    """Of the GPU of that number, or for None the interpreter."""
    return 1 if index is None else torch.cuda.get_device_properties(index).multi_processor_count


OPTIONS = {"states": (4, 1), "outputs": (4, 2), "inputs": (8, 2), "projections": (4, 2)}
"""Warps and stages of the kernels with matrix products, for bfloat16."""

WIDE = (8, 2)
"""The same for float32, whose products are exact and without tensor cores."""

PROGRAMS = 4
"""Programs for each multiprocessor that are worth more than sharing products among heads."""


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _power(n: int) -> int:
    """The power of two from n on; a matrix product has sides of 16 at least."""
    return max(16, 1 << (n - 1).bit_length())


def plan(inputs: Inputs) -> Plan:
    """Chunks of 64 positions for bfloat16, 32 where numbers are twice as wide; as many heads as leave enough work."""
    batch, length, n_heads, d_head = inputs.x.shape
    n_groups, d_state = inputs.B.shape[2:]
    if d_state > MOST_STATES:
        raise ValueError(f'ssd backend="triton" takes d_state up to {MOST_STATES}, not {d_state}')
    narrow = inputs.x.dtype == torch.bfloat16
    T = 64 if narrow else 32
    n_chunks = _ceil(length, T)
    fewest = PROGRAMS * _multiprocessors(inputs.x.device.index if inputs.x.is_cuda else None)
    heads = n_heads // n_groups
    shares = [n for n in range(1, heads + 1) if heads % n == 0]
    share = max((n for n in shares if batch * n_chunks * n_heads // n >= fewest), default=1)
    return Plan(T, min(_power(d_head), T), _power(d_state), n_chunks, share, narrow)


def _options(cut: Plan, name: str) -> dict[str, int]:
    """Warps and stages of a kernel: what needs no more registers than there are, or hardly more."""
    warps, stages = OPTIONS[name] if cut.narrow else WIDE
    return {"num_warps": warps, "num_stages": stages}


def _rows(tensor: Tensor) -> Tensor:
    """The tensor with its last axis side by side in memory: itself where it is a slice of a projection."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


class _Staged:
    """What the kernels read, laid out for them, and the launches that both directions share."""

    def __init__(self, inputs: Inputs):
        self.plan = cut = plan(inputs)
        self.batch, self.length, self.n_heads, self.d_head = inputs.x.shape
        self.d_state = inputs.B.shape[3]
        self.heads = self.n_heads // inputs.B.shape[2]  # of a group
        self.x, self.B, self.C, self.seq_idx = _rows(inputs.x), _rows(inputs.B), _rows(inputs.C), inputs.seq_idx
        self.dt, self.softplus = inputs.dt, inputs.dt_softplus
        self.A, self.D, self.bias = (None if t is None else t.float().contiguous() for t in (inputs.A, *inputs[5:7]))
        multiplies = inputs.x.is_cuda  # the interpreter cannot, with bfloat16
        self.dot = torch.bfloat16 if cut.narrow and multiplies else torch.float32
        shape = (self.batch, self.n_heads, cut.n_chunks * cut.T)
        self.steps, self.high, self.low = (self.new(*shape) for _ in range(3))
        self._decays()

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.x.device)

    @property
    def decays(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.steps, self.high, self.low

    @property
    def sizes(self) -> tuple[int, ...]:
        """L, H, K, heads of a group: as the kernels want them."""
        return self.length, self.n_heads, self.plan.n_chunks, self.heads

    @property
    def constants(self) -> dict[str, Any]:
        dot = triton.language.bfloat16 if self.dot == torch.bfloat16 else triton.language.float32
        cut = self.plan
        return {"P": self.d_head, "N": self.d_state, "T": cut.T, "DOT": dot}

    @property
    def shares(self) -> tuple[int, int, int]:
        """The grid where a program has several heads."""
        return self.plan.n_chunks, self.n_heads // self.plan.share, self.batch

    def _decays(self) -> None:
        heads = min(_power(self.n_heads), 32)
        triton_states.decays_kernel[(self.plan.n_chunks, _ceil(self.n_heads, heads), self.batch)](
            self.dt, self.A, self.bias, self.seq_idx, *self.decays, *self.sizes[:3], *self.dt.stride(),
            *((0, 0) if self.seq_idx is None else self.seq_idx.stride()), T=self.plan.T, BH=heads,
            HAS_BIAS=self.bias is not None, SOFTPLUS=self.softplus, RESETS=self.seq_idx is not None,
        )  # fmt: skip

    def walk(self, x: Tensor, B: Tensor, start: Tensor | None, back: bool) -> tuple[Tensor, Tensor]:
        """The states before every chunk (Bt, K, H, P, N), as they enter matrix products, and after the last.

        With ``back``, for dy and C, the gradients by the states after every chunk, and before the first.
        """
        cut, size = self.plan, self.d_head * self.d_state
        added = self.new(self.batch, cut.n_chunks, self.n_heads, self.d_head, self.d_state)
        BN = min(cut.BN, 128)
        tiles = _ceil(self.d_head, cut.BP) * _ceil(self.d_state, BN)
        triton_states.states_kernel[(cut.n_chunks, tiles * self.n_heads, self.batch)](
            x, B, *self.decays, added, *self.sizes, *x.stride()[:3], *B.stride()[:3],
            BP=cut.BP, BN=BN, BACK=back, **_options(cut, "states"), **self.constants,
        )  # fmt: skip
        before = torch.empty_like(added, dtype=self.dot)
        final = self.new(self.batch, self.n_heads, self.d_head, self.d_state)
        block = min(_power(size), 512)
        triton_states.walk_kernel[(_ceil(size, block), self.n_heads, self.batch)](
            added, self.high, self.low, None if start is None else start.contiguous(), before, final,
            self.n_heads, cut.n_chunks, SIZE=size, T=cut.T, BLOCK=block, AHEAD=4, HAS_START=start is not None,
            BACK=back, num_warps=4,
        )  # fmt: skip
        return before, final


def forward(inputs: Inputs, initial_state: Tensor | None) -> tuple[Tensor, Tensor]:
    """y (Bt, L, H, P) in x's dtype and the final state (Bt, H, P, N)."""
    a = _Staged(inputs)
    cut = a.plan
    before, final = a.walk(a.x, a.B, initial_state, back=False)
    y = torch.empty(inputs.x.shape, dtype=inputs.x.dtype, device=inputs.x.device)
    triton_outputs.outputs_kernel[a.shares](
        a.x, a.B, a.C, a.D, *a.decays, before, y, *a.sizes,
        *(stride for tensor in (a.x, a.B, a.C, y) for stride in tensor.stride()[:3]),
        BP=cut.BP, BN=cut.BN, SHARE=cut.share, HAS_D=a.D is not None, **_options(cut, "outputs"), **a.constants,
    )  # fmt: skip
    return y, final


def backward(inputs: Inputs, initial_state: Tensor | None, dy: Tensor, d_final_state: Tensor | None) -> Gradients:
    """Every gradient, without atomics: the same from run to run, bit by bit."""
    a = _Staged(inputs)
    cut, dy = a.plan, _rows(dy)
    before, _ = a.walk(a.x, a.B, initial_state, back=False)
    after, d_initial = a.walk(dy, a.C, d_final_state, back=True)

    dx, ddt, dB, dC = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (*inputs[:2], *inputs[3:5]))
    pairs = a.new(a.batch, cut.n_chunks, a.n_heads // cut.share, cut.T, cut.T)
    sums = a.new(3, a.batch * cut.n_chunks, a.n_heads)
    triton_backward.inputs_kernel[a.shares](
        a.x, a.dt, a.A, a.B, a.C, a.D, a.bias, *a.decays, before, after, dy, dx, ddt, pairs, sums, *a.sizes,
        *a.x.stride()[:3], *a.dt.stride(), *(stride for t in (a.B, a.C, dy) for stride in t.stride()[:3]),
        BP=min(cut.BP, 32), BN=cut.BN, SHARE=cut.share, HAS_D=a.D is not None, HAS_BIAS=a.bias is not None,
        SOFTPLUS=a.softplus, **_options(cut, "inputs"), **a.constants,
    )  # fmt: skip
    grid = (cut.n_chunks, inputs.B.shape[2], a.batch)
    for x, other, states, out, back in ((a.x, a.C, after, dB, False), (dy, a.B, before, dC, True)):
        triton_backward.projections_kernel[grid](
            x, other, *a.decays, states, pairs, out, *a.sizes, *x.stride()[:3], *other.stride()[:3],
            BP=cut.BP, BN=cut.BN, SHARE=cut.share, BACK=back, **_options(cut, "projections"), **a.constants,
        )  # fmt: skip
    dA, dD, d_bias = sums.sum(dim=1)  # (H,) each; what has no use is not written
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
