"""The scan of one slice of sequences that several processes share (``seqlab.ops.context``), with its gradient.

A backend may have functions for what a slice does to a state, cheaper than a whole pass:

    final_state(inputs) -> s                        (Bt, H, P, N), from zeros
    start_gradient(inputs, dy) -> r                 (Bt, H, P, N)
"""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from seqlab.ops import backends
from seqlab.ops.context import ContextGroup
from seqlab.ops.contract import accumulation_dtype
from seqlab.ops.derivatives import FirstDerivative
from seqlab.ops.ssd.interface import Inputs
from seqlab.ops.ssd.operator import PACKAGE


def ends(inputs: Inputs, backend: str) -> tuple[Tensor, Tensor]:
    """What a slice multiplies the state by (Bt, H, 1, 1) and adds (Bt, H, P, N), in the accumulation dtype."""
    fused, dtype = backends.load(PACKAGE, backend), accumulation_dtype(inputs.x.dtype)
    dt = inputs.dt.to(dtype) if inputs.dt_bias is None else inputs.dt.to(dtype) + inputs.dt_bias.to(dtype)
    time = (torch.nn.functional.softplus(dt) if inputs.dt_softplus else dt).sum(dim=1)  # (Bt, H)
    final = fused.final_state(inputs) if hasattr(fused, "final_state") else fused.forward(inputs, None)[1]
    return torch.exp(time * inputs.A.to(dtype))[..., None, None], final


def start_gradient(inputs: Inputs, state: Tensor, dy: Tensor, backend: str) -> Tensor:
    """The gradient (Bt, H, P, N) of the state before a slice for dy (Bt, L, H, P), and none of the state after it."""
    fused = backends.load(PACKAGE, backend)
    if hasattr(fused, "start_gradient"):
        return fused.start_gradient(inputs, dy)
    return fused.backward(inputs, state, dy, None).initial_state


class SlicedSSD(FirstDerivative):
    """y (Bt, L, H, P) of this process's slice; arguments as in ``ssd``."""

    operation = "ssd"

    @override
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        dt_bias: Tensor | None,
        dt_softplus: bool,
        context: ContextGroup,
        backend: str,
    ) -> Tensor:
        inputs = Inputs(x, dt, A, B, C, D, dt_bias, None, dt_softplus)
        with torch.autocast(x.device.type, enabled=False):
            state, decays = context.enter(*ends(inputs, backend))
            y, _ = backends.load(PACKAGE, backend).forward(inputs, state)
        ctx.save_for_backward(decays, state, *inputs[:7])
        ctx.softplus, ctx.context, ctx.backend = dt_softplus, context, backend
        return y

    @override
    @staticmethod
    def differentiate(ctx: Any, dy: Tensor) -> tuple:
        decays, state, *tensors = ctx.saved_tensors
        inputs = Inputs(*tensors, None, ctx.softplus)
        with torch.autocast(dy.device.type, enabled=False):
            after = ctx.context.leave(decays, start_gradient(inputs, state, dy, ctx.backend))
            found = backends.load(PACKAGE, ctx.backend).backward(inputs, state, dy, after)
        return *(None if t is None else g for t, g in zip(tensors, found[:7], strict=True)), None, None, None
