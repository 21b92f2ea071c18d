"""mLSTM (Beck et al. 2024, "xLSTM: Extended Long Short-Term Memory") in the layer of xLSTM 7B (Beck et al. 2025, "xLSTM
7B: A Recurrent LLM for Fast and Efficient Inference").

Symbols: B batch, L length, D model width, H heads, K and V width of a head's keys and values.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from seqlab.models.linear import Linear
from seqlab.models.mixers.mamba import check_range
from seqlab.models.mixers.mlstm_cell import CellState, Inputs, mlstm_flops, mlstm_scan, mlstm_update
from seqlab.models.protocols import constant_state
from seqlab.ops.contract import accumulation_dtype
from seqlab.ops.delta_rule import resolve_backend


class MLSTM(nn.Module):
    """Projections, the cell of ``mlstm_cell``, a norm of each head, an output gate, projection.

    The layer of xLSTM 7B (arXiv:2503.13427) as NX-AI publishes it (NX-AI/xlstm, xlstm/xlstm_large/model.py): no
    projection up around the cell and no convolution, gates that see the layer's input alone, both between -15 and 15
    by 15 tanh(x / 15), a LayerNorm of each head with weights of its own, a sigmoid of a projection that multiplies its
    output. The gates' weights begin at 0, so that at first they are their biases: -10 for the input, evenly spaced over
    the heads from 3 to 6 for what is kept (as ``transformers`` initialises it, models/xlstm). It adds 1e-6 to the
    cell's denominator, which this does not.

    Args:
        d_model: width D.
        n_heads: heads H.
        expand_k: the ratio H K / D; K is rounded.
        expand_v: the ratio H V / D; V is rounded.
        forget_gate: how much the memory keeps of the state, ``sigmoid`` of the gate, or ``exp`` of it, which may exceed
            1 (arXiv:2405.04517, equation 26).
        gate_cap: the gates' largest magnitude.
        input_bias: the input gate's initial bias.
        forget_bias_min, forget_bias_max: range of the forget gates' initial biases.
        norm_eps: added to the variance in the norm.
        scan_backend: one of ``seqlab.ops.delta_rule.BACKENDS``, or ``auto``.

    Raises:
        UserError: forget_bias_min is above forget_bias_max.
    """

    steps_alike = True
    carried_state = constant_state
    rounds_input = True

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: PositiveInt,
        expand_k: PositiveFloat = 0.5,
        expand_v: PositiveFloat = 1.0,
        forget_gate: Literal["sigmoid", "exp"] = "sigmoid",
        gate_cap: PositiveFloat = 15.0,
        input_bias: float = -10.0,
        forget_bias_min: float = 3.0,
        forget_bias_max: float = 6.0,
        norm_eps: PositiveFloat = 1e-6,
        scan_backend: str = "auto",
    ):
        super().__init__()
        check_range("forget_bias", forget_bias_min, forget_bias_max)
        self.n_heads, self.gate_cap, self.norm_eps = n_heads, gate_cap, norm_eps
        self.forget_gate, self.scan_backend = forget_gate, scan_backend
        self.d_key, self.d_value = (max(1, round(share * d_model / n_heads)) for share in (expand_k, expand_v))
        keys, values = n_heads * self.d_key, n_heads * self.d_value
        self.widths = (keys, keys, values, values, 2 * n_heads)  # q, k, v, output gate, input and forget gates

        self.in_proj = Linear(d_model, sum(self.widths), bias=False)
        with torch.no_grad():
            self.in_proj.weight[-2 * n_heads :] = 0.0
        forget_bias = torch.linspace(forget_bias_min, forget_bias_max, n_heads)
        self.gate_bias = nn.Parameter(torch.cat((torch.full((n_heads,), input_bias), forget_bias)))
        self.norm_weight = nn.Parameter(torch.ones(values))
        self.out_proj = Linear(values, d_model, bias=False)

    def resolve_backend(self, backend: str, device: torch.device, dtype: torch.dtype) -> str:
        """The backend that a name resolves to on ``device``; raises ValueError as ``delta_rule`` does."""
        return resolve_backend(backend, device, dtype, self.d_key)

    def _select(self, x: Tensor) -> tuple[Inputs, Tensor]:
        """The cell's tensors of x (..., D), and its output gate before the sigmoid (..., H V)."""
        *heads, z, gates = self.in_proj(x).split(self.widths, dim=-1)
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)) for part in heads)
        dtype = accumulation_dtype(v.dtype)
        gates = gates.to(dtype) + self.gate_bias.to(dtype)
        a, f = (self.gate_cap * torch.tanh(gates / self.gate_cap)).chunk(2, dim=-1)  # (..., H) each
        return Inputs(q, k, v, a, F.logsigmoid(f) if self.forget_gate == "sigmoid" else f), z

    def _leave(self, h: Tensor, z: Tensor) -> Tensor:
        """Normalise, gate and project the cell's output (..., H, V) to (..., D)."""
        dtype = accumulation_dtype(h.dtype)
        normed = F.layer_norm(h.to(dtype), h.shape[-1:], eps=self.norm_eps).flatten(-2)  # (..., H V)
        return self.out_proj((normed * self.norm_weight.to(dtype) * z.to(dtype).sigmoid()).to(h.dtype))

    def forward(self, x: Tensor, seq_idx: Tensor | None = None) -> Tensor:
        """(B, L, D) to (B, L, D); ``seq_idx`` (B, L) as ``Packs`` has it."""
        inputs, z = self._select(x)
        return self._leave(mlstm_scan(inputs, seq_idx=seq_idx, backend=self.scan_backend)[0], z)

    def initial_state(self, batch_size: int) -> CellState:
        """Zeros."""
        shape, dtype = (batch_size, self.n_heads), accumulation_dtype(self.gate_bias.dtype)
        shapes = ((self.d_key, self.d_value), (self.d_key,), ())
        return CellState(*(self.gate_bias.new_zeros(*shape, *own, dtype=dtype) for own in shapes))

    def step(self, x: Tensor, state: CellState) -> tuple[Tensor, CellState]:
        """(B, D) to (B, D)."""
        inputs, z = self._select(x)
        h, state = mlstm_update(inputs, state)
        return self._leave(h, z), state

    def prefill(self, x: Tensor, state: CellState) -> tuple[Tensor, CellState]:
        """(B, L, D) to (B, L, D)."""
        inputs, z = self._select(x)
        h, state = mlstm_scan(inputs, state, backend=self.scan_backend)
        return self._leave(h, z), state

    def uncounted_flops(self, batch_size: int, length: int) -> int:
        """Forward FLOPs of the cell."""
        return mlstm_flops(batch_size, length, self.n_heads, self.d_key, self.d_value)
