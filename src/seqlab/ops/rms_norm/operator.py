"""The fused backends as one operator of PyTorch, with its gradient.

A fused backend is a file with two functions beside ``why_unavailable``:

    forward(x, weight, eps, out_dtype) -> y, scale
    backward(dy, x, weight, scale) -> dx, d_weight

Symbols:

    N, D    rows, numbers of a row
    x       (..., D)
    weight  (D,)
    y       (..., D) in out_dtype
    scale   (N,) float32, what each row is multiplied by: 1 / sqrt(mean of x^2 + eps)

Gradients are in the dtype of what they belong to. Saved are x, weight and scale.
"""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from seqlab.ops import backends
from seqlab.ops.derivatives import FirstDerivative, needs_gradient, other_derivatives

FUSED = ("triton",)
PACKAGE = "seqlab.ops.rms_norm"


def fused_norm(x: Tensor, weight: Tensor, eps: float, out_dtype: torch.dtype, backend: str) -> Tensor:
    """y (..., D); arguments as in ``rms_norm``.

    The registered operator, which costs some 60 us more per call than an autograd function, is used under a compiler
    alone; the autograd function, which costs some 10 us, only where a derivative may follow.
    """
    if torch.compiler.is_compiling():
        call = _operator
    else:
        call = _RMSNorm.apply if needs_gradient(x, weight) or other_derivatives() else _forward
    return call(x, weight, eps, out_dtype, backend)[0]


def _forward(x: Tensor, weight: Tensor, eps: float, out_dtype: torch.dtype, backend: str) -> tuple[Tensor, Tensor]:
    return backends.load(PACKAGE, backend).forward(x, weight, eps, out_dtype)


def _backward(dy: Tensor, x: Tensor, weight: Tensor, scale: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """The gradients by x and weight, both contiguous."""
    return backends.load(PACKAGE, backend).backward(dy, x, weight, scale)


_operator = torch.library.custom_op("seqlab::rms_norm", _forward, mutates_args=())
_backward_operator = torch.library.custom_op("seqlab::rms_norm_backward", _backward, mutates_args=())


@_operator.register_fake
def _(x, weight, eps, out_dtype, backend):
    rows = x.numel() // x.shape[-1]
    return x.new_empty(x.shape, dtype=out_dtype), x.new_empty(rows, dtype=torch.float32)


@_backward_operator.register_fake
def _(dy, x, weight, scale, backend):
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, _, ctx.backend = inputs
    ctx.save_for_backward(x, weight, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(backward: Any, ctx: Any, dy: Tensor | None) -> tuple:
    """The gradients by the arguments of ``fused_norm``."""
    if dy is None:
        return (None,) * 5
    return *backward(dy, *ctx.saved_tensors, ctx.backend), None, None, None


_operator.register_autograd(lambda ctx, dy, _: _differentiate(_backward_operator, ctx, dy), setup_context=_save)


class _RMSNorm(FirstDerivative):
    """The operator without PyTorch's dispatcher."""

    operation = "rms_norm"

    @override
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = _forward(*inputs)
        _save(ctx, inputs, output)
        return output

    @override
    @staticmethod
    def differentiate(ctx: Any, dy: Tensor | None, _: None) -> tuple:
        return _differentiate(_backward, ctx, dy)
