"""Operators with a hand-written first derivative, which refuse any further one with an error."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from typing_extensions import override

REMEDY = 'use backend="reference", which PyTorch differentiates'


def owned(tensor: Tensor) -> Tensor:
    """The tensor, of any shape, copied if it shares its memory: outputs of a registered operator may not."""
    alone = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if alone else tensor.clone(memory_format=torch.contiguous_format)


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether a backward pass may ask for the gradient of one of these tensors, of any shapes; None is passed over."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def other_derivatives() -> bool:
    """Whether a derivative is computed otherwise than by a backward pass: by ``torch.func`` or in forward mode."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


class FirstDerivative(torch.autograd.Function):
    """An autograd function whose gradient is written out; second derivatives, forward mode and ``torch.func`` raise.

    Subclasses define ``operation``, its name; ``compute``, its outputs; ``save``, which keeps what the gradient needs,
    and the last argument as ``ctx.backend``; and ``differentiate`` in place of ``backward``. With ``create_graph`` the
    gradients are part of the graph, but cannot be differentiated again.

    Raises:
        NotImplementedError: names the operation, its backend and the one that PyTorch differentiates by itself.
    """

    operation: str
    compute: Callable[..., Any]
    save: Callable[[Any, tuple, Any], None]

    @override
    @classmethod
    def forward(cls, ctx: Any, *inputs: Any) -> Any:
        output = cls.compute(*inputs)
        cls.save(ctx, inputs, output)
        return output

    @staticmethod
    def differentiate(ctx: Any, *gradients: Tensor | None) -> tuple:
        """The gradients of ``forward``'s arguments, in their shapes, from those of its outputs; None where none is."""
        raise NotImplementedError

    @classmethod
    def apply(cls, *inputs: Any) -> Any:
        """Call the function on ``forward``'s arguments.

        Raises:
            NotImplementedError: a transform of ``torch.func`` is active.
        """
        if torch._C._are_functorch_transforms_active():
            raise NotImplementedError(
                f"{cls.operation} backend={inputs[-1]!r} does not go through torch.func: {REMEDY}"
            )
        return super().apply(*inputs)

    @override
    @classmethod
    def backward(cls, ctx: Any, *gradients: Tensor | None) -> tuple:
        if not torch.is_grad_enabled():  # no create_graph
            return cls.differentiate(ctx, *gradients)
        with torch.no_grad():
            found = cls.differentiate(ctx, *gradients)
        wanted = [tensor for tensor in found if tensor is not None]
        sources = [t for t in (*gradients, *ctx.saved_tensors) if t is not None and t.requires_grad]
        attached = iter(_Final.apply(f"{cls.operation} backend={ctx.backend!r}", len(wanted), *wanted, *sources))
        return tuple(None if tensor is None else next(attached) for tensor in found)

    @override
    @classmethod
    def jvp(cls, ctx: Any, *_: Any) -> None:
        raise NotImplementedError(f"{cls.operation} backend={ctx.backend!r} has no forward-mode derivative: {REMEDY}")


class _Final(torch.autograd.Function):
    """The identity on gradients; its own backward raises."""

    @override
    @staticmethod
    def forward(ctx: Any, name: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.name = name
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *_: Any) -> None:
        raise NotImplementedError(f"{ctx.name} has no second derivative: {REMEDY}")
