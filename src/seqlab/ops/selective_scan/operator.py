"""The fused backends as one operator of PyTorch, with its gradient.

A backend's functions are listed in ``interface.py``. The forward pass saves its arguments and what the backend needs,
so memory grows with the inputs and not with the expanded states. A second derivative raises an error.
"""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from seqlab.ops import backends
from seqlab.ops.contract import accumulation_dtype
from seqlab.ops.derivatives import FirstDerivative, needs_gradient, other_derivatives, owned
from seqlab.ops.selective_scan.interface import Gradients, Inputs

FUSED = ("cpu", "triton", "parallel")
PACKAGE = "seqlab.ops.selective_scan"


def fused_scan(
    inputs: Inputs, initial_state: Tensor | None, deterministic: bool, backend: str
) -> tuple[Tensor, Tensor]:
    """y (Bt, L, D) and the final state (Bt, D, N); arguments as in ``selective_scan``.

    The registered operator, which costs some 60 us more per call than an autograd function, is used under a compiler
    and on the meta device alone; the autograd function, which costs some 10 us, only where a derivative may follow.
    """
    keep = needs_gradient(*inputs[:8], initial_state)
    if torch.compiler.is_compiling() or inputs.u.is_meta:
        call = _scan_operator
    else:
        call = _Scan.apply if keep or other_derivatives() else _forward
    y, final_state, *_ = call(*inputs, initial_state, keep, deterministic, backend)
    return y, final_state


def _forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    seq_idx: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    keep: bool,
    deterministic: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the final state, and what the backward pass needs besides the arguments: nothing unless ``keep``."""
    inputs = Inputs(u, delta, A, B, C, D, z, delta_bias, seq_idx, delta_softplus)
    return backends.load(PACKAGE, backend).forward(inputs, initial_state, keep)


def _backward(
    dy: Tensor | None,
    d_final_state: Tensor | None,
    saved: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    seq_idx: Tensor | None,
    delta_softplus: bool,
    deterministic: bool,
    backend: str,
) -> Gradients:
    """The gradients of the arguments, for those of y and of the final state, of which either may be None."""
    inputs = Inputs(u, delta, A, B, C, D, z, delta_bias, seq_idx, delta_softplus)
    dy = torch.zeros_like(u) if dy is None else dy
    return backends.load(PACKAGE, backend).backward(inputs, saved, dy, d_final_state, deterministic)


_scan_operator = torch.library.custom_op("seqlab::selective_scan", _forward, mutates_args=())


@_scan_operator.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, seq_idx, delta_softplus, initial_state, keep, deterministic, backend):
    inputs = Inputs(u, delta, A, B, C, D, z, delta_bias, seq_idx, delta_softplus)
    dtype = accumulation_dtype(u.dtype)
    saved_shape = backends.load(PACKAGE, backend).saved_shape(inputs) if keep else (0,)
    state = u.new_empty((u.shape[0], *A.shape), dtype=dtype)
    return u.new_empty(u.shape), state, u.new_empty(saved_shape, dtype=dtype)


@torch.library.custom_op("seqlab::selective_scan_backward", mutates_args=())
def _backward_operator(
    dy: Tensor | None,
    d_final_state: Tensor | None,
    saved: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    seq_idx: Tensor | None,
    delta_softplus: bool,
    deterministic: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``_backward`` as a registered operator may return it: empty tensors for None, none sharing memory."""
    operands = (u, delta, A, B, C, D, z, delta_bias, seq_idx, delta_softplus, deterministic, backend)
    gradients = _backward(dy, d_final_state, saved, *operands)
    return tuple(u.new_empty(0) if gradient is None else owned(gradient) for gradient in gradients)


@_backward_operator.register_fake
def _(
    dy, d_final_state, saved, u, delta, A, B, C, D, z, delta_bias, seq_idx, delta_softplus, deterministic, backend
):  # fmt: skip
    gradients = (u.new_empty(0) if t is None else t.new_empty(t.shape) for t in (u, delta, A, B, C, D, z, delta_bias))
    return *gradients, u.new_empty((u.shape[0], *A.shape), dtype=accumulation_dtype(u.dtype))


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.delta_softplus, initial_state, _, ctx.deterministic, ctx.backend = inputs
    ctx.has_initial_state = initial_state is not None
    saved = output[2]
    ctx.save_for_backward(saved, *tensors)
    ctx.mark_non_differentiable(saved)
    ctx.set_materialize_grads(False)  # no gradient of the final state is less work than a zero one


def _differentiate(backward: Any, ctx: Any, dy: Tensor | None, d_final_state: Tensor | None) -> tuple:
    """The gradients of the arguments of ``_forward``."""
    tensors = ctx.saved_tensors
    found = backward(dy, d_final_state, *tensors, ctx.delta_softplus, ctx.deterministic, ctx.backend)
    gradients = [None if t is None else gradient for t, gradient in zip(tensors[1:9], found[:8], strict=True)]
    return *gradients, None, None, found[8] if ctx.has_initial_state else None, None, None, None


_scan_operator.register_autograd(
    lambda ctx, dy, d_final_state, _: _differentiate(_backward_operator, ctx, dy, d_final_state), setup_context=_save
)


class _Scan(FirstDerivative):
    """The operator without PyTorch's dispatcher."""

    operation = "selective_scan"
    compute, save = staticmethod(_forward), staticmethod(_save)

    @override
    @classmethod
    def forward(cls, ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        return super().forward(ctx, *inputs)[:2]  # saved is kept without being an output, which takes 3 us less

    @override
    @staticmethod
    def differentiate(ctx: Any, dy: Tensor | None, d_final_state: Tensor | None) -> tuple:
        return _differentiate(_backward, ctx, dy, d_final_state)
