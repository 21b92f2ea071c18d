"""The mixture as one operator of PyTorch, with its gradient, composed of a backend's functions.

A backend has five functions over rows sorted by expert (``groups.py``): ``product`` and ``outer``, the grouped matrix
products, ``activate`` and ``activate_backward`` between the two maps (the latter may overwrite its first argument), and
``collect``, which sums a token's rows. The gates multiply the hidden units, so that collecting is a plain sum and its
gradient a plain copy. For the backward pass only the hidden units before the activation are saved. A second derivative
raises an error.

Symbols: T tokens, k experts of a token, M = T k rows, E experts, D model width, H hidden width.
"""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from seqlab.ops import backends
from seqlab.ops.derivatives import FirstDerivative
from seqlab.ops.routed_experts.groups import Groups, sort_by_expert

FUSED = ("triton", "grouped")
PACKAGE = "seqlab.ops.routed_experts"


def fused_experts(
    x: Tensor, in_weight: Tensor, out_weight: Tensor, experts: Tensor, gates: Tensor, backend: str
) -> Tensor:
    """y (T, D); arguments as in ``routed_experts``, x and the weights of one dtype.

    The registered operator, which costs some 60 us more per call than an autograd function, is used under a compiler
    and on the meta device alone.
    """
    call = _operator if torch.compiler.is_compiling() or x.is_meta else _Experts.apply
    return call(x, in_weight, out_weight, experts, gates, backend)[0]


def _forward(
    x: Tensor, in_weight: Tensor, out_weight: Tensor, experts: Tensor, gates: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y (T, D), then what the backward pass needs: the hidden units (M, 2 H) and the three parts of ``Groups``."""
    pieces = backends.load(PACKAGE, backend)
    groups = sort_by_expert(experts, len(in_weight))
    hidden = pieces.product(x, in_weight, groups, spread=True)  # (M, 2 H)
    outputs = pieces.product(pieces.activate(hidden, gates, groups), out_weight, groups)  # (M, D)
    return pieces.collect(outputs, groups), hidden, *groups


def _backward(
    dy: Tensor,
    x: Tensor,
    in_weight: Tensor,
    out_weight: Tensor,
    gates: Tensor,
    hidden: Tensor,
    order: Tensor,
    inverse: Tensor,
    ends: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, both weights and the gates."""
    pieces = backends.load(PACKAGE, backend)
    groups, dy = Groups(order, inverse, ends), dy.contiguous()
    d_active = pieces.product(dy, out_weight.mT, groups, spread=True)  # (M, H)
    d_hidden, active, d_gates = pieces.activate_backward(d_active, hidden, gates, groups)
    dx = pieces.collect(pieces.product(d_hidden, in_weight.mT, groups), groups)
    d_in_weight = pieces.outer(x, d_hidden, groups, spread="left")
    d_out_weight = pieces.outer(active, dy, groups, spread="right")
    return dx, d_in_weight, d_out_weight, d_gates


_operator = torch.library.custom_op("seqlab::routed_experts", _forward, mutates_args=())
_backward_operator = torch.library.custom_op("seqlab::routed_experts_backward", _backward, mutates_args=())


@_operator.register_fake
def _(x, in_weight, out_weight, experts, gates, backend):
    rows = experts.numel()
    return (
        x.new_empty(x.shape),
        x.new_empty(rows, in_weight.shape[2]),
        experts.new_empty(rows),
        experts.new_empty(experts.shape),
        experts.new_empty(len(in_weight), dtype=torch.int32),
    )


@_backward_operator.register_fake
def _(dy, x, in_weight, out_weight, gates, hidden, order, inverse, ends, backend):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (x, in_weight, out_weight, gates))


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    x, in_weight, out_weight, _, gates, ctx.backend = inputs
    ctx.save_for_backward(x, in_weight, out_weight, gates, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # else zeros as large as the hidden units for outputs without a gradient


def _differentiate(backward: Any, ctx: Any, dy: Tensor | None) -> tuple:
    """The gradients of the arguments of ``_forward``."""
    if dy is None:
        return (None,) * 6
    dx, d_in_weight, d_out_weight, d_gates = backward(dy, *ctx.saved_tensors, ctx.backend)
    return dx, d_in_weight, d_out_weight, None, d_gates, None


_operator.register_autograd(lambda ctx, dy, *_: _differentiate(_backward_operator, ctx, dy), setup_context=_save)


class _Experts(FirstDerivative):
    """The operator without PyTorch's dispatcher."""

    operation = "routed_experts"
    compute, save = staticmethod(_forward), staticmethod(_save)

    @override
    @staticmethod
    def differentiate(ctx: Any, dy: Tensor | None, *_: Any) -> tuple:
        return _differentiate(_backward, ctx, dy)
