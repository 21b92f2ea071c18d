"""M²RNN (Mishra et al. 2026, "M²RNN: Non-Linear RNNs with Matrix-Valued States for Scalable Language Modeling").

Symbols: B batch, L length, D model width, N heads, K width of queries and keys, V width of a head's values, C width of
the convolution.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from seqlab.models.linear import Linear
from seqlab.models.mixers.mamba import check_range, decay, log_uniform_step_bias
from seqlab.models.protocols import constant_state
from seqlab.ops import causal_conv1d, causal_conv1d_update, m2rnn, m2rnn_flops, m2rnn_update
from seqlab.ops.contract import accumulation_dtype
from seqlab.ops.m2rnn import resolve_backend


class State(NamedTuple):
    """The state of one layer, of constant size."""

    conv: Tensor  # (B, C - 1, 2 K + N V), the last inputs of the convolution
    memory: Tensor  # (B, N, K, V), float32, or float64 in a float64 model


class M2RNN(nn.Module):
    """Projections, a short convolution of queries, keys and values, the recurrence, skip, gate and norm, projection.

    The layer that the authors publish (open-lm-engine/lm-engine, sequence_mixer_blocks/m2rnn.py, with the settings of
    configs/research/m2rnn/400m-normal/m2rnn.yml): all heads share queries and keys, f = exp(-exp(A_log) softplus(a +
    dt_bias)) with a projection a, W begins as the identity, D v is added to the output, which silu of a projection
    multiplies before its RMSNorm over all heads.

    Args:
        d_model: width D.
        d_key: width K.
        d_value: width V.
        expand: the ratio N V / D; N is rounded.
        d_conv: width C of the causal depthwise convolution.
        gradient_clip: the largest magnitude of each number in the gradient by a state; null for any.
        dt_min, dt_max: range of the initial softplus(dt_bias).
        A_min, A_max: range of the initial exp(A_log).
        norm_eps: added to the mean square in the norm.
        scan_backend: one of ``seqlab.ops.m2rnn.BACKENDS``, or ``auto``.

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
        d_key: PositiveInt = 64,
        d_value: PositiveInt = 16,
        expand: PositiveFloat = 1.3125,
        d_conv: PositiveInt = 4,
        gradient_clip: PositiveFloat | None = 1.0,
        dt_min: PositiveFloat = 1e-3,
        dt_max: PositiveFloat = 1e-1,
        A_min: PositiveFloat = 1e-3,
        A_max: PositiveFloat = 16.0,
        norm_eps: PositiveFloat = 1e-5,
        scan_backend: str = "auto",
    ):
        super().__init__()
        check_range("dt", dt_min, dt_max)
        check_range("A", A_min, A_max)
        self.d_key, self.d_value, self.n_heads = d_key, d_value, max(1, round(expand * d_model / d_value))
        self.gradient_clip, self.norm_eps, self.scan_backend = gradient_clip, norm_eps, scan_backend
        values = self.n_heads * d_value
        self.d_mixed = 2 * d_key + values  # queries, keys and values side by side

        self.in_proj = Linear(d_model, self.d_mixed + self.n_heads + values, bias=False)
        bound = d_conv**-0.5  # torch's own initialisation of a depthwise convolution
        self.conv_weight = nn.Parameter(torch.empty(self.d_mixed, d_conv).uniform_(-bound, bound))
        self.A_log = nn.Parameter(torch.empty(self.n_heads).uniform_(A_min, A_max).log())
        self.dt_bias = nn.Parameter(log_uniform_step_bias(self.n_heads, dt_min, dt_max))
        self.state_weight = nn.Parameter(torch.eye(d_value).repeat(self.n_heads, 1, 1))
        self.D = nn.Parameter(torch.ones(self.n_heads, d_value))
        self.D.no_weight_decay = True
        self.norm_weight = nn.Parameter(torch.ones(values))
        self.out_proj = Linear(values, d_model, bias=False)

    def resolve_backend(self, backend: str, device: torch.device, dtype: torch.dtype) -> str:
        """The backend that a name resolves to on ``device``; raises ValueError as ``m2rnn`` does."""
        return resolve_backend(backend, device, dtype, self.d_value)

    def _select(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of x (..., D) what the convolution mixes (..., 2 K + N V), f (..., N) and the gate (..., N V)."""
        mixed, a, z = self.in_proj(x).split((self.d_mixed, self.n_heads, self.norm_weight.numel()), dim=-1)
        dtype = accumulation_dtype(a.dtype)
        step = F.softplus(a.to(dtype) + self.dt_bias.to(dtype))
        return mixed, torch.exp(decay(self.A_log).to(dtype) * step), z

    def _inputs(self, mixed: Tensor, f: Tensor) -> tuple[Tensor, ...]:
        """The recurrence's q, k, v, f and W, from the convolution's output (..., 2 K + N V)."""
        q, k, v = mixed.split((self.d_key, self.d_key, self.d_mixed - 2 * self.d_key), dim=-1)
        return q, k, v.unflatten(-1, (self.n_heads, -1)), f, self.state_weight

    def _leave(self, y: Tensor, v: Tensor, z: Tensor) -> Tensor:
        """Add the skip to the heads' outputs (..., N, V), gate, normalise and project to (..., D)."""
        dtype = accumulation_dtype(y.dtype)
        gated = (y.to(dtype) + self.D.to(dtype) * v).flatten(-2) * F.silu(z.to(dtype))  # (..., N V)
        normed = F.rms_norm(gated, gated.shape[-1:], self.norm_weight.to(dtype), self.norm_eps)
        return self.out_proj(normed.to(y.dtype))

    def _scan(self, x: Tensor, state: State | None, seq_idx: Tensor | None = None) -> tuple[Tensor, State]:
        """(B, L, D) to (B, L, D), and the state after it; zeros before it if None."""
        mixed, f, z = self._select(x)
        before, memory = (None, None) if state is None else state
        settings: dict[str, Any] = {"return_final_state": True, "seq_idx": seq_idx}
        mixed, conv = causal_conv1d(mixed, self.conv_weight, initial_state=before, activation="silu", **settings)
        inputs = self._inputs(mixed, f)
        settings |= {"gradient_clip": self.gradient_clip, "backend": self.scan_backend}
        y, memory = m2rnn(*inputs, initial_state=memory, **settings)
        return self._leave(y, inputs[2], z), State(conv, memory)

    def forward(self, x: Tensor, seq_idx: Tensor | None = None) -> Tensor:
        """(B, L, D) to (B, L, D); ``seq_idx`` (B, L) as ``Packs`` has it."""
        return self._scan(x, None, seq_idx)[0]

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
        mixed, f, z = self._select(x)
        mixed, conv = causal_conv1d_update(state.conv, mixed, self.conv_weight, activation="silu")
        inputs = self._inputs(mixed, f)
        y, memory = m2rnn_update(state.memory, *inputs)
        return self._leave(y, inputs[2], z), State(conv, memory)

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(B, L, D) to (B, L, D)."""
        return self._scan(x, state)

    def uncounted_flops(self, batch_size: int, length: int) -> int:
        """Forward FLOPs of the recurrence."""
        return m2rnn_flops(batch_size, length, self.n_heads, self.d_key, self.d_value)
