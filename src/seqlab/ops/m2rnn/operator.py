"""The fast backends as one operator of PyTorch, with its gradient.

The forward pass saves its arguments and, of the states, one in ``SPAN``. A second derivative raises an error.
"""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from seqlab.ops import backends
from seqlab.ops.contract import accumulation_dtype
from seqlab.ops.derivatives import FirstDerivative, needs_gradient, other_derivatives, owned
from seqlab.ops.m2rnn.interface import SPAN, Gradients, Inputs

FUSED = ("triton", "spans")
PACKAGE = "seqlab.ops.m2rnn"


def fused_m2rnn(
    inputs: Inputs, initial_state: Tensor | None, gradient_clip: float | None, backend: str
) -> tuple[Tensor, Tensor]:
    """y (B, L, N, V) and the final state (B, N, K, V); arguments as in ``m2rnn``."""
    if inputs.q.is_meta:
        return _shapes_alone(inputs, initial_state)
    keep = needs_gradient(*inputs[:-1], initial_state)
    if torch.compiler.is_compiling():
        call = _m2rnn_operator
    else:
        call = _M2RNN.apply if keep or other_derivatives() else _forward
    y, final_state, _ = call(*inputs, initial_state, gradient_clip, keep, backend)
    return y, final_state


def _shapes_alone(inputs: Inputs, initial_state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The outputs on the meta device, which depend on every argument; a FLOP counter sees no matrix products."""
    q, k, v, *_ = inputs
    given = [tensor for tensor in (*inputs[:-1], initial_state) if tensor is not None]
    every = sum(tensor.sum() for tensor in given).to(accumulation_dtype(q.dtype))
    return (v * every).to(q.dtype), v[:, -1, :, None] * k[:, -1, None, :, None] * every  # (B, N, K, V)


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    f: Tensor,
    W: Tensor,
    seq_idx: Tensor | None,
    initial_state: Tensor | None,
    gradient_clip: float | None,
    keep: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the final state, and the states that the backward pass begins spans with: none unless ``keep``."""
    with torch.autocast(q.device.type, enabled=False):
        return backends.load(PACKAGE, backend).forward(Inputs(q, k, v, f, W, seq_idx), initial_state, keep)


def _backward(
    dy: Tensor | None,
    d_final_state: Tensor | None,
    starts: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    f: Tensor,
    W: Tensor,
    seq_idx: Tensor | None,
    gradient_clip: float | None,
    backend: str,
) -> Gradients:
    """The gradients of the arguments, for those of y and of the final state, of which either may be None."""
    dy = torch.zeros_like(v, dtype=q.dtype) if dy is None else dy
    with torch.autocast(q.device.type, enabled=False):
        inputs = Inputs(q, k, v, f, W, seq_idx)
        return backends.load(PACKAGE, backend).backward(inputs, starts, dy, d_final_state, gradient_clip)


_m2rnn_operator = torch.library.custom_op("seqlab::m2rnn", _forward, mutates_args=())


@_m2rnn_operator.register_fake
def _(q, k, v, f, W, seq_idx, initial_state, gradient_clip, keep, backend):
    dtype, (n_heads, d_value) = accumulation_dtype(q.dtype), v.shape[2:]
    state = (n_heads, q.shape[0], q.shape[2], d_value)
    starts = q.new_empty(((q.shape[1] + SPAN - 1) // SPAN, *state) if keep else (0,), dtype=dtype)
    return q.new_empty(v.shape), q.new_empty((state[1], n_heads, *state[2:]), dtype=dtype), starts


@torch.library.custom_op("seqlab::m2rnn_backward", mutates_args=())
def _backward_operator(
    dy: Tensor | None,
    d_final_state: Tensor | None,
    starts: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    f: Tensor,
    W: Tensor,
    seq_idx: Tensor | None,
    gradient_clip: float | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``_backward`` as a registered operator may return it: none sharing memory."""
    gradients = _backward(dy, d_final_state, starts, q, k, v, f, W, seq_idx, gradient_clip, backend)
    return tuple(owned(gradient) for gradient in gradients)


@_backward_operator.register_fake
def _(dy, d_final_state, starts, q, k, v, f, W, seq_idx, gradient_clip, backend):
    gradients = (tensor.new_empty(tensor.shape) for tensor in (q, k, v, f, W))
    return *gradients, starts.new_empty((q.shape[0], v.shape[2], q.shape[2], v.shape[3]))


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, initial_state, ctx.gradient_clip, _, ctx.backend = inputs
    ctx.has_state = initial_state is not None
    ctx.save_for_backward(output[2], *tensors)
    ctx.set_materialize_grads(False)  # no gradient of the final state is less work than a zero one


def _differentiate(backward: Any, ctx: Any, dy: Tensor | None, d_final_state: Tensor | None, _: Any) -> tuple:
    """The gradients of the arguments of ``_forward``."""
    *found, d_initial = backward(dy, d_final_state, *ctx.saved_tensors, ctx.gradient_clip, ctx.backend)
    return *found, None, d_initial if ctx.has_state else None, None, None, None


_m2rnn_operator.register_autograd(
    lambda ctx, *gradients: _differentiate(_backward_operator, ctx, *gradients), setup_context=_save
)


class _M2RNN(FirstDerivative):
    operation = "m2rnn"
    compute, save = staticmethod(_forward), staticmethod(_save)

    @override
    @staticmethod
    def differentiate(ctx: Any, *gradients: Tensor | None) -> tuple:
        return _differentiate(_backward, ctx, *gradients)
