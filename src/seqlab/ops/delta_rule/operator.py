"""The chunked backend with its gradient: the forward pass saves its arguments alone, the backward computes it again.

Memory then grows with the inputs, not with the squares and states of all chunks. A second derivative raises an error.
A compiler traces the backend itself, and decides by itself what to save.
"""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from seqlab.ops import backends
from seqlab.ops.contract import accumulation_dtype
from seqlab.ops.delta_rule.interface import Inputs
from seqlab.ops.derivatives import FirstDerivative, needs_gradient, other_derivatives

FUSED = ()
"""No backend is a registered operator of PyTorch's."""
RECOMPUTED = ("chunked",)
PACKAGE = "seqlab.ops.delta_rule"


def recomputed_rule(inputs: Inputs, initial_state: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
    """y (Bt, L, H, V) and the final state (Bt, H, K, V); arguments as in ``delta_rule``."""
    if inputs.q.is_meta:
        return _shapes_alone(inputs, initial_state)
    if not torch.compiler.is_compiling() and (needs_gradient(*inputs[:-1], initial_state) or other_derivatives()):
        return _DeltaRule.apply(*inputs, initial_state, backend)
    return _forward(*inputs, initial_state, backend)


def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """y and the final state of the inputs, initial state and backend, all in a row, without autocast.

    It would round the factors of matrix products.
    """
    *tensors, initial_state, backend = arguments
    inputs = Inputs(*tensors)
    with torch.autocast(inputs.q.device.type, enabled=False):
        return backends.load(PACKAGE, backend).forward(inputs, initial_state)


def _shapes_alone(inputs: Inputs, initial_state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The outputs on the meta device, which depend on every argument; a FLOP counter sees no matrix products."""
    q, v = inputs.q, inputs.v
    given = [tensor for tensor in (*inputs[:-1], initial_state) if tensor is not None]
    every = sum(tensor.sum() for tensor in given).to(accumulation_dtype(q.dtype))
    return (v * every).to(q.dtype), q[:, 0].unsqueeze(3) * v[:, 0].unsqueeze(2) * every  # (Bt, H, K, V)


class _DeltaRule(FirstDerivative):
    operation = "delta_rule"
    compute = staticmethod(_forward)

    @staticmethod
    def save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.backend = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)  # no gradient of the final state is less work than a zero one

    @override
    @staticmethod
    def differentiate(ctx: Any, *gradients: Tensor | None) -> tuple:
        tensors = [None if tensor is None else tensor.detach() for tensor in ctx.saved_tensors]
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[:-1]) if needed]
        for i in wanted:
            tensors[i].requires_grad_()
        with torch.enable_grad():
            outputs = _forward(*tensors, ctx.backend)
        pairs = [(out, d_out) for out, d_out in zip(outputs, gradients, strict=True) if d_out is not None]
        with torch.autocast(tensors[0].device.type, enabled=False):
            found = torch.autograd.grad(
                [out for out, _ in pairs],
                [tensors[i] for i in wanted],
                [d_out for _, d_out in pairs],
                allow_unused=True,
            )
        by_place = dict(zip(wanted, found, strict=True))
        return *(by_place.get(i) for i in range(len(tensors))), None
