"""A Mamba block in training on a GPU, all that comes after its first projection, as one operation.

    x, z = xz                                       halves of what the first projection gives
    u = silu(conv(x))                               ``causal_conv1d``
    dt, B, C = W_x u                                what makes the scan selective
    y = scan(u, W_dt dt, A, B, C, D, z)             ``selective_scan``, gated
    out = W_out y

(Gu and Dao 2023, arXiv:2312.00752, figure 3.) Called one after the other, the parts keep u, delta = W_dt dt and y of
every layer for the backward pass, join the gradients of x and z, and add up the two of u. Here u and delta are computed
again, y by the scan's own backward pass, and every gradient is written where it belongs: for a short kernel and a thin
product more, fewer bytes are kept and moved.

Symbols: Bt batch, L length, M model width, E inner width, N state size, K width of the convolution, R rank of delta.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from seqlab.ops.causal_conv1d import resolve_backend as conv_backend
from seqlab.ops.context import ContextGroup
from seqlab.ops.contract import check_dtypes, check_given, check_shapes, checked
from seqlab.ops.decoding import Block
from seqlab.ops.derivatives import needs_gradient, other_derivatives
from seqlab.ops.mamba_inner.operator import MambaInner
from seqlab.ops.selective_scan import resolve_backend as scan_backend

__all__ = ["BACKENDS", "can_run", "mamba_inner"]

BACKENDS = ()
"""None of its own: it runs where those of its parts do."""

SHAPES = {
    "conv_weight": ("d_inner", "d_conv"),
    "conv_bias": ("d_inner",),
    "dt_weight": ("d_inner", "dt_rank"),
    "dt_bias": ("d_inner",),
    "A_log": ("d_inner", "d_state"),
    "D": ("d_inner",),
    "out_weight": ("d_model", "d_inner"),
}
JOINED_SHAPES = {"xz": ("batch", "length", "2 d_inner"), "x_weight": ("dt_rank + 2 d_state", "d_inner")}


def can_run(xz: Tensor, block: Block, backend: str = "auto") -> bool:
    """Whether ``mamba_inner`` is to take these; where not, the parts are called one after the other.

    It is for a backward pass on a GPU: in eager mode, with the kernels of convolution and scan, and with products in
    xz's dtype, under autocast or without.

    Args:
        xz: (Bt, L, 2 E).
        block: the parameters.
        backend: the scan's, as ``selective_scan`` takes it.

    Raises:
        ValueError: a shape, dtype or device does not fit, or the scan's backend does not exist or cannot run.
    """
    if not trains_by_products(xz, block, block.x_weight):
        return False
    return checked(_check, {"xz": xz, **block._asdict()}, backend) == "triton"


def trains_by_products(projected: Tensor, parameters: Iterable[Tensor | None], weight: Tensor) -> bool:
    """Whether a backward pass on a GPU may follow, in eager mode, and products are in the dtype of ``projected``.

    Under autocast in its dtype, else in that of ``weight``. Tensors are of any shapes.
    """
    if torch.compiler.is_compiling() or not projected.is_cuda or other_derivatives():
        return False
    products = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else weight.dtype
    return projected.dtype == products and needs_gradient(projected, *parameters)


def _check(tensors: dict[str, Tensor | None], backend: str) -> str:
    """The backend of both parts, or of one that is not "triton".

    Raises:
        ValueError: the arguments of ``can_run`` do not fit.
    """
    check_given(tensors, "xz", "conv_weight", "x_weight", "dt_weight", "A_log", "out_weight")
    sizes: dict[str, int] = {}
    check_shapes(SHAPES, tensors, sizes)
    sizes["2 d_inner"] = 2 * sizes["d_inner"]
    sizes["dt_rank + 2 d_state"] = sizes["dt_rank"] + 2 * sizes["d_state"]
    check_shapes(JOINED_SHAPES, tensors, sizes)
    check_dtypes(tensors)
    where = tensors["xz"].device, tensors["xz"].dtype
    chosen = scan_backend(backend, *where)
    return conv_backend("auto", *where) if chosen == "triton" else chosen


def mamba_inner(
    xz: Tensor, block: Block, context: ContextGroup | None = None, states: tuple[Tensor, Tensor] | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """The block's output (Bt, L, M) in the dtype of xz (Bt, L, 2 E), for arguments that ``can_run``.

    With ``states`` also the scan's state (Bt, E, N) after the last position, in float32, without a gradient.

    It is differentiable once. The output is what the parts give, bit by bit, convolution and scan by "triton" and the
    products in xz's dtype; gradients differ from theirs by rounding. They are bitwise reproducible under
    ``torch.use_deterministic_algorithms``. The product W_dt dt is made again in the backward pass, and
    ``torch.utils.flop_counter`` counts it again.

    Args:
        xz: the inputs of the convolution and the gates, float32, bfloat16 or float16.
        block: the parameters, each in a dtype of its own; both biases and D may be None.
        context: the processes that share these sequences, as ``selective_scan`` takes it.
        states: the convolution's inputs (Bt, K - 1, E) and the scan's state before the first position, which get no
            gradient; zeros if None. Not with ``context``.
    """
    before, state = (None, None) if states is None else (states[0].to(xz.dtype), states[1])
    x_weight, dt_weight, out_weight = (w.to(xz.dtype) for w in (block.x_weight, block.dt_weight, block.out_weight))
    given = xz, block.conv_weight, block.conv_bias, x_weight, dt_weight, block.dt_bias, block.A_log, block.D, out_weight
    deterministic = torch.are_deterministic_algorithms_enabled()
    y, final = MambaInner.apply(*given, context, before, state, deterministic, "triton")
    return y if states is None else (y, final)
