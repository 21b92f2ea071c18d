"""minGRU (Feng et al. 2024, "Were RNNs All We Needed?", arXiv:2410.01201), through the selective scan.

Symbols, the paper's: B batch, L length, D model width, E = expand D width of the hidden state; z (B, L, E) update gate
and h~ candidate, both computed from the input alone, so that the recurrence h_t = (1 - z_t) h_{t-1} + z_t h~_t
(section 3.1) is linear in h. k is z before its sigmoid, and dt = softplus(k) the scan's step size.
"""

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from seqlab.models.linear import Linear
from seqlab.models.protocols import constant_state
from seqlab.ops import selective_scan, selective_scan_flops, selective_state_update
from seqlab.ops.selective_scan import resolve_backend

CLOSED = -60.0
"""Below this k, sigmoid(k) / softplus(k) is 1 within float64's rounding; much lower, both would underflow to 0."""


def gate_over_step(k: Tensor) -> Tensor:
    """sigmoid(k) / softplus(k), elementwise: near 1 for a closed gate, near 1 / k for an open one."""
    k = k.clamp(min=CLOSED)
    return torch.sigmoid(k) / F.softplus(k)


def positive(x: Tensor) -> Tensor:
    """The paper's g (appendix B), elementwise: x + 1/2 where x is not negative, sigmoid(x) elsewhere."""
    return torch.where(x >= 0, x + 0.5, torch.sigmoid(x))


class MinGRU(nn.Module):
    """minGRU, widened and projected back.

    It is a selective scan with one state per channel, A = -1 and B = C = 1: the decay exp(-softplus(k)) is exactly
    1 - z, and dt u, what enters the state, is z h~ for u = h~ z / dt. Every backend of the scan can therefore run it.
    None divides by the decays, so the paper's log-space form, which needs a positive h~, is not needed.

    Args:
        d_model: width D.
        expand: the ratio E / D.
        d_inner: E itself; null for expand * D.
        positive_candidate: h~ = g(.) as in the paper's log-space version; otherwise h~ is linear, as in its plain one.
        scan_backend: one of ``seqlab.ops.selective_scan.BACKENDS``, or ``auto``.
    """

    resolve_backend = staticmethod(resolve_backend)  # of ``scan_backend`` on a device

    steps_alike = True
    carried_state = constant_state
    rounds_input = True

    def __init__(
        self,
        d_model: int,
        *,
        expand: PositiveInt = 2,
        d_inner: PositiveInt | None = None,
        positive_candidate: bool = False,
        scan_backend: str = "auto",
    ):
        super().__init__()
        self.d_inner = expand * d_model if d_inner is None else d_inner
        self.positive_candidate, self.scan_backend = positive_candidate, scan_backend
        self.in_proj = Linear(d_model, 2 * self.d_inner)
        self.out_proj = Linear(self.d_inner, d_model, bias=False)
        self.register_buffer("A", -torch.ones(self.d_inner, 1), persistent=False)

    def _inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The scan's u and delta, here u and k (..., E), and its B = C, ones (..., 1)."""
        k, candidate = self.in_proj(x).chunk(2, dim=-1)  # (..., E) each
        if self.positive_candidate:
            candidate = positive(candidate)
        dtype = torch.promote_types(k.dtype, torch.float32)
        u = (candidate * gate_over_step(k.to(dtype))).to(k.dtype)
        return u, k, k.new_ones(*k.shape[:-1], 1)

    def _scan(self, x: Tensor, **states: Any) -> Any:
        """The scan of x (B, L, D); ``states`` as ``selective_scan`` takes them."""
        u, k, one = self._inputs(x)
        settings = {"delta_softplus": True, "backend": self.scan_backend}
        return selective_scan(u, k, self.A, one, one, **settings, **states)

    def forward(self, x: Tensor, seq_idx: Tensor | None = None) -> Tensor:
        """(B, L, D) to (B, L, D); ``seq_idx`` (B, L) as ``Packs`` has it."""
        return self.out_proj(self._scan(x, seq_idx=seq_idx))

    def initial_state(self, batch_size: int) -> Tensor:
        """The hidden state, zeros (B, E, 1) in float32, or float64 in a float64 model."""
        dtype = torch.promote_types(self.in_proj.weight.dtype, torch.float32)
        return self.in_proj.weight.new_zeros(batch_size, self.d_inner, 1, dtype=dtype)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) to (B, D)."""
        u, k, one = self._inputs(x)
        y, state = selective_state_update(state, u, k, self.A, one, one, delta_softplus=True)
        return self.out_proj(y), state

    def prefill(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, D) to (B, L, D)."""
        y, state = self._scan(x, initial_state=state, return_final_state=True)
        return self.out_proj(y), state

    def uncounted_flops(self, batch_size: int, length: int) -> int:
        """Forward FLOPs of the scan's recurrence."""
        return selective_scan_flops(batch_size, length, self.d_inner, 1)
