"""Depthwise causal convolution over positions, channels last, with the few inputs before the window as its state.

    y_t = bias + sum over k of weight_k x_{t-K+1+k}      k = 0 .. K - 1, weight_{K-1} meets the current input

It stands before the selective scan in Mamba (Gu and Dao 2023, arXiv:2312.00752, section 3.4). ``causal_conv1d`` is
the whole sequence, ``causal_conv1d_update`` one position of it for generation.
"""

from typing import Literal

import torch
from torch import Tensor

from seqlab.ops import backends
from seqlab.ops.causal_conv1d.contract import check_arguments
from seqlab.ops.causal_conv1d.step import causal_conv1d_update

__all__ = ["BACKENDS", "causal_conv1d", "causal_conv1d_update", "resolve_backend"]

BACKENDS = ("torch_conv", "reference")
"""Fastest first; each is the file of that name in this folder."""


def resolve_backend(backend: str, device: torch.device | str, dtype: torch.dtype) -> str:
    """The backend that ``causal_conv1d(..., backend=backend)`` uses for x on ``device`` in ``dtype``.

    A pure function: call it to record what "auto" chose. Raises ValueError as ``causal_conv1d`` does.
    """
    return backends.resolve(__name__, BACKENDS, backend, device, dtype)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Literal["silu"] | None = None,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolve each channel with its own filter over the current and the K - 1 earlier positions.

    Sums are in float32, or in float64 if the arguments are float64. float32, bfloat16 and float16 arguments may be
    mixed.

    Args:
        x: (batch, length, d_inner) the input, at least one position long.
        weight: (d_inner, d_conv) a filter of K = d_conv taps for each channel, the last for the current position.
        bias: (d_inner,).
        activation: "silu" to pass the sum through silu.
        initial_state: (batch, d_conv - 1, d_inner) the inputs before x, the latest last; zeros if None.
        return_final_state: whether to return the last d_conv - 1 inputs too, those of ``initial_state`` among them
            where x is shorter.
        backend: "auto" for the fastest that can run, or a name in ``BACKENDS``.

    Returns:
        y (batch, length, d_inner) in x's dtype, or (y, final state), the state in x's dtype too.

    Raises:
        ValueError: a shape, dtype, device or activation that does not fit, or a backend that does not exist or
            cannot run.
    """
    tensors = {"x": x, "weight": weight, "bias": bias, "initial_state": initial_state}
    check_arguments(("batch", "length", "d_inner"), tensors, activation)
    batch, length, d_inner = x.shape
    context = weight.shape[1] - 1
    if initial_state is None:
        initial_state = x.new_zeros(batch, context, d_inner)
    conv = backends.load(__name__, resolve_backend(backend, x.device, x.dtype)).conv
    y = conv(x, weight, bias, activation, initial_state.to(x.dtype))
    if not return_final_state:
        return y
    kept = max(context - length, 0)  # inputs of the initial state still in reach
    old, new = initial_state[:, context - kept :], x[:, length - (context - kept) :]
    return y, torch.cat([old.to(x.dtype), new], dim=1)  # (batch, d_conv - 1, d_inner)
