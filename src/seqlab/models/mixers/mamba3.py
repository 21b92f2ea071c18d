"""Mamba-3, with one input and one output a head, its SISO form, or with R of each, MIMO (arXiv:2603.15569).

For each head, with R(theta) the rotation of pairs of channels by theta:

    delta_t = softplus(dd_dt_t + dt_bias)           A_t = -max(act(dd_A_t), 1e-4)        lam_t = sigmoid(trap_t)
    theta_t = theta_{t-1} + pi delta_t tanh(angle_t)                                     modulo 2 pi
    k_t = R(theta_t) (RMSNorm(B_t) + B_bias)        q_t = R(theta_t) (RMSNorm(C_t) + C_bias)
    y_t = scan(x, delta, A, lam, k, q, D)_t silu(z_t)                                    as ``trapezoid.py`` says

A MIMO head of rank R has R maps B_r and C_r, and from its P channels makes R inputs and gates, and one output again:

    x_r = x mimo_x[r]    z_r = z mimo_z[r]    y_t = sum over r of scan(...)_{r,t} silu(z_{r,t}) mimo_o[r]

Symbols, the paper's: B batch, L length, D model width, E = expand D inner width, H heads, P = E / H channels of a head,
G groups of heads that share B and C, N state size, S pairs of its channels that are rotated, R rank; z gate, x input,
B and C (B, L, R, G, N) input and output maps, dd_dt, dd_A and trap (B, L, H), angle (B, L, S). There is no convolution.

On a GPU all between the two projections of SISO is one operation, ``ops/mamba3_inner``; with a state in or out, and of
MIMO, it is made of the parts here.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from seqlab.errors import UserError
from seqlab.models.linear import Linear, is_plain
from seqlab.models.mixers.mamba import check_range, log_uniform_step_bias
from seqlab.models.mixers.mamba2 import check_divides
from seqlab.models.mixers.trapezoid import Inputs, ScanState, trapezoidal_scan, trapezoidal_update
from seqlab.models.protocols import constant_state
from seqlab.ops import ssd_flops
from seqlab.ops.contract import accumulation_dtype
from seqlab.ops.mamba3_inner import Block, Settings, can_run, mamba3_inner
from seqlab.ops.ssd import resolve_backend

LEAST_DECAY = 1e-4
"""Least -A, as in mamba_ssm: a head forgets at least so fast."""


class State(NamedTuple):
    """The state of one Mamba-3 layer, of constant size."""

    turns: Tensor  # (B, H, S), theta / (2 pi) in [0, 1), float64
    scan: ScanState


class Mamba3(nn.Module):
    """The block: one projection for all, rotated keys and queries, scan, gate, projection.

    Args:
        d_model: width D.
        n_heads: heads H, a divisor of E.
        d_state: state size N.
        expand: the ratio E / D.
        d_inner: E itself; null for expand * D.
        n_groups: groups G, a divisor of H.
        rope_fraction: the share of the N channels that are rotated, 0.5 or 1.
        mimo_rank: rank R; 1 is SISO. A pair to rotate is channels 2 i and 2 i + 1 in SISO, i and i + N // 2 in MIMO, as
            in mamba_ssm: another order of the channels, with which twice as many are rotated in the same time.
        act: what makes -A of its projection: ``softplus``, as in mamba_ssm 2.3.2, or ``rational``, as in its later
            versions: 1 + v for v >= 0 and 1 / (1 - v) below.
        dt_min, dt_max: range of the initial step sizes.
        norm_eps: added to the mean square in the norms of B and C.
        recompute: have SISO's kernels on a GPU compute keys, queries and states again in the backward pass: of what a
            layer keeps for it a third remains, and a step of the layer takes 8 % longer (docs/benchmarks.md).
        scan_backend: one of ``seqlab.ops.ssd.BACKENDS``, or ``auto``.

    Raises:
        UserError: a width is no multiple of what must divide it, dt_min is above dt_max, rope_fraction is another
            number, or leaves no pair to rotate.
    """

    resolve_backend = staticmethod(resolve_backend)  # of ``scan_backend`` on a device

    steps_alike = True
    carried_state = constant_state
    rounds_input = True

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: PositiveInt,
        d_state: PositiveInt = 64,
        expand: PositiveInt = 2,
        d_inner: PositiveInt | None = None,
        n_groups: PositiveInt = 1,
        rope_fraction: float = 0.5,
        mimo_rank: PositiveInt = 1,
        act: Literal["rational", "softplus"] = "rational",
        dt_min: PositiveFloat = 1e-3,
        dt_max: PositiveFloat = 1e-1,
        norm_eps: PositiveFloat = 1e-5,
        recompute: bool = False,
        scan_backend: str = "auto",
    ):
        super().__init__()
        inner = "expand * d_model" if d_inner is None else "d_inner"
        d_inner = expand * d_model if d_inner is None else d_inner
        check_divides("n_heads", n_heads, d_inner, inner)
        check_divides("n_groups", n_groups, n_heads, "n_heads")
        check_range("dt", dt_min, dt_max)
        self.n_pairs = pairs_rotated(d_state, rope_fraction)
        self.d_inner, self.n_heads, self.d_state, self.n_groups = d_inner, n_heads, d_state, n_groups
        self.mimo_rank, self.act, self.norm_eps, self.scan_backend = mimo_rank, act, norm_eps, scan_backend
        self.recompute = recompute

        # z, x, B with C, dd_dt with dd_A and trap, angle: in mamba_ssm's order
        self.widths = (d_inner, d_inner, 2 * mimo_rank * n_groups * d_state, 3 * n_heads, self.n_pairs)
        self.in_proj = Linear(d_model, sum(self.widths), bias=False)
        self.dt_bias = nn.Parameter(log_uniform_step_bias(n_heads, dt_min, dt_max))
        self.norm_weight = nn.Parameter(torch.ones(2, d_state))  # of B and of C
        self.map_bias = nn.Parameter(torch.ones(2, *(mimo_rank,) * (mimo_rank > 1), n_heads, d_state))  # of B and of C
        self.norm_weight.no_weight_decay = self.map_bias.no_weight_decay = True
        self.D = nn.Parameter(torch.ones(n_heads))
        if mimo_rank > 1:
            per_channel = torch.ones(mimo_rank, n_heads, d_inner // n_heads)
            self.mimo_x, self.mimo_o = (nn.Parameter(per_channel / mimo_rank) for _ in range(2))
            self.mimo_z = nn.Parameter(per_channel)
        self.out_proj = Linear(d_inner, d_model, bias=False)

    def _split(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """The gate z (..., E), B and C for each head (..., 2, R, H, N), how far a step turns (..., H, S).

        And x (..., R, H, P), delta, A and lam (..., H) of the scan, all of what the first projection gives.
        """
        z, u, maps, per_head, angle = projected.split(self.widths, dim=-1)
        dtype = accumulation_dtype(projected.dtype)
        dt, A, trap = per_head.to(dtype).chunk(3, dim=-1)  # (..., H) each
        delta = F.softplus(dt + self.dt_bias)
        A = -_ACTS[self.act](A).clamp(min=LEAST_DECAY)
        turned = delta.unsqueeze(-1) * (0.5 * torch.tanh(angle.to(dtype))).unsqueeze(-2)  # (..., H, S)
        u = u.unflatten(-1, (1, self.n_heads, -1))  # (..., 1, H, P)
        if self.mimo_rank > 1:
            u = (u * self.mimo_x).to(u.dtype)  # (..., R, H, P)
        return z, self._maps(maps.to(dtype)), turned, (u, delta, A, torch.sigmoid(trap))

    def _maps(self, maps: Tensor) -> Tensor:
        """B and C (..., 2 R G N), normalised and with each head's bias (..., 2, R, H, N)."""
        maps = maps.unflatten(-1, (2, self.mimo_rank, self.n_groups, 1, self.d_state))  # (..., 2, R, G, 1, N)
        maps = F.rms_norm(maps, maps.shape[-1:], eps=self.norm_eps) * self.norm_weight[:, None, None, None]
        bias = self.map_bias.view(2, self.mimo_rank, self.n_groups, -1, self.d_state)  # (2, R, G, H / G, N)
        return (maps + bias).flatten(-3, -2)  # (..., 2, R, H, N)

    def _inputs(self, scanned: tuple[Tensor, ...], maps: Tensor, turns: Tensor) -> Inputs:
        """The scan's tensors, with k and q the maps (..., 2, R, H, N) rotated by turns (..., H, S)."""
        turn = rotate if self.mimo_rank == 1 else rotate_halves
        rotated = turn(maps, (2 * math.pi * turns).to(maps.dtype)[..., None, None, :, :])  # (..., 2, R, H, N)
        return Inputs(*scanned, *rotated.unbind(-4), self.D)

    def _scan(self, projected: Tensor, state: State | None, seq_idx: Tensor | None = None) -> tuple[Tensor, State]:
        """What the first projection gives to (B, L, D), and the state after it; zeros before it if None.

        Turns go on over the beginning of a sequence: it is by their differences alone that they act.
        """
        z, maps, turned, scanned = self._split(projected)
        turns = turned.cumsum(dim=1, dtype=torch.float64)  # (B, L, H, S)
        if state is not None:
            turns = turns + state.turns.unsqueeze(1)
        turns = _fraction(turns)
        before = None if state is None else state.scan
        y, after = trapezoidal_scan(
            self._inputs(scanned, maps, turns), before, seq_idx=seq_idx, backend=self.scan_backend
        )
        return self._leave(y, z), State(turns[:, -1].clone(), after)

    def _leave(self, y: Tensor, z: Tensor) -> Tensor:
        """Gate and project the heads' outputs (..., R, H, P) to (..., D)."""
        if self.mimo_rank == 1:
            return self.out_proj(y.flatten(-3) * F.silu(z))
        gates = F.silu(z.unflatten(-1, (1, self.n_heads, -1)) * self.mimo_z)  # (..., R, H, P)
        return self.out_proj((y * gates * self.mimo_o).sum(dim=-3).flatten(-2).to(y.dtype))

    def forward(self, x: Tensor, seq_idx: Tensor | None = None) -> Tensor:
        """(B, L, D) to (B, L, D); ``seq_idx`` (B, L) as ``Packs`` has it."""
        projected = self.in_proj(x)
        if seq_idx is None and self._is_whole() and can_run(projected, self.block, self.settings, self.scan_backend):
            return mamba3_inner(projected, self.block, self.settings)
        return self._scan(projected, None, seq_idx)[0]

    def _is_whole(self) -> bool:
        """Whether an operation on the whole block computes what its parts would, and nobody looks on as they do.

        Not of a subclass, with several ranks, or once a projection has been replaced.
        """
        return type(self) is Mamba3 and self.mimo_rank == 1 and is_plain(self.in_proj) and is_plain(self.out_proj)

    @property
    def block(self) -> Block:
        """The parameters as an operation on the whole block takes them."""
        return Block(self.dt_bias, self.norm_weight, self.map_bias, self.D, self.out_proj.weight)

    @property
    def settings(self) -> Settings:
        """What that operation has to know besides."""
        return Settings(self.n_groups, self.n_pairs, self.norm_eps, self.act, self.recompute)

    def initial_state(self, batch_size: int) -> State:
        """Zeros."""
        shape = batch_size, self.n_heads
        d_head, dtype = self.d_inner // self.n_heads, accumulation_dtype(self.D.dtype)
        of_ranks = batch_size, self.mimo_rank, self.n_heads
        shapes = (*shape, d_head, self.d_state), (*of_ranks, self.d_state), (*of_ranks, d_head)
        scan = ScanState(*(self.D.new_zeros(own, dtype=dtype) for own in shapes))
        return State(self.D.new_zeros(*shape, self.n_pairs, dtype=torch.float64), scan)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(B, D) to (B, D)."""
        z, maps, turned, scanned = self._split(self.in_proj(x))
        turns = _fraction(state.turns + turned)  # (B, H, S)
        y, scan = trapezoidal_update(self._inputs(scanned, maps, turns), state.scan)
        return self._leave(y, z), State(turns, scan)

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(B, L, D) to (B, L, D)."""
        return self._scan(self.in_proj(x), state)

    def uncounted_flops(self, batch_size: int, length: int) -> int:
        """Forward FLOPs of the scan as one recurrence of ``ssd``, and of what each position adds to its own output.

        In SISO these are k^T q times gamma, 2 N for a head, and that times x, with the addition to y 2 P; in MIMO torch
        sees them. There the recurrence has R inputs and outputs a position, and one decay.
        """
        heads, rank = batch_size * length * self.n_heads, self.mimo_rank
        d_head = self.d_inner // self.n_heads
        recurrence = ssd_flops(batch_size, rank * length, self.n_heads, d_head, self.d_state)
        if rank == 1:
            return recurrence + heads * 2 * (self.d_state + d_head)
        return recurrence - heads * (rank - 1) * (2 + d_head * self.d_state)


def pairs_rotated(d_state: int, rope_fraction: float) -> int:
    """How many pairs S of the N = d_state channels are rotated.

    Raises:
        UserError: rope_fraction is neither 0.5 nor 1, or leaves no pair.
    """
    if rope_fraction not in (0.5, 1.0):
        raise UserError("rope_fraction", rope_fraction, "must be 0.5 or 1", "Choose one of them")
    pairs = int(d_state * rope_fraction) // 2
    if pairs == 0:
        least = int(2 / rope_fraction)
        rule = f"leaves no pair of channels to rotate with rope_fraction={rope_fraction}"
        raise UserError("d_state", d_state, rule, f"Set d_state={least} or more")
    return pairs


def rational(v: Tensor) -> Tensor:
    """1 + v for v >= 0 and 1 / (1 - v) below, of any shape: positive, with one derivative at 0 from both sides."""
    return torch.where(v >= 0, 1 + v, 1 / (1 + F.relu(-v)))  # that of a clamp at its bound depends on torch's version


_ACTS = {"rational": rational, "softplus": F.softplus}


def _fraction(turns: Tensor) -> Tensor:
    """What remains of turns, of any shape, modulo 1."""
    return turns - turns.detach().floor()


def rotate(maps: Tensor, theta: Tensor) -> Tensor:
    """Channels 2 i and 2 i + 1 of maps (..., N) turned by theta_i (..., S), the others left as they are.

    Each pair is a complex number, multiplied by exp(i theta), in less than two thirds of the time of its four products.
    """
    pairs = theta.shape[-1]
    turning, rest = maps.split((2 * pairs, maps.shape[-1] - 2 * pairs), dim=-1)
    if maps.shape[-1] % 2 == 1:  # complex numbers lie at even distances
        turning = turning.contiguous()
    turning = torch.view_as_complex(turning.unflatten(-1, (pairs, 2)))  # (..., S)
    turned = turning * torch.polar(torch.ones_like(theta), theta)
    return torch.cat((torch.view_as_real(turned).flatten(-2), rest), dim=-1)


def rotate_halves(maps: Tensor, theta: Tensor) -> Tensor:
    """Channels i and i + N // 2 of maps (..., N) turned by theta_i (..., S), the others left as they are."""
    pairs, half = theta.shape[-1], maps.shape[-1] // 2
    cos, sin = theta.cos(), theta.sin()
    x, left, y, right = maps.split((pairs, half - pairs, pairs, maps.shape[-1] - half - pairs), dim=-1)
    return torch.cat((x * cos - y * sin, left, x * sin + y * cos, right), dim=-1)
