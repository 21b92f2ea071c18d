"""The fused backends as one operator of PyTorch, with its gradient.

A fused backend is a file with two functions beside ``why_unavailable``:

    forward(x, weight, bias, activation, initial_state, seq_idx) -> y
    backward(dy, x, weight, bias, activation, initial_state, seq_idx) -> Gradients

Both sum in one fixed order, so that results are bitwise reproducible. Symbols as in ``reference.py``.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from seqlab.ops import backends
from seqlab.ops.causal_conv1d.reference import final_state, final_state_gradients
from seqlab.ops.derivatives import FirstDerivative, needs_gradient, other_derivatives

FUSED = ("cpu", "triton")
PACKAGE = "seqlab.ops.causal_conv1d"


class Gradients(NamedTuple):
    """The gradient of each tensor, in its shape and dtype; None for an argument that was not given."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    initial_state: Tensor | None


def fused_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    return_final_state: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """y (Bt, L, D) and the final state, (Bt, K - 1, D) or without ``return_final_state`` (0,).

    Arguments as in ``causal_conv1d``, the initial state in x's dtype. The registered operator, which costs some 60 us
    more per call than an autograd function, is used under a compiler alone; the autograd function, which costs some
    10 us, only where a derivative may follow.
    """
    if torch.compiler.is_compiling():
        call = _conv_operator
    else:
        derived = needs_gradient(x, weight, bias, initial_state) or other_derivatives()
        call = _Conv.apply if derived else _forward
    return call(x, weight, bias, activation, initial_state, seq_idx, return_final_state, backend)


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    return_final_state: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    y = backends.load(PACKAGE, backend).forward(x, weight, bias, activation, initial_state, seq_idx)
    if not return_final_state:
        return y, x.new_empty(0)
    before = initial_state
    if before is None:
        before = x.new_zeros(x.shape[0], weight.shape[1] - 1, x.shape[2])
    return y, final_state(x, before, seq_idx)


def _backward(
    dy: Tensor,
    d_final: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    backend: str,
) -> Gradients:
    """The gradients of the arguments, for those of y and, unless None, of the final state."""
    fused = backends.load(PACKAGE, backend)
    gradients = fused.backward(dy, x, weight, bias, activation, initial_state, seq_idx)
    if d_final is not None:
        by_state, by_x = final_state_gradients(d_final, x.shape[1], seq_idx)
        gradients.x[:, x.shape[1] - by_x.shape[1] :] += by_x
        if initial_state is not None:
            gradients.initial_state[:, by_x.shape[1] :] += by_state
    return gradients


_conv_operator = torch.library.custom_op("seqlab::causal_conv1d", _forward, mutates_args=())


@_conv_operator.register_fake
def _(x, weight, bias, activation, initial_state, seq_idx, return_final_state, backend):
    state_shape = (x.shape[0], weight.shape[1] - 1, x.shape[2]) if return_final_state else (0,)
    return x.new_empty(x.shape), x.new_empty(state_shape)


@torch.library.custom_op("seqlab::causal_conv1d_backward", mutates_args=())
def _backward_operator(
    dy: Tensor,
    d_final: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``_backward`` with empty tensors for None, which an operator cannot return."""
    gradients = _backward(dy, d_final, x, weight, bias, activation, initial_state, seq_idx, backend)
    return tuple(x.new_empty(0) if gradient is None else gradient for gradient in gradients)


@_backward_operator.register_fake
def _(dy, d_final, x, weight, bias, activation, initial_state, seq_idx, backend):
    return tuple(
        x.new_empty(0) if like is None else like.new_empty(like.shape) for like in (x, weight, bias, initial_state)
    )


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, ctx.activation, initial_state, seq_idx, ctx.return_final_state, ctx.backend = inputs
    ctx.save_for_backward(x, weight, bias, initial_state, seq_idx)


def _differentiate(backward: Any, ctx: Any, dy: Tensor, d_final: Tensor) -> tuple:
    """The gradients of the arguments of ``fused_conv``."""
    x, weight, bias, initial_state, seq_idx = ctx.saved_tensors
    d_final = d_final if ctx.return_final_state else None
    dx, d_weight, d_bias, d_state = backward(
        dy, d_final, x, weight, bias, ctx.activation, initial_state, seq_idx, ctx.backend
    )
    d_bias = None if bias is None else d_bias
    d_state = None if initial_state is None else d_state
    return dx, d_weight, d_bias, None, d_state, None, None, None


_conv_operator.register_autograd(
    lambda ctx, *gradients: _differentiate(_backward_operator, ctx, *gradients), setup_context=_save
)


class _Conv(FirstDerivative):
    """The operator without PyTorch's dispatcher."""

    operation = "causal_conv1d"
    compute, save = staticmethod(_forward), staticmethod(_save)

    @override
    @staticmethod
    def differentiate(ctx: Any, dy: Tensor, d_final: Tensor) -> tuple:
        return _differentiate(_backward, ctx, dy, d_final)
