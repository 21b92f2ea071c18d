"""Mamba-1 (Gu and Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces").

Symbols, the paper's: B batch, L length, D model width, E = expand D inner width, N state size, K width of the
convolution, R rank of delta; A (E, N) decay, B and C (B, L, N) input and output maps, delta (B, L, E) step size.
"""

import math
from typing import Any, NamedTuple

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from seqlab.errors import UserError
from seqlab.models.hooks import has_hooks
from seqlab.models.linear import Linear, is_plain, linear
from seqlab.models.mixers.signed_decay import running_sign, signed_decay
from seqlab.models.protocols import constant_state
from seqlab.ops import (
    causal_conv1d,
    causal_conv1d_update,
    decoding,
    selective_scan,
    selective_scan_flops,
    selective_state_update,
)
from seqlab.ops.causal_conv1d.reference import final_state
from seqlab.ops.context import ContextGroup
from seqlab.ops.contract import accumulation_dtype
from seqlab.ops.derivatives import needs_gradient
from seqlab.ops.mamba_inner import can_run, mamba_inner
from seqlab.ops.selective_scan import resolve_backend


class State(NamedTuple):
    """The state of one Mamba layer, of constant size."""

    conv: Tensor  # (B, K - 1, E), the last inputs of the convolution
    ssm: Tensor  # (B, E, N), float32, or float64 in a float64 model


def log_uniform_step_bias(width: int, smallest: float, largest: float) -> Tensor:
    """Draw a bias b (width,) such that softplus(b) is log-uniform in [smallest, largest] (the paper's section 3.6)."""
    low, high = math.log(smallest), math.log(largest)
    step = torch.exp(low + (high - low) * torch.rand(width))
    return step + torch.log(-torch.expm1(-step))  # the inverse of softplus


def check_range(name: str, smallest: float, largest: float) -> None:
    """Check that ``<name>_min`` is not above ``<name>_max``.

    Raises:
        UserError: it is.
    """
    if smallest > largest:
        rule = f"is above the largest, {name}_max={largest}"
        raise UserError(f"{name}_min", smallest, rule, f"Lower it, or set {name}_max={smallest} or more")


def check_shares_positions(mixer: nn.Module) -> None:
    """Check that processes can share the positions of a mixer whose state decays by factors of one sign.

    Raises:
        UserError: ``negative_eigenvalues`` is set.
    """
    if mixer.negative_eigenvalues:
        rule = "processes that share a sequence do not pass on the signs of its decays"
        raise UserError("negative_eigenvalues", True, rule, "Set context_parallel=1, or negative_eigenvalues=false")


def decay(A_log: Tensor) -> Tensor:
    """A = -exp(A_log) in A_log's shape, in float32 for half precision too, in float64 for float64."""
    return -torch.exp(A_log.to(accumulation_dtype(A_log.dtype)))


class Mamba(nn.Module):
    """The block of figure 3: projection, causal convolution, selective scan, gate, projection.

    Args:
        d_model: width D.
        d_state: state size N.
        d_conv: width K of the causal depthwise convolution.
        expand: the ratio E / D.
        d_inner: E itself; null for expand * D.
        dt_rank: rank R of delta; null for ceil(D / 16).
        dt_min, dt_max: range of the initial step sizes.
        negative_eigenvalues: whether the decay is 2 exp(delta A) - 1 rather than exp(delta A) (``signed_decay.py``).
            The sign is one of each channel and state, which no argument of the scan is, so it runs over E N channels
            of one state each: N times the memory for its arguments.
        selection_norm_eps: divide delta (of its R numbers), B and C by their root mean squares, with this added to the
            mean square, as Falcon Mamba does (Zuo et al. 2024, arXiv:2410.05355); null leaves them as they are.
        selection_norm_weights: multiply each of the three after that by a learned vector, as Jamba does (Lieber et al.
            2024, arXiv:2403.19887, section 6.4).
        scan_backend: one of ``seqlab.ops.selective_scan.BACKENDS``, or ``auto``.

    Raises:
        UserError: dt_min is above dt_max, or there are weights of norms without norms.
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
        d_state: PositiveInt = 16,
        d_conv: PositiveInt = 4,
        expand: PositiveInt = 2,
        d_inner: PositiveInt | None = None,
        dt_rank: PositiveInt | None = None,
        dt_min: PositiveFloat = 1e-3,
        dt_max: PositiveFloat = 1e-1,
        negative_eigenvalues: bool = False,
        selection_norm_eps: PositiveFloat | None = None,
        selection_norm_weights: bool = False,
        scan_backend: str = "auto",
    ):
        super().__init__()
        check_range("dt", dt_min, dt_max)
        self.negative_eigenvalues, self.selection_norm_eps = negative_eigenvalues, selection_norm_eps
        d_inner = expand * d_model if d_inner is None else d_inner
        self.d_inner, self.d_state, self.scan_backend = d_inner, d_state, scan_backend
        self.dt_rank = dt_rank if dt_rank is not None else math.ceil(d_model / 16)

        self.in_proj = Linear(d_model, 2 * d_inner, bias=False)
        bound = d_conv**-0.5  # torch's own initialisation of a depthwise convolution
        self.conv_weight = nn.Parameter(torch.empty(d_inner, d_conv).uniform_(-bound, bound))
        self.conv_bias = nn.Parameter(torch.empty(d_inner).uniform_(-bound, bound))
        self.x_proj = Linear(d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = Linear(self.dt_rank, d_inner)
        with torch.no_grad():
            self.dt_proj.weight.uniform_(-(self.dt_rank**-0.5), self.dt_rank**-0.5)
            self.dt_proj.bias.copy_(log_uniform_step_bias(d_inner, dt_min, dt_max))
        one_to_n = torch.arange(1, d_state + 1, dtype=torch.float32)
        self.A_log = nn.Parameter(one_to_n.log().repeat(d_inner, 1))  # (E, N): A = -exp(A_log) = -(1..N)
        self.D = nn.Parameter(torch.ones(d_inner))
        self.A_log.no_weight_decay = True
        self.out_proj = Linear(d_inner, d_model, bias=False)
        if selection_norm_weights and selection_norm_eps is None:
            rule = "are of norms, and selection_norm_eps=null says that there are none"
            raise UserError("selection_norm_weights", True, rule, "Set selection_norm_eps=1e-6")
        sizes = {"dt": self.dt_rank, "B": d_state, "C": d_state}
        weights = {name: torch.ones(size) for name, size in sizes.items()}
        self.selection_norms = nn.ParameterDict(weights) if selection_norm_weights else None

    def _select(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The input-dependent delta (before bias and softplus), B and C: what makes the scan selective."""
        dt, B, C = self.x_proj(u).split((self.dt_rank, self.d_state, self.d_state), dim=-1)
        if self.selection_norm_eps is not None:
            dt, B, C = (self._normed(name, part) for name, part in {"dt": dt, "B": B, "C": C}.items())
        return linear(dt, self.dt_proj.weight), B, C

    def _normed(self, name: str, part: Tensor) -> Tensor:
        """One of delta, B and C (..., n) divided by its root mean square, times its weight if it has one."""
        normal = nn.functional.rms_norm(part, part.shape[-1:], eps=self.selection_norm_eps)
        return normal if self.selection_norms is None else normal * self.selection_norms[name]

    @property
    def A(self) -> Tensor:  # noqa: N802
        """The decay (E, N)."""
        return decay(self.A_log)

    def _convolve(self, u: Tensor, **states: Any) -> Any:
        """The causal convolution of u (B, L, E); ``states`` as ``causal_conv1d`` takes them."""
        return causal_conv1d(u, self.conv_weight, self.conv_bias, activation="silu", **states)

    def _scan(self, u: Tensor, z: Tensor, **states: Any) -> Any:
        """The selective scan of u, gated by z, both (B, L, E); ``states`` as ``selective_scan`` takes them."""
        delta, B, C = self._select(u)
        if self.negative_eigenvalues:
            return self._signed_scan(u, z, delta, B, C, **states)
        settings = {"delta_softplus": True, "backend": self.scan_backend}
        return selective_scan(u, delta, self.A, B, C, self.D, z, self.dt_proj.bias, **settings, **states)

    def _signed(self, u: Tensor, delta: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """The logarithm of what would be the decay, delta A, and what enters the state, delta B u: (..., E, N) each."""
        dtype = accumulation_dtype(u.dtype)
        delta = nn.functional.softplus(delta.to(dtype) + self.dt_proj.bias.to(dtype))  # (..., E)
        return delta.unsqueeze(-1) * self.A.to(dtype), (delta * u).unsqueeze(-1) * B.unsqueeze(-2)

    def _leave_signed(self, h: Tensor, u: Tensor, z: Tensor, C: Tensor) -> Tensor:
        """The gated output (..., E) of states h (..., E, N)."""
        y = (h * C.unsqueeze(-2)).sum(dim=-1) + self.D * u  # no matrix product, which autocast would round
        return (y * nn.functional.silu(z.to(h.dtype))).to(u.dtype)

    def _signed_scan(
        self,
        u: Tensor,
        z: Tensor,
        delta: Tensor,
        B: Tensor,
        C: Tensor,
        initial_state: Tensor | None = None,
        return_final_state: bool = False,
        seq_idx: Tensor | None = None,
    ) -> Any:
        """``selective_scan`` with decays of either sign, which are outside of it, over channels of one state each."""
        log_decay, entering = self._signed(u, delta, B)
        negative, step = signed_decay(log_decay)
        sign = running_sign(negative, step.dtype)  # (B, L, E, N)
        one = step.new_ones(*step.shape[:2], 1)
        if initial_state is not None:
            initial_state = initial_state.flatten(1).unsqueeze(-1)  # (B, E N, 1)
        h, state = selective_scan(
            (entering / step * sign).flatten(2),
            step.flatten(2),
            -step.new_ones(step[0, 0].numel(), 1),
            one,
            one,
            initial_state=initial_state,
            return_final_state=True,
            seq_idx=seq_idx,
            backend=self.scan_backend,
        )
        y = self._leave_signed(h.view_as(sign) * sign, u, z, C)
        return (y, state.view_as(sign[:, -1]) * sign[:, -1]) if return_final_state else y

    def forward(self, x: Tensor, seq_idx: Tensor | None = None) -> Tensor:
        """(B, L, D) to (B, L, D); ``seq_idx`` (B, L) as ``Packs`` has it."""
        xz = self.in_proj(x)  # (B, L, 2 E)
        context = self.context if self.training else None
        if seq_idx is None and self._is_whole() and can_run(xz, self.block, self.scan_backend):
            return mamba_inner(xz, self.block, context)
        u, z = xz.chunk(2, dim=-1)  # (B, L, E) each
        before = None if context is None else context.inputs_before(u, self.conv_weight.shape[1] - 1)
        states = {"seq_idx": seq_idx} | ({} if context is None else {"context": context})
        return self.out_proj(self._scan(self._convolve(u, seq_idx=seq_idx, initial_state=before), z, **states))

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
        return State(
            conv=weight.new_zeros(batch_size, weight.shape[1] - 1, self.d_inner),
            ssm=weight.new_zeros(batch_size, self.d_inner, self.d_state, dtype=accumulation_dtype(weight.dtype)),
        )

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(B, D) to (B, D)."""
        u, z = self.in_proj(x).chunk(2, dim=-1)  # (B, E) each
        u, conv = causal_conv1d_update(state.conv, u, self.conv_weight, self.conv_bias, activation="silu")
        delta, B, C = self._select(u)
        if self.negative_eigenvalues:
            log_decay, entering = self._signed(u, delta, B)
            ssm = (2 * torch.exp(log_decay) - 1) * state.ssm + entering
            y = self._leave_signed(ssm, u, z, C)
        else:
            y, ssm = selective_state_update(
                state.ssm, u, delta, self.A, B, C, self.D, z, self.dt_proj.bias, delta_softplus=True
            )
        return self.out_proj(y), State(conv, ssm)

    def _is_whole(self) -> bool:
        """Whether an operation on the whole block computes what its parts would, and nobody looks on as they do.

        Not of a subclass, with decays of either sign or norms within, or once a projection has been replaced, by one
        with a bias or an adapter for example.
        """
        if self.selection_norm_eps is not None:
            return False
        if type(self) is not Mamba or type(self.dt_proj) is not Linear or self.negative_eigenvalues:
            return False
        return all(map(is_plain, (self.in_proj, self.x_proj, self.out_proj)))

    @property
    def block(self) -> decoding.Block:
        """The parameters as an operation on the whole block takes them, shapes as in ``decoding.Block``."""
        linear = self.in_proj.weight, self.x_proj.weight, self.dt_proj.weight, self.dt_proj.bias, self.out_proj.weight
        return decoding.Block(*linear, self.conv_weight, self.conv_bias, self.A_log, self.D)

    def step_in_residual(self, x: Tensor, norm: nn.Module, state: State) -> tuple[Tensor, State] | None:
        """x + step(norm(x)) of x (B, D) in three to five kernels on a GPU; None where they cannot run."""
        known = decoding.norm_of(norm)
        if known is None or not self._is_whole() or has_hooks(norm):
            return None
        parameters = self.block
        if not decoding.can_run(x, *parameters, known.weight, known.bias):
            return None
        return decoding.mamba_step(x, known, parameters, *state), state

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(B, L, D) to (B, L, D)."""
        xz = self.in_proj(x)
        u, z = xz.chunk(2, dim=-1)  # (B, L, E) each
        if self._is_whole() and not needs_gradient(*state) and can_run(xz, self.block, self.scan_backend):
            y, ssm = mamba_inner(xz, self.block, states=state)
            return y, State(final_state(u, state.conv.to(u.dtype), None), ssm)
        u, conv = self._convolve(u, initial_state=state.conv, return_final_state=True)
        y, ssm = self._scan(u, z, initial_state=state.ssm, return_final_state=True)
        return self.out_proj(y), State(conv, ssm)

    def uncounted_flops(self, batch_size: int, length: int) -> int:
        """Forward FLOPs of the scan's recurrence."""
        return selective_scan_flops(batch_size, length, self.d_inner, self.d_state)
