"""The chunked backends with their gradient, for PyTorch's autograd.

A backend is a file with one function beside ``why_unavailable``:

    forward(x, weight, bias, log_prior, targets, scale, ignore_index, wanted) -> loss, Gradients

``wanted`` says of the first four whether their gradients are. Symbols:

    N, K      positions, softmaxes of each (1 without ``log_prior``)
    D, V      width of a row, size of the vocabulary
    x         (N K, D), the K rows of a position one after another, in the dtype of the products
    weight    (V, D)
    bias      (V,) or None
    log_prior (N, K) float32 or float64, or None
    targets   (N,) int64
    scale     (N,) float32 or float64
"""

from typing import Any, NamedTuple

from torch import Tensor
from typing_extensions import override

from seqlab.ops import backends
from seqlab.ops.derivatives import FirstDerivative, needs_gradient, other_derivatives

FUSED = ("chunked",)
PACKAGE = "seqlab.ops.linear_cross_entropy"


class Gradients(NamedTuple):
    """The gradients by x, weight, bias and log_prior but for a factor, each None where it is not wanted."""

    x: Tensor | None  # (N K, D) in x's dtype
    weight: Tensor | None  # (V, D) in the dtype of sums
    bias: Tensor | None  # (V,) likewise
    log_prior: Tensor | None  # (N, K) likewise
    factor: Tensor | None  # a scalar, by which all are to be multiplied; None is 1


def for_each(targets: Tensor, log_prior: Tensor | None) -> Tensor:
    """The targets (N,) of all rows: (N K,)."""
    return targets if log_prior is None else targets[:, None].expand(log_prior.shape).flatten()


def log_joint(losses: Tensor, log_prior: Tensor) -> Tensor:
    """log(pi_k p_k(target)), (N, K), from the losses (N K,) of the softmaxes."""
    return log_prior - losses.view(log_prior.shape)


def fused_loss(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    log_prior: Tensor | None,
    targets: Tensor,
    scale: Tensor,
    ignore_index: int,
    backend: str,
) -> Tensor:
    """The loss, a scalar; arguments as in ``linear_cross_entropy``, in rows. Without autograd no gradient is computed.

    It is no registered operator: a compiler has "reference".
    """
    arguments = x, weight, bias, log_prior, targets, scale, ignore_index
    if needs_gradient(x, weight, bias, log_prior) or other_derivatives():
        return _LinearCrossEntropy.apply(*arguments, backend)
    return backends.load(PACKAGE, backend).forward(*arguments, (False,) * 4)[0]


class _LinearCrossEntropy(FirstDerivative):
    """The loss, with the gradients that its forward pass has computed."""

    operation = "linear_cross_entropy"

    @override
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *arguments, ctx.backend = inputs
        wanted = tuple(ctx.needs_input_grad[:4])
        loss, ctx.gradients = backends.load(PACKAGE, ctx.backend).forward(*arguments, wanted)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in arguments[:4]]
        ctx.set_materialize_grads(False)
        x, weight = arguments[:2]
        ctx.save_for_backward(weight if weight.requires_grad else x)  # so that a second derivative is refused
        return loss

    @override
    @staticmethod
    def differentiate(ctx: Any, d_loss: Tensor | None) -> tuple:
        if d_loss is None:
            return (None,) * 8
        if ctx.gradients is None:
            raise RuntimeError(
                f"linear_cross_entropy backend={ctx.backend!r} goes through the backward pass once, since it keeps no "
                'second copy of its gradients: use backend="reference", or compute the loss again'
            )
        (*gradients, factor), ctx.gradients = ctx.gradients, None
        by = d_loss if factor is None else d_loss * factor
        found = [_scaled(g, by, dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True)]
        return *found, None, None, None, None


def _scaled(gradient: Tensor | None, by: Tensor, dtype: Any) -> Tensor | None:
    """The gradient times a scalar, in place, in ``dtype``.

    The scalar gets an axis, since PyTorch would round one without to the gradient's dtype before it multiplies.
    """
    return None if gradient is None else gradient.mul_(by.view((1,) * gradient.ndim)).to(dtype)
