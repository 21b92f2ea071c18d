"""The fused backends as one operator of PyTorch, with its gradient.

A backend's functions are listed in ``interface.py``. The forward pass saves its arguments and nothing else, so memory
grows with the inputs alone. A second derivative raises an error.
"""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from seqlab.ops import backends
from seqlab.ops.contract import accumulation_dtype
from seqlab.ops.derivatives import FirstDerivative, needs_gradient, other_derivatives, owned
from seqlab.ops.ssd.interface import Gradients, Inputs

FUSED = ("triton", "parallel")
PACKAGE = "seqlab.ops.ssd"


def fused_ssd(inputs: Inputs, initial_state: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
    """y (Bt, L, H, P) and the final state (Bt, H, P, N); arguments as in ``ssd``.

    The registered operator, which costs some 60 us more per call than an autograd function, is used under a compiler
    and on the meta device alone. There it computes shapes only, so that a FLOP counter does not see a backend's matrix
    products. The autograd function, which costs some 10 us, is used only where a derivative may follow.
    """
    if torch.compiler.is_compiling() or inputs.x.is_meta:
        call = _ssd_operator
    else:
        derived = needs_gradient(*inputs[:7], initial_state) or other_derivatives()
        call = _SSD.apply if derived else _forward
    return call(*inputs, initial_state, backend)


def _forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    seq_idx: Tensor | None,
    dt_softplus: bool,
    initial_state: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """y and the final state, without autocast, which would round the factors of matrix products."""
    inputs = Inputs(x, dt, A, B, C, D, dt_bias, seq_idx, dt_softplus)
    with torch.autocast(x.device.type, enabled=False):
        return backends.load(PACKAGE, backend).forward(inputs, initial_state)


def _backward(
    dy: Tensor | None,
    d_final_state: Tensor | None,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_state: Tensor | None,
    dt_softplus: bool,
    backend: str,
) -> Gradients:
    """The gradients of the arguments, for those of y and of the final state, of which either may be None."""
    inputs = Inputs(x, dt, A, B, C, D, dt_bias, seq_idx, dt_softplus)
    dy = torch.zeros_like(x) if dy is None else dy
    with torch.autocast(x.device.type, enabled=False):
        return backends.load(PACKAGE, backend).backward(inputs, initial_state, dy, d_final_state)


_ssd_operator = torch.library.custom_op("seqlab::ssd", _forward, mutates_args=())


def _new_state(x: Tensor, B: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[2], x.shape[3], B.shape[3]), dtype=accumulation_dtype(x.dtype))


@_ssd_operator.register_fake
def _(x, dt, A, B, C, D, dt_bias, seq_idx, dt_softplus, initial_state, backend):
    return x.new_empty(x.shape), _new_state(x, B)


@torch.library.custom_op("seqlab::ssd_backward", mutates_args=())
def _backward_operator(
    dy: Tensor | None,
    d_final_state: Tensor | None,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_state: Tensor | None,
    dt_softplus: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``_backward`` as a registered operator may return it: empty tensors for None, none sharing memory."""
    operands = (x, dt, A, B, C, D, dt_bias, seq_idx, initial_state, dt_softplus, backend)
    gradients = _backward(dy, d_final_state, *operands)
    return tuple(x.new_empty(0) if gradient is None else owned(gradient) for gradient in gradients)


@_backward_operator.register_fake
def _(dy, d_final_state, x, dt, A, B, C, D, dt_bias, seq_idx, initial_state, dt_softplus, backend):
    gradients = (x.new_empty(0) if t is None else t.new_empty(t.shape) for t in (x, dt, A, B, C, D, dt_bias))
    return *gradients, _new_state(x, B)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.dt_softplus, initial_state, ctx.backend = inputs
    ctx.has_initial_state = initial_state is not None
    ctx.save_for_backward(*tensors, initial_state)
    ctx.set_materialize_grads(False)  # no gradient of the final state is less work than a zero one


def _differentiate(backward: Any, ctx: Any, dy: Tensor | None, d_final_state: Tensor | None) -> tuple:
    """The gradients of the arguments of ``_forward``."""
    tensors = ctx.saved_tensors
    found = backward(dy, d_final_state, *tensors, ctx.dt_softplus, ctx.backend)
    *gradients, d_initial_state = (
        None if given is None else gradient for given, gradient in zip((*tensors[:7], True), found, strict=True)
    )
    d_initial_state = d_initial_state if ctx.has_initial_state else None
    return *gradients, None, None, d_initial_state, None


_ssd_operator.register_autograd(
    lambda ctx, dy, d_final_state: _differentiate(_backward_operator, ctx, dy, d_final_state), setup_context=_save
)


class _SSD(FirstDerivative):
    """The operator without PyTorch's dispatcher."""

    operation = "ssd"
    compute, save = staticmethod(_forward), staticmethod(_save)

    @override
    @staticmethod
    def differentiate(ctx: Any, dy: Tensor | None, d_final_state: Tensor | None) -> tuple:
        return _differentiate(_backward, ctx, dy, d_final_state)
