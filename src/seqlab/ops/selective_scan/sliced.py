"""The scan of one slice of sequences that several processes share (``seqlab.ops.context``), with its gradient.

A backend may have functions for what a slice does to a state, cheaper than a whole pass:

    ends(inputs) -> (P, s)                          (Bt, D, N) each
    start_gradient(inputs, saved, dy) -> r          (Bt, D, N)
"""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from seqlab.ops import backends
from seqlab.ops.context import ContextGroup
from seqlab.ops.contract import accumulation_dtype
from seqlab.ops.derivatives import FirstDerivative
from seqlab.ops.selective_scan.interface import Inputs
from seqlab.ops.selective_scan.operator import PACKAGE


def ends(inputs: Inputs, backend: str) -> tuple[Tensor, Tensor]:
    """What a slice multiplies the state by, and what it adds: (Bt, D, N) each, in the accumulation dtype."""
    fused = backends.load(PACKAGE, backend)
    if hasattr(fused, "ends"):
        return fused.ends(inputs)
    delta, dtype = inputs.delta, accumulation_dtype(inputs.u.dtype)
    delta = delta.to(dtype) if inputs.delta_bias is None else delta.to(dtype) + inputs.delta_bias.to(dtype)
    time = (torch.nn.functional.softplus(delta) if inputs.delta_softplus else delta).sum(dim=1)  # (Bt, D)
    return torch.exp(time.unsqueeze(2) * inputs.A.to(dtype)), fused.forward(inputs, None, False)[1]


def start_gradient(inputs: Inputs, saved: Tensor, dy: Tensor, deterministic: bool, backend: str) -> Tensor:
    """The gradient (Bt, D, N) of the state before a slice for dy (Bt, L, D), and none of the state after it."""
    fused = backends.load(PACKAGE, backend)
    if hasattr(fused, "start_gradient"):
        return fused.start_gradient(inputs, saved, dy)
    return fused.backward(inputs, saved, dy, None, deterministic).initial_state


class SlicedScan(FirstDerivative):
    """y (Bt, L, D) of this process's slice; arguments as in ``selective_scan``."""

    operation = "selective_scan"

    @override
    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        delta_bias: Tensor | None,
        delta_softplus: bool,
        context: ContextGroup,
        deterministic: bool,
        backend: str,
    ) -> Tensor:
        inputs = Inputs(u, delta, A, B, C, D, z, delta_bias, None, delta_softplus)
        state, decays = context.enter(*ends(inputs, backend))
        y, _, saved = backends.load(PACKAGE, backend).forward(inputs, state, True)
        ctx.save_for_backward(decays, saved, *inputs[:8])
        ctx.softplus, ctx.context, ctx.deterministic, ctx.backend = delta_softplus, context, deterministic, backend
        return y

    @override
    @staticmethod
    def differentiate(ctx: Any, dy: Tensor) -> tuple:
        decays, saved, *tensors = ctx.saved_tensors
        inputs = Inputs(*tensors, None, ctx.softplus)
        after = ctx.context.leave(decays, start_gradient(inputs, saved, dy, ctx.deterministic, ctx.backend))
        found = backends.load(PACKAGE, ctx.backend).backward(inputs, saved, dy, after, ctx.deterministic)
        return *(None if t is None else g for t, g in zip(tensors, found[:8], strict=True)), None, None, None, None
