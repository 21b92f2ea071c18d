"""M²RNN on a GPU: one Triton kernel for each direction, which walk over all positions.

The device code and its symbols are in ``triton_kernels.py``.
"""

from typing import Any

import torch
from torch import Tensor

from seqlab.ops import launch
from seqlab.ops.launch import Call
from seqlab.ops.m2rnn.interface import SPAN, Gradients, Inputs
from seqlab.ops.triton_support import ceil, unit_stride
from seqlab.ops.triton_support import why_unavailable as why_unavailable

try:
    import triton

    from seqlab.ops.m2rnn import triton_kernels
except ImportError:  # a torch wheel for CPUs may come without it
    triton = None

ROWS = 16
"""Rows of the state in a program, as few as a product of matrices takes: they are independent of one another."""

WARPS = {16: 1, 32: 1, 64: 4, 128: 8}
"""By the width of a head's values, filled up to a power of two, so that the gradient of W fits into registers."""


class _Laid:
    """The kernels' inputs, laid out for them, and what both directions' launches share."""

    def __init__(self, call: Call):
        q, k, v, f, W, self.seq_idx = call.tensors[:6]
        self.q, self.k, self.v = (call.converted(tensor, unit_stride) for tensor in (q, k, v))
        self.f, self.W = f, call.converted(W, Tensor.contiguous)
        self.batch, self.length, self.d_key = q.shape
        self.n_heads, self.d_value = v.shape[2:]
        self.parts = ceil(self.d_key, ROWS)
        self.state = (self.batch, self.n_heads, self.d_key, self.d_value)
        self.width = max(16, triton.next_power_of_2(self.d_value))

    @property
    def grid(self) -> tuple[int, int, int]:
        return self.parts, self.n_heads, self.batch

    @property
    def sizes(self) -> tuple[int, int, int]:
        """L, B and N."""
        return self.length, self.batch, self.n_heads

    @property
    def strides(self) -> list[int]:
        """Those of q, k, v, f and seq_idx along batch, length and, but for the last axis of q and k, heads."""
        found = [*self.q.stride()[:2], *self.k.stride()[:2], *self.v.stride()[:3], *self.f.stride()]
        return [*found, *((0, 0) if self.seq_idx is None else self.seq_idx.stride())]

    @property
    def constants(self) -> dict[str, Any]:
        """The compile-time constants of both kernels."""
        narrow = self.q.dtype == torch.bfloat16 and self.q.is_cuda  # the interpreter cannot multiply bfloat16
        return {
            "K": self.d_key,
            "V": self.d_value,
            "BK": ROWS,
            "BV": self.width,
            "SPAN": SPAN,
            "RESETS": self.seq_idx is not None,
            "DOT": triton.language.bfloat16 if narrow else triton.language.float32,
            "PRECISION": "tf32" if narrow else "tf32x3",  # three products of factors split in two keep 21 bits of 24
            "num_warps": WARPS[self.width],
            "num_stages": 1,
        }


def forward(inputs: Inputs, initial_state: Tensor | None, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """y (B, L, N, V) in q's dtype, the final state (B, N, K, V), and with ``keep`` the states before each span."""
    y, final, starts = launch.run(_forward, (*inputs, initial_state), keep)
    return y.sum(dim=0).to(inputs.q.dtype), final, final.new_empty(0) if starts is None else starts


def _forward(call: Call, keep: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """y in shares (P, B, L, N, V)."""
    a, initial_state = _Laid(call), call.tensors[6]
    y, final = call.empty(a.parts, *a.v.shape), call.empty(*a.state)
    starts = call.empty(ceil(a.length, SPAN), a.n_heads, a.batch, *a.state[2:]) if keep else None
    call.launch(
        triton_kernels.forward_kernel, a.grid, a.q, a.k, a.v, a.f, a.W, a.seq_idx,
        call.converted(initial_state, Tensor.contiguous), starts, y, final, *a.sizes, *a.strides,
        HAS_START=initial_state is not None, KEEP=keep, **a.constants,
    )  # fmt: skip
    return y, final, starts


def backward(
    inputs: Inputs, starts: Tensor, dy: Tensor, d_final_state: Tensor | None, gradient_clip: float | None
) -> Gradients:
    """The gradients for dy (B, L, N, V) and d_final_state (B, N, K, V), without atomics: bitwise reproducible."""
    *shares, d_initial = launch.run(_backward, (*inputs, starts, dy, d_final_state), gradient_clip)
    summed = (share.sum(dim=0) for share in shares)
    return Gradients(*(d.to(tensor.dtype) for d, tensor in zip(summed, inputs[:-1], strict=True)), d_initial)


def _backward(call: Call, gradient_clip: float | None) -> tuple[Tensor, ...]:
    """The gradients, those of arguments in shares: of q and k for each head, of the others for each part of the rows,
    of W for each sequence, too."""
    a, (starts, dy, d_final_state) = _Laid(call), call.tensors[6:]
    dy = call.converted(dy, unit_stride)
    states = call.empty(*a.grid, SPAN, 2, ROWS, a.width)
    dq, dk = (call.empty(a.n_heads, *a.q.shape) for _ in range(2))
    dv, df, dW = (
        call.empty(a.parts, *a.v.shape),
        call.empty(a.parts, *a.f.shape),
        call.empty(a.parts * a.batch, *a.W.shape),
    )
    d_initial = call.empty(*a.state)
    call.launch(
        triton_kernels.backward_kernel, a.grid, a.q, a.k, a.v, a.f, a.W, a.seq_idx, starts, states, dy,
        call.converted(d_final_state, Tensor.contiguous), dq, dk, dv, df, dW, d_initial, gradient_clip or 0.0,
        *a.sizes, *a.strides, *dy.stride()[:3], HAS_END=d_final_state is not None, CLIPS=gradient_clip is not None,
        **a.constants,
    )  # fmt: skip
    return dq, dk, dv, df, dW, d_initial
