"""DeltaNet (Yang et al. 2024, "Parallelizing Linear Transformers with the Delta Rule over Sequence Length"), Gated
DeltaNet (Yang et al. 2024, "Gated Delta Networks: Improving Mamba2 with Delta Rule"), Kimi delta attention (Kimi team
2025, "Kimi Linear: An Expressive, Efficient Attention Architecture") and Gated DeltaNet-2 (Hatamizadeh et al. 2026,
"Gated DeltaNet-2: Decoupling Erase and Write in Linear Attention").

Symbols: B batch, L length, D model width, H heads, K and V width of a head's keys and values, W width of the
convolution, E decays of a head (0, 1 or K), R = V rank of the projections that are factored; beta (B, L, H) how far the
state is corrected, or (B, L, H, K) the share erased, with w (B, L, H, V) the share of values written; g (B, L, H) or
(B, L, H, K) the logarithm of its decay, alpha = e^g.
"""

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from seqlab.models.linear import Linear
from seqlab.models.mixers.mamba import check_range, log_uniform_step_bias
from seqlab.models.mixers.mamba import decay as decay_rate
from seqlab.models.protocols import constant_state
from seqlab.ops import causal_conv1d, causal_conv1d_update, delta_rule, delta_rule_flops, delta_rule_update
from seqlab.ops.contract import accumulation_dtype
from seqlab.ops.delta_rule import resolve_backend

SMALLEST = 1e-6
"""Added to the squared length of queries and keys."""


class State(NamedTuple):
    """The state of one layer, of constant size."""

    conv: Tensor  # (B, W - 1, H (2 K + V)), the last inputs of the convolution
    memory: Tensor  # (B, H, K, V), float32, or float64 in a float64 model


class Selected(NamedTuple):
    """What a layer computes of its input."""

    mixed: Tensor  # (..., H (2 K + V)), queries, keys and values before the convolution
    beta: Tensor  # (..., H) or (..., H, K)
    g: Tensor | None  # (..., H) or (..., H, K)
    w: Tensor | None  # (..., H, V)
    gate: Tensor | None  # (..., H V)


class HeadNorm(nn.Module):
    """Each head's output divided by its root mean square, times a weight that heads share, and times an open gate."""

    def __init__(self, d_value: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_value))

    def forward(self, y: Tensor, gate: Tensor | None) -> Tensor:
        """y (..., H, V) and gate (..., H V) to (..., H V).

        In y's dtype, computed in float32, or in float64 if y is.
        """
        dtype = accumulation_dtype(y.dtype)
        normed = F.rms_norm(y.to(dtype), y.shape[-1:], self.weight.to(dtype), self.eps).flatten(-2)  # (..., H V)
        return (normed if gate is None else normed * gate).to(y.dtype)


class DeltaNet(nn.Module):
    """Projections, a short convolution of queries, keys and values, the delta rule, norm and gate, projection.

    With ``decay: none`` and ``gate: none`` it is the layer of arXiv:2406.06484, section 3.3, with ``decay: head`` and
    ``gate: silu`` that of arXiv:2412.06464, figure 1, with ``decay: channel`` and ``gate: sigmoid`` that of
    arXiv:2510.26692, section 4, and with ``beta: channel`` besides that of arXiv:2605.22791 as flash-linear-attention
    has it (fla/layers/gdn2.py). Queries need no scale: the norm takes it out again.

    Args:
        d_model: width D.
        n_heads: heads H.
        expand_k: the ratio H K / D; K is rounded.
        expand_v: the ratio H V / D; V is rounded.
        d_conv: width W of the causal depthwise convolution.
        decay: none; ``head`` for one of each head, alpha = exp(-exp(A_log) softplus(a + dt_bias)) with a projection a;
            ``channel`` for one of each key channel, a then a projection of rank R.
        beta: ``head`` for one number that says how far to erase and to write; ``channel`` for one of each key channel,
            which erases, and a w of each value channel, which writes: sigmoids of full projections, without a bias.
        gate: what multiplies the normalised output: none; ``silu`` of a projection; ``sigmoid`` of one of rank R.
        negative_eigenvalues: whether beta, not w, goes up to 2 rather than 1 (Grazzi et al. 2024, arXiv:2411.12537): a
            key's direction in the state may then change its sign.
        dt_min, dt_max: range of the initial softplus(dt_bias).
        A_min, A_max: range of the initial exp(A_log).
        norm_eps: added to the mean square in the norm.
        scan_backend: one of ``seqlab.ops.delta_rule.BACKENDS``, or ``auto``.

    Raises:
        UserError: a minimum is above its maximum.
    """

    steps_alike = True
    carried_state = constant_state
    rounds_input = True

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: PositiveInt,
        expand_k: PositiveFloat = 1.0,
        expand_v: PositiveFloat = 1.0,
        d_conv: PositiveInt = 4,
        decay: Literal["none", "head", "channel"] = "none",
        beta: Literal["head", "channel"] = "head",
        gate: Literal["none", "silu", "sigmoid"] = "none",
        negative_eigenvalues: bool = False,
        dt_min: PositiveFloat = 1e-3,
        dt_max: PositiveFloat = 1e-1,
        A_min: PositiveFloat = 1.0,
        A_max: PositiveFloat = 16.0,
        norm_eps: PositiveFloat = 1e-5,
        scan_backend: str = "auto",
    ):
        super().__init__()
        check_range("dt", dt_min, dt_max)
        check_range("A", A_min, A_max)
        self.n_heads, self.scan_backend = n_heads, scan_backend
        self.d_key, self.d_value = (max(1, round(share * d_model / n_heads)) for share in (expand_k, expand_v))
        self.n_decays = {"none": 0, "head": 1, "channel": self.d_key}[decay]
        self.decay_by, self.beta_by, self.gate = decay, beta, gate
        self.largest_beta = 2.0 if negative_eigenvalues else 1.0
        d_values = n_heads * self.d_value
        self.d_mixed = n_heads * 2 * self.d_key + d_values  # queries, keys and values side by side
        self.d_beta, self.d_write = (n_heads, 0) if beta == "head" else (n_heads * self.d_key, d_values)
        self.d_decay = {"none": 0, "head": n_heads, "channel": self.d_value}[decay]
        self.d_gate = {"none": 0, "silu": d_values, "sigmoid": self.d_value}[gate]
        self.widths = (self.d_mixed, self.d_beta, self.d_write, self.d_decay, self.d_gate)

        self.in_proj = Linear(d_model, sum(self.widths), bias=False)
        bound = d_conv**-0.5  # torch's own initialisation of a depthwise convolution
        self.conv_weight = nn.Parameter(torch.empty(self.d_mixed, d_conv).uniform_(-bound, bound))
        if self.n_decays:
            self.A_log = nn.Parameter(torch.empty(n_heads).uniform_(A_min, A_max).log())
            self.dt_bias = nn.Parameter(log_uniform_step_bias(n_heads * self.n_decays, dt_min, dt_max))
        if decay == "channel":
            self.decay_proj = Linear(self.d_value, n_heads * self.d_key, bias=False)
        if gate == "sigmoid":
            self.gate_proj = Linear(self.d_value, d_values)
        self.norm = HeadNorm(self.d_value, norm_eps)
        self.out_proj = Linear(d_values, d_model, bias=False)

    def resolve_backend(self, backend: str, device: torch.device, dtype: torch.dtype) -> str:
        """The backend that a name resolves to on ``device``; raises ValueError as ``delta_rule`` does."""
        return resolve_backend(backend, device, dtype, self.d_key)

    def _select(self, x: Tensor) -> Selected:
        """What x (..., D) is projected to."""
        mixed, b, write, a, z = self.in_proj(x).split(self.widths, dim=-1)
        dtype = accumulation_dtype(b.dtype)
        beta, w = self.largest_beta * b.to(dtype).sigmoid(), None
        if self.beta_by == "channel":
            beta, w = self._by_head(beta), self._by_head(write.to(dtype).sigmoid())
        return Selected(mixed, beta, self._log_decay(a, dtype), w, self._open(z, dtype))

    def _log_decay(self, a: Tensor, dtype: torch.dtype) -> Tensor | None:
        """g (..., H) or (..., H, K) from its part of the projection."""
        if not self.n_decays:
            return None
        by_channel = self.decay_by == "channel"
        if by_channel:
            a = self.decay_proj(a)  # (..., H K)
        step = F.softplus(a.to(dtype) + self.dt_bias.to(dtype))
        rate = decay_rate(self.A_log).to(dtype)  # (H,), -exp(A_log)
        return rate[:, None] * self._by_head(step) if by_channel else rate * step

    def _open(self, z: Tensor, dtype: torch.dtype) -> Tensor | None:
        """The gate (..., H V) from its part of the projection."""
        if self.gate == "none":
            return None
        return F.silu(z.to(dtype)) if self.gate == "silu" else self.gate_proj(z).to(dtype).sigmoid()

    def _convolve(self, mixed: Tensor, **states: Any) -> Any:
        """The causal convolution of mixed (B, L, H (2 K + V)); ``states`` as ``causal_conv1d`` takes them."""
        return causal_conv1d(mixed, self.conv_weight, activation="silu", **states)

    def _by_head(self, x: Tensor) -> Tensor:
        """(..., H X) as (..., H, X)."""
        return x.unflatten(-1, (self.n_heads, -1))

    def _heads(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q and k (..., H, K), of length 1, and v (..., H, V) from the convolution's output."""
        keys, values = self.n_heads * self.d_key, self.n_heads * self.d_value
        q, k, v = (self._by_head(part) for part in mixed.split((keys, keys, values), dim=-1))
        return _of_length_one(q), _of_length_one(k), v

    def _scan(self, mixed: Tensor, selected: Selected, **states: Any) -> Any:
        """``delta_rule`` of the convolution's output (B, L, H (2 K + V)); ``states`` as it takes them."""
        heads, shares = self._heads(mixed), (selected.beta, selected.g, selected.w)
        return delta_rule(*heads, *shares, backend=self.scan_backend, **states)

    def _leave(self, y: Tensor, selected: Selected) -> Tensor:
        """Normalise, gate and project the heads' outputs (..., H, V) to (..., D)."""
        return self.out_proj(self.norm(y, selected.gate))

    def forward(self, x: Tensor, seq_idx: Tensor | None = None) -> Tensor:
        """(B, L, D) to (B, L, D); ``seq_idx`` (B, L) as ``Packs`` has it."""
        selected = self._select(x)
        mixed = self._convolve(selected.mixed, seq_idx=seq_idx)
        return self._leave(self._scan(mixed, selected, seq_idx=seq_idx), selected)

    def initial_state(self, batch_size: int) -> State:
        """Zeros."""
        weight = self.conv_weight
        shape = (batch_size, self.n_heads, self.d_key, self.d_value)
        return State(
            conv=weight.new_zeros(batch_size, weight.shape[1] - 1, self.d_mixed),
            memory=weight.new_zeros(shape, dtype=accumulation_dtype(weight.dtype)),
        )

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(B, D) to (B, D)."""
        selected = self._select(x)
        mixed, conv = causal_conv1d_update(state.conv, selected.mixed, self.conv_weight, activation="silu")
        y, memory = delta_rule_update(state.memory, *self._heads(mixed), selected.beta, selected.g, selected.w)
        return self._leave(y, selected), State(conv, memory)

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(B, L, D) to (B, L, D)."""
        selected = self._select(x)
        mixed, conv = self._convolve(selected.mixed, initial_state=state.conv, return_final_state=True)
        y, memory = self._scan(mixed, selected, initial_state=state.memory, return_final_state=True)
        return self._leave(y, selected), State(conv, memory)

    def uncounted_flops(self, batch_size: int, length: int) -> int:
        """Forward FLOPs of the recurrence."""
        size = (batch_size, length, self.n_heads, self.d_key, self.d_value)
        return delta_rule_flops(*size, self.n_decays, erases=f"by {self.beta_by}")


def _of_length_one(x: Tensor) -> Tensor:
    """x (..., K) divided by its length."""
    wide = x.to(accumulation_dtype(x.dtype))
    return (wide * torch.rsqrt(wide.square().sum(dim=-1, keepdim=True) + SMALLEST)).to(x.dtype)
