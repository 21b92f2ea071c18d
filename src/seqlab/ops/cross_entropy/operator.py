"""The fused backends as one operator of PyTorch, with its gradient.

A fused backend is a file with two functions beside ``why_unavailable``:

    forward(logits, targets, ignore_index) -> losses, kept
    backward(d_losses, logits, targets, kept, ignore_index) -> d_logits

Symbols:

    N, V     rows, size of the vocabulary
    logits   (N, V)
    targets  (N,) int64
    losses   (N,) float32
    kept     (2, N) float32, of each row's logits x the maximum m and the logarithm of the sum of exp(x - m). Their sum
             alone, rounded to float32, would lose digits of the gradient where logits are large.
"""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from seqlab.ops import backends
from seqlab.ops.derivatives import FirstDerivative

FUSED = ("triton",)
PACKAGE = "seqlab.ops.cross_entropy"


def fused_losses(logits: Tensor, targets: Tensor, ignore_index: int, backend: str) -> Tensor:
    """The losses (N,); arguments as in ``cross_entropy``, in rows.

    A registered operator costs some 60 us more a call than a plain autograd function. Only a compiler needs it.
    """
    call = _operator if torch.compiler.is_compiling() else _CrossEntropy.apply
    return call(logits, targets, ignore_index, backend)[0]


def _forward(logits: Tensor, targets: Tensor, ignore_index: int, backend: str) -> tuple[Tensor, Tensor]:
    return backends.load(PACKAGE, backend).forward(logits, targets, ignore_index)


def _backward(
    d_losses: Tensor, logits: Tensor, targets: Tensor, kept: Tensor, ignore_index: int, backend: str
) -> Tensor:
    """The gradient by the logits, (N, V) in their dtype, one row after another."""
    return backends.load(PACKAGE, backend).backward(d_losses, logits, targets, kept, ignore_index)


_operator = torch.library.custom_op("seqlab::cross_entropy", _forward, mutates_args=())
_backward_operator = torch.library.custom_op("seqlab::cross_entropy_backward", _backward, mutates_args=())


@_operator.register_fake
def _(logits, targets, ignore_index, backend):
    rows = logits.shape[0]
    return logits.new_empty(rows, dtype=torch.float32), logits.new_empty(2, rows, dtype=torch.float32)


@_backward_operator.register_fake
def _(d_losses, logits, targets, kept, ignore_index, backend):
    return logits.new_empty(logits.shape)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    logits, targets, ctx.ignore_index, ctx.backend = inputs
    ctx.save_for_backward(logits, targets, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(backward: Any, ctx: Any, d_losses: Tensor | None) -> tuple:
    """The gradients by the arguments of ``fused_losses``."""
    if d_losses is None:
        return (None,) * 4
    return backward(d_losses, *ctx.saved_tensors, ctx.ignore_index, ctx.backend), None, None, None


_operator.register_autograd(lambda ctx, d, _: _differentiate(_backward_operator, ctx, d), setup_context=_save)


class _CrossEntropy(FirstDerivative):
    """The operator without PyTorch's dispatcher."""

    operation = "cross_entropy"
    compute, save = staticmethod(_forward), staticmethod(_save)

    @override
    @staticmethod
    def differentiate(ctx: Any, d_losses: Tensor | None, _: None) -> tuple:
        return _differentiate(_backward, ctx, d_losses)
