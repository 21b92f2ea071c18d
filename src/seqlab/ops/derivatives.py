"""What a fused operator answers where more is asked of it than the first derivative that it has written out."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

REMEDY = 'use backend="reference", which PyTorch differentiates'


class FirstDerivative(torch.autograd.Function):
    """A function whose gradient is written out: a second one, forward mode and ``torch.func`` are refused in words.

    Subclasses have ``operation``, a ``forward`` that keeps its last argument as ``ctx.backend``, and ``differentiate``
    in place of ``backward``. Under ``create_graph`` their gradients are part of the graph, where it ends.

    Raises:
        NotImplementedError: names the operation, its backend and the one that PyTorch differentiates by itself.
    """

    operation: str
    differentiate: Callable[..., tuple]

    @classmethod
    def apply(cls, *inputs: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            raise NotImplementedError(
                f"{cls.operation} backend={inputs[-1]!r} does not go through torch.func: {REMEDY}"
            )
        return super().apply(*inputs)

    @classmethod
    def backward(cls, ctx: Any, *gradients: Tensor | None) -> tuple:
        with torch.no_grad():
            found = cls.differentiate(ctx, *gradients)
        if not torch.is_grad_enabled():
            return found
        wanted = [tensor for tensor in found if tensor is not None]
        sources = [t for t in (*gradients, *ctx.saved_tensors) if t is not None and t.requires_grad]
        attached = iter(_Final.apply(f"{cls.operation} backend={ctx.backend!r}", len(wanted), *wanted, *sources))
        return tuple(None if tensor is None else next(attached) for tensor in found)

    @classmethod
    def jvp(cls, ctx: Any, *_: Any) -> None:
        raise NotImplementedError(f"{cls.operation} backend={ctx.backend!r} has no forward-mode derivative: {REMEDY}")


class _Final(torch.autograd.Function):
    """Gradients as they are; theirs is refused."""

    @staticmethod
    def forward(ctx: Any, name: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.name = name
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *_: Any) -> None:
        raise NotImplementedError(f"{ctx.name} has no second derivative: {REMEDY}")
