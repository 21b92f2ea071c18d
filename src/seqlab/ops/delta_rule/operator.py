"""The fast backends with their gradient: the forward pass saves its arguments alone, the backward computes it again.

Memory then grows with the inputs, not with the squares and states of all chunks. A second derivative raises an error.
A fused backend is one operator of PyTorch's to a compiler; the other is traced, and the compiler decides by itself what
to save.
"""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from seqlab.ops import backends
from seqlab.ops.contract import accumulation_dtype
from seqlab.ops.delta_rule.interface import Gradients, Inputs
from seqlab.ops.derivatives import FirstDerivative, needs_gradient, other_derivatives, owned

FUSED = ("triton",)
DIFFERENTIATED = (*FUSED, "chunked")
PACKAGE = "seqlab.ops.delta_rule"


def differentiated_rule(inputs: Inputs, initial_state: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
    """y (Bt, L, H, V) and the final state (Bt, H, K, V); arguments as in ``delta_rule``."""
    if inputs.q.is_meta:
        return _shapes_alone(inputs, initial_state)
    if torch.compiler.is_compiling():
        call = _rule_operator if backend in FUSED else _forward
    else:
        derived = needs_gradient(*inputs[:-1], initial_state) or other_derivatives()
        call = _DeltaRule.apply if derived else _forward
    return call(*inputs, initial_state, backend)


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    g: Tensor | None,
    w: Tensor | None,
    seq_idx: Tensor | None,
    initial_state: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """y and the final state, without autocast, which would round the factors of matrix products."""
    with torch.autocast(q.device.type, enabled=False):
        return backends.load(PACKAGE, backend).forward(Inputs(q, k, v, beta, g, w, seq_idx), initial_state)


def _shapes_alone(inputs: Inputs, initial_state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The outputs on the meta device, which depend on every argument; a FLOP counter sees no matrix products."""
    q, v = inputs.q, inputs.v
    given = [tensor for tensor in (*inputs[:-1], initial_state) if tensor is not None]
    every = sum(tensor.sum() for tensor in given).to(accumulation_dtype(q.dtype))
    return (v * every).to(q.dtype), q[:, 0].unsqueeze(3) * v[:, 0].unsqueeze(2) * every  # (Bt, H, K, V)


def _backward(
    dy: Tensor | None,
    d_final_state: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    g: Tensor | None,
    w: Tensor | None,
    seq_idx: Tensor | None,
    initial_state: Tensor | None,
    backend: str,
) -> Gradients:
    """A fused backend's gradients, for those of y and of the final state, of which either may be None."""
    dy = torch.zeros_like(v, dtype=q.dtype) if dy is None else dy
    with torch.autocast(q.device.type, enabled=False):
        inputs = Inputs(q, k, v, beta, g, w, seq_idx)
        return backends.load(PACKAGE, backend).backward(inputs, initial_state, dy, d_final_state)


_rule_operator = torch.library.custom_op("seqlab::delta_rule", _forward, mutates_args=())


def _new_state(q: Tensor, v: Tensor) -> Tensor:
    return q.new_empty((q.shape[0], q.shape[2], q.shape[3], v.shape[3]), dtype=accumulation_dtype(q.dtype))


@_rule_operator.register_fake
def _(q, k, v, beta, g, w, seq_idx, initial_state, backend):
    return q.new_empty(v.shape), _new_state(q, v)


@torch.library.custom_op("seqlab::delta_rule_backward", mutates_args=())
def _backward_operator(
    dy: Tensor | None,
    d_final_state: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    g: Tensor | None,
    w: Tensor | None,
    seq_idx: Tensor | None,
    initial_state: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``_backward`` as a registered operator may return it: an empty tensor for None, none sharing memory."""
    gradients = _backward(dy, d_final_state, q, k, v, beta, g, w, seq_idx, initial_state, backend)
    return tuple(q.new_empty(0) if gradient is None else owned(gradient) for gradient in gradients)


@_backward_operator.register_fake
def _(dy, d_final_state, q, k, v, beta, g, w, seq_idx, initial_state, backend):
    gradients = (q.new_empty(0) if t is None else t.new_empty(t.shape) for t in (q, k, v, beta, g, w))
    return *gradients, _new_state(q, v)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)  # no gradient of the final state is less work than a zero one


def _differentiate(backward: Any, ctx: Any, *gradients: Tensor | None) -> tuple:
    """The gradients of the arguments of ``_forward``."""
    *given, seq_idx, initial_state = ctx.saved_tensors
    found = backward(*gradients, *given, seq_idx, initial_state, ctx.backend)
    *found, d_initial_state = (
        None if tensor is None else gradient for tensor, gradient in zip((*given, initial_state), found, strict=True)
    )
    return *found, None, d_initial_state, None


_rule_operator.register_autograd(
    lambda ctx, *gradients: _differentiate(_backward_operator, ctx, *gradients), setup_context=_save
)


def _traced_again(ctx: Any, *gradients: Tensor | None) -> tuple:
    """The gradients of the arguments of ``_forward``, by PyTorch's own derivatives of the backend."""
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


class _DeltaRule(FirstDerivative):
    operation = "delta_rule"
    compute, save = staticmethod(_forward), staticmethod(_save)

    @override
    @staticmethod
    def differentiate(ctx: Any, *gradients: Tensor | None) -> tuple:
        if ctx.backend in FUSED:
            return _differentiate(_backward, ctx, *gradients)
        return _traced_again(ctx, *gradients)
