"""Mamba-2 (Dao and Gu 2024, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured
State Space Duality").

Symbols, the paper's: B batch, L length, D model width, E = expand D inner width, H heads, P = E / H channels of a head,
G groups of heads that share B and C, N state size, K width of the convolution; A (H,) decay, B and C (B, L, G, N) input
and output maps, dt (B, L, H) step size.
"""

from typing import Any, NamedTuple

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from typing_extensions import override

from seqlab.errors import UserError
from seqlab.models.hooks import has_hooks
from seqlab.models.linear import Linear, is_plain
from seqlab.models.mixers.mamba import check_range, check_shares_positions, decay, log_uniform_step_bias
from seqlab.models.mixers.signed_decay import running_sign, signed_decay
from seqlab.models.protocols import constant_state
from seqlab.ops import causal_conv1d, causal_conv1d_update, gated_rms_norm, ssd, ssd_flops, ssd_update
from seqlab.ops.causal_conv1d.reference import final_state
from seqlab.ops.context import ContextGroup
from seqlab.ops.contract import accumulation_dtype
from seqlab.ops.derivatives import needs_gradient
from seqlab.ops.mamba2_inner import Block, can_run, mamba2_inner
from seqlab.ops.ssd import resolve_backend


class State(NamedTuple):
    """The state of one Mamba-2 layer, of constant size."""

    conv: Tensor  # (B, K - 1, E + 2 G N), the last inputs of the convolution
    ssm: Tensor  # (B, H, P, N), float32, or float64 in a float64 model


class GatedRMSNorm(nn.Module):
    """x silu(z), divided by its root mean square in each of G groups of channels, times a weight (section 7.1)."""

    def __init__(self, width: int, n_groups: int, eps: float):
        super().__init__()
        self.n_groups, self.eps = n_groups, eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x and z of shape (..., E) to the same shape in x's dtype; computed in float32, or in float64 if x is."""
        return gated_rms_norm(x, z, self.weight, self.eps, self.n_groups)


class NormBeforeGate(GatedRMSNorm):
    """x, divided by its root mean square in each of G groups of channels, times a weight and silu(z)."""

    @override
    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x and z of shape (..., E) to the same shape in x's dtype."""
        groups = x.unflatten(-1, (self.n_groups, -1))
        weight = self.weight.unflatten(0, (self.n_groups, -1))
        normal = nn.functional.rms_norm(groups, groups.shape[-1:], eps=self.eps) * weight
        return (normal.flatten(-2) * nn.functional.silu(z)).to(x.dtype)


class Gate(nn.Module):
    """x silu(z), without a norm."""

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x and z of shape (..., E) to the same shape in x's dtype."""
        return x * nn.functional.silu(z).to(x.dtype)


class Mamba2(nn.Module):
    """The block of figure 6 on the right: one projection for all, convolution, scan, gated norm, projection.

    Args:
        d_model: width D.
        n_heads: heads H, each with its own decay and step size; a divisor of E.
        d_state: state size N.
        d_conv: width K of the causal depthwise convolution, which x, B and C pass.
        expand: the ratio E / D.
        d_inner: E itself; null for expand * D.
        n_groups: groups G, a divisor of H.
        dt_min, dt_max: range of the initial step sizes.
        A_min, A_max: range of the initial -A.
        negative_eigenvalues: whether a head's decay is 2 exp(dt A) - 1 rather than exp(dt A) (``signed_decay.py``).
        rmsnorm: normalise the gated output; otherwise the gate alone is applied.
        norm_before_gate: normalise first and gate then.
        norm_eps: added to the mean square in the norm.
        scan_backend: one of ``seqlab.ops.ssd.BACKENDS``, or ``auto``.

    Raises:
        UserError: a width is no multiple of what must divide it, or a minimum is above its maximum.
    """

    resolve_backend = staticmethod(resolve_backend)  # of ``scan_backend`` on a device

    steps_alike = True
    carried_state = constant_state
    rounds_input = True
    context: ContextGroup | None = None

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: PositiveInt,
        d_state: PositiveInt = 64,
        d_conv: PositiveInt = 4,
        expand: PositiveInt = 2,
        d_inner: PositiveInt | None = None,
        n_groups: PositiveInt = 1,
        dt_min: PositiveFloat = 1e-3,
        dt_max: PositiveFloat = 1e-1,
        A_min: PositiveFloat = 1.0,
        A_max: PositiveFloat = 16.0,
        negative_eigenvalues: bool = False,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        norm_eps: PositiveFloat = 1e-5,
        scan_backend: str = "auto",
    ):
        super().__init__()
        inner = "expand * d_model" if d_inner is None else "d_inner"
        self.d_inner = d_inner = expand * d_model if d_inner is None else d_inner
        check_divides("n_heads", n_heads, d_inner, inner)
        check_divides("n_groups", n_groups, n_heads, "n_heads")
        check_range("dt", dt_min, dt_max)
        check_range("A", A_min, A_max)
        self.n_heads, self.d_state, self.n_groups, self.scan_backend = n_heads, d_state, n_groups, scan_backend
        self.negative_eigenvalues = negative_eigenvalues
        self.d_mixed = d_inner + 2 * n_groups * d_state  # x, B and C side by side

        self.in_proj = Linear(d_model, d_inner + self.d_mixed + n_heads, bias=False)
        bound = d_conv**-0.5  # torch's own initialisation of a depthwise convolution
        self.conv_weight = nn.Parameter(torch.empty(self.d_mixed, d_conv).uniform_(-bound, bound))
        self.conv_bias = nn.Parameter(torch.empty(self.d_mixed).uniform_(-bound, bound))
        self.dt_bias = nn.Parameter(log_uniform_step_bias(n_heads, dt_min, dt_max))
        self.A_log = nn.Parameter(torch.empty(n_heads).uniform_(A_min, A_max).log())  # A = -exp(A_log)
        self.D = nn.Parameter(torch.ones(n_heads))
        norm = NormBeforeGate if norm_before_gate else GatedRMSNorm
        self.norm = norm(d_inner, n_groups, norm_eps) if rmsnorm else Gate()
        self.out_proj = Linear(d_inner, d_model, bias=False)

    @property
    def A(self) -> Tensor:  # noqa: N802
        """The decay (H,), a scalar for each head."""
        return decay(self.A_log)

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Of x (..., D) what ``_split`` gives."""
        return self._split(self.in_proj(x))

    def _split(self, zxBCdt: Tensor) -> tuple[Tensor, ...]:
        """The gate z (..., E), what the convolution mixes (..., E + 2 G N) and dt before bias and softplus (..., H)."""
        return zxBCdt.split((self.d_inner, self.d_mixed, self.n_heads), dim=-1)

    def _select(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (..., H, P), B and C (..., G, N) from the convolution's output."""
        width = self.n_groups * self.d_state
        x, B, C = mixed.split((self.d_inner, width, width), dim=-1)
        B, C = (part.unflatten(-1, (self.n_groups, self.d_state)) for part in (B, C))
        return x.unflatten(-1, (self.n_heads, -1)), B, C

    def _convolve(self, mixed: Tensor, **states: Any) -> Any:
        """The causal convolution of mixed (B, L, E + 2 G N); ``states`` as ``causal_conv1d`` takes them."""
        return causal_conv1d(mixed, self.conv_weight, self.conv_bias, activation="silu", **states)

    def _scan(self, mixed: Tensor, dt: Tensor, **states: Any) -> Any:
        """``ssd`` of mixed (B, L, E + 2 G N); ``states`` as it takes them."""
        x, B, C = self._select(mixed)
        if self.negative_eigenvalues:
            return self._signed_scan(x, dt, B, C, **states)
        settings = {"dt_softplus": True, "backend": self.scan_backend}
        return ssd(x, dt, self.A, B, C, self.D, self.dt_bias, **settings, **states)

    def _signed(self, x: Tensor, dt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whether the decay is negative and its step (..., H), and x dt / step (..., H, P); dt is before softplus."""
        dtype = accumulation_dtype(x.dtype)
        dt = nn.functional.softplus(dt.to(dtype) + self.dt_bias.to(dtype))
        negative, step = signed_decay(dt * self.A.to(dtype))
        rounded = x.dtype if x.dtype == torch.bfloat16 else dtype  # float16 may be too narrow
        return negative, step, (x * (dt / step).unsqueeze(-1)).to(rounded)

    def _signed_scan(
        self,
        x: Tensor,
        dt: Tensor,
        B: Tensor,
        C: Tensor,
        initial_state: Tensor | None = None,
        return_final_state: bool = False,
        seq_idx: Tensor | None = None,
    ) -> Any:
        """``ssd`` with decays of either sign, which are outside of it."""
        negative, step, driven = self._signed(x, dt)
        sign = running_sign(negative, step.dtype).unsqueeze(-1)  # (B, L, H, 1)
        minus_one = step.new_full((self.n_heads,), -1.0)
        driven = driven * sign.to(driven.dtype)
        states = {"initial_state": initial_state, "return_final_state": True, "seq_idx": seq_idx}
        y, state = ssd(driven, step, minus_one, B, C, backend=self.scan_backend, **states)
        y = (y * sign + self.D[:, None] * x).to(x.dtype)
        return (y, state * sign[:, -1].unsqueeze(-1)) if return_final_state else y

    def _leave(self, y: Tensor, z: Tensor) -> Tensor:
        """Gate, normalise and project the heads' outputs (..., H, P) to (..., D)."""
        return self.out_proj(self.norm(y.flatten(-2), z))

    def forward(self, x: Tensor, seq_idx: Tensor | None = None) -> Tensor:
        """(B, L, D) to (B, L, D); ``seq_idx`` (B, L) as ``Packs`` has it."""
        zxBCdt = self.in_proj(x)  # (B, L, 2 E + 2 G N + H)
        context = self.context if self.training else None
        if seq_idx is None and self._is_whole() and can_run(zxBCdt, self.block, self.n_groups, self.scan_backend):
            return mamba2_inner(zxBCdt, self.block, self.n_groups, self.norm.eps, context)
        z, mixed, dt = self._split(zxBCdt)
        before = None if context is None else context.inputs_before(mixed, self.conv_weight.shape[1] - 1)
        states = {"seq_idx": seq_idx} | ({} if context is None else {"context": context})
        return self._leave(self._scan(self._convolve(mixed, seq_idx=seq_idx, initial_state=before), dt, **states), z)

    def _is_whole(self) -> bool:
        """Whether an operation on the whole block computes what its parts would, and nobody looks on as they do.

        Not of a subclass, with decays of either sign, or once a part has been replaced.
        """
        if type(self) is not Mamba2 or self.negative_eigenvalues:
            return False
        if type(self.norm) is not GatedRMSNorm or has_hooks(self.norm):
            return False
        return is_plain(self.in_proj) and is_plain(self.out_proj)

    @property
    def block(self) -> Block:
        """The parameters as an operation on the whole block takes them."""
        parameters = self.conv_weight, self.conv_bias, self.dt_bias, self.A_log, self.D
        return Block(*parameters, self.norm.weight, self.out_proj.weight)

    def share_positions(self, context: ContextGroup) -> None:
        """As ``SharesPositions`` has it.

        Raises:
            UserError: decays may be negative.
        """
        check_shares_positions(self)
        self.context = context

    def initial_state(self, batch_size: int) -> State:
        """Zeros."""
        weight = self.conv_weight
        d_head = self.d_inner // self.n_heads
        return State(
            conv=weight.new_zeros(batch_size, weight.shape[1] - 1, self.d_mixed),
            ssm=weight.new_zeros(
                batch_size, self.n_heads, d_head, self.d_state, dtype=accumulation_dtype(weight.dtype)
            ),
        )

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(B, D) to (B, D)."""
        z, mixed, dt = self._project(x)
        mixed, conv = causal_conv1d_update(state.conv, mixed, self.conv_weight, self.conv_bias, activation="silu")
        u, B, C = self._select(mixed)
        if self.negative_eigenvalues:
            negative, step, driven = self._signed(u, dt)
            minus_one = step.new_full((self.n_heads,), -1.0)
            before = torch.where(negative[..., None, None], -state.ssm, state.ssm)
            y, ssm = ssd_update(before, driven, step, minus_one, B, C)
            y = (y + self.D[:, None] * u).to(u.dtype)
        else:
            y, ssm = ssd_update(state.ssm, u, dt, self.A, B, C, self.D, self.dt_bias, dt_softplus=True)
        return self._leave(y, z), State(conv, ssm)

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(B, L, D) to (B, L, D)."""
        zxBCdt = self.in_proj(x)
        z, mixed, dt = self._split(zxBCdt)
        whole = self._is_whole() and not needs_gradient(*state)
        if whole and can_run(zxBCdt, self.block, self.n_groups, self.scan_backend):
            y, ssm = mamba2_inner(zxBCdt, self.block, self.n_groups, self.norm.eps, states=state)
            return y, State(final_state(mixed, state.conv.to(mixed.dtype), None), ssm)
        mixed, conv = self._convolve(mixed, initial_state=state.conv, return_final_state=True)
        y, ssm = self._scan(mixed, dt, initial_state=state.ssm, return_final_state=True)
        return self._leave(y, z), State(conv, ssm)

    def uncounted_flops(self, batch_size: int, length: int) -> int:
        """Forward FLOPs of the scan's recurrence."""
        return ssd_flops(batch_size, length, self.n_heads, self.d_inner // self.n_heads, self.d_state)


def check_divides(name: str, value: int, whole: int, what: str) -> None:
    """Check that the setting ``name`` divides ``whole``, which is called ``what``.

    Raises:
        UserError: it does not.
    """
    if whole % value != 0:
        divisors = [str(n) for n in range(1, whole + 1) if whole % n == 0]
        raise UserError(name, value, f"must divide {what} = {whole}", f"Choose one of {', '.join(divisors)}")
