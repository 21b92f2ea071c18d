"""The fused backends as one operator of PyTorch, with its gradient.

A fused backend is a file with two functions beside ``why_unavailable``:

    forward(x, update, gate, weight, eps, groups, out_dtype) -> stream, y, scale
    backward(dy, d_stream, stream, gate, weight, scale, groups, update_dtype) -> dx, d_update, d_gate, d_weight

Symbols:

    N, G, D   rows, groups of a row, numbers of a group
    W         numbers of a row, G D
    x         (..., W)
    update    (..., W), or None
    gate      (..., W), or None
    weight    (W,)
    stream    (..., W) x + update in x's dtype; of no elements where there is no update
    normed    the stream, or with a gate the stream times silu(gate)
    y         (..., W) in out_dtype
    scale     (N G,) float32, what each group is multiplied by: 1 / sqrt(mean of normed^2 + eps)

Gradients are in the dtype of what they belong to. That by the update is that by x, in another dtype if its own is
another, or else None. Saved are the stream, gate, weight and scale.
"""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from seqlab.ops import backends
from seqlab.ops.derivatives import FirstDerivative, needs_gradient, other_derivatives

FUSED = ("triton",)
PACKAGE = "seqlab.ops.rms_norm"


def fused_norm(
    x: Tensor,
    update: Tensor | None,
    gate: Tensor | None,
    weight: Tensor,
    eps: float,
    groups: int,
    out_dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The stream (..., W) if there is an update, and y (..., W); arguments as in ``add_rms_norm``, ``gated_rms_norm``.

    The registered operator, which costs some 60 us more per call than an autograd function, is used under a compiler
    alone; the autograd function, which costs some 10 us, only where a derivative may follow.
    """
    if torch.compiler.is_compiling():
        call = _operator
    else:
        call = _RMSNorm.apply if needs_gradient(x, update, gate, weight) or other_derivatives() else _forward
    return call(x, update, gate, weight, eps, groups, out_dtype, backend)[:2]


def _forward(
    x: Tensor,
    update: Tensor | None,
    gate: Tensor | None,
    weight: Tensor,
    eps: float,
    groups: int,
    out_dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return backends.load(PACKAGE, backend).forward(x, update, gate, weight, eps, groups, out_dtype)


def _backward(
    dy: Tensor,
    d_stream: Tensor | None,
    stream: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    scale: Tensor,
    groups: int,
    update_dtype: torch.dtype | None,
    backend: str,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """The gradients by x, by the update if its dtype is another, by the gate and by weight, all contiguous."""
    operands = dy, d_stream, stream, gate, weight, scale, groups, update_dtype
    return backends.load(PACKAGE, backend).backward(*operands)


_operator = torch.library.custom_op("seqlab::rms_norm", _forward, mutates_args=())


@_operator.register_fake
def _(x, update, gate, weight, eps, groups, out_dtype, backend):
    rows = x.numel() // x.shape[-1]
    stream = x.new_empty(0 if update is None else x.shape)
    return stream, x.new_empty(x.shape, dtype=out_dtype), x.new_empty(rows * groups, dtype=torch.float32)


@torch.library.custom_op("seqlab::rms_norm_backward", mutates_args=())
def _backward_operator(
    dy: Tensor,
    d_stream: Tensor | None,
    stream: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    scale: Tensor,
    groups: int,
    update_dtype: torch.dtype | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``_backward`` with empty tensors for None, which an operator cannot return."""
    found = _backward(dy, d_stream, stream, gate, weight, scale, groups, update_dtype, backend)
    return tuple(stream.new_empty(0) if gradient is None else gradient for gradient in found)


@_backward_operator.register_fake
def _(dy, d_stream, stream, gate, weight, scale, groups, update_dtype, backend):
    d_update = stream.new_empty(0)
    if update_dtype not in (None, stream.dtype):
        d_update = stream.new_empty(stream.shape, dtype=update_dtype)
    d_gate = stream.new_empty(0) if gate is None else gate.new_empty(gate.shape)
    return stream.new_empty(stream.shape), d_update, d_gate, weight.new_empty(weight.shape)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, update, gate, weight, _, ctx.groups, _, ctx.backend = inputs
    stream, _, scale = output
    ctx.update_dtype = None if update is None else update.dtype
    ctx.save_for_backward(x if update is None else stream, gate, weight, scale)
    ctx.mark_non_differentiable(scale)
    ctx.set_materialize_grads(False)


def _differentiate(backward: Any, ctx: Any, d_stream: Tensor | None, dy: Tensor | None) -> tuple:
    """The gradients by the arguments of ``fused_norm``."""
    d_stream = None if ctx.update_dtype is None else d_stream
    if dy is None:
        dx, d_update, d_gate, d_weight = d_stream, d_stream, None, None
        if d_stream is not None:
            d_update = d_stream.to(ctx.update_dtype)
    else:
        stream, gate, *others = ctx.saved_tensors
        settings = ctx.groups, ctx.update_dtype, ctx.backend
        dx, d_update, d_gate, d_weight = backward(dy, d_stream, stream, gate, *others, *settings)
        d_gate = None if gate is None else d_gate
        if ctx.update_dtype in (None, dx.dtype):
            d_update = None if ctx.update_dtype is None else dx
    return dx, d_update, d_gate, d_weight, None, None, None, None


_operator.register_autograd(
    lambda ctx, d_stream, dy, _: _differentiate(_backward_operator, ctx, d_stream, dy), setup_context=_save
)


class _RMSNorm(FirstDerivative):
    """The operator without PyTorch's dispatcher."""

    operation = "rms_norm"
    compute, save = staticmethod(_forward), staticmethod(_save)

    @override
    @staticmethod
    def differentiate(ctx: Any, d_stream: Tensor | None, dy: Tensor | None, _: None) -> tuple:
        return _differentiate(_backward, ctx, d_stream, dy)
