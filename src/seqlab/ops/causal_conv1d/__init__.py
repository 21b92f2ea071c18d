"""Depthwise causal convolution over positions, channels last, with the few inputs before the window as its state.

    y_t = bias + sum over k of weight_k x_{t-K+1+k}      k = 0 .. K - 1, weight_{K-1} meets the current input

It precedes the selective scan in Mamba (Gu and Dao 2023, arXiv:2312.00752, section 3.4). ``causal_conv1d`` computes a
whole sequence, ``causal_conv1d_update`` one position of it for generation.
"""

from typing import Literal

import torch
from torch import Tensor

from seqlab.ops import backends
from seqlab.ops.causal_conv1d.contract import check_arguments
from seqlab.ops.causal_conv1d.operator import FUSED, fused_conv
from seqlab.ops.causal_conv1d.reference import final_state
from seqlab.ops.causal_conv1d.step import causal_conv1d_update
from seqlab.ops.contract import check_seq_idx, checked

__all__ = ["BACKENDS", "causal_conv1d", "causal_conv1d_update", "resolve_backend"]

BACKENDS = ("cpu", "triton", "torch_conv", "reference")
"""Fastest first; each is the file of that name in this folder."""


def resolve_backend(backend: str, device: torch.device | str, dtype: torch.dtype) -> str:
    """The backend that ``causal_conv1d(..., backend=backend)`` uses for x on ``device`` in ``dtype``.

    A pure function: call it to record what "auto" chose. Raises ValueError as ``causal_conv1d`` does.
    """
    return backends.resolve(__name__, BACKENDS, backend, device, dtype)


def _check(tensors: dict[str, Tensor | None], activation: str | None, backend: str) -> str:
    """The backend that runs.

    Raises:
        ValueError: an argument does not fit, or the backend does not exist or cannot run.
    """
    tensors = dict(tensors)
    x, seq_idx = tensors["x"], tensors.pop("seq_idx")
    check_arguments(("batch", "length", "d_inner"), tensors, activation)
    check_seq_idx(seq_idx, "x", x)
    return resolve_backend(backend, x.device, x.dtype)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Literal["silu"] | None = None,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    seq_idx: Tensor | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolve each channel with its own filter over the current and the K - 1 earlier positions.

    Sums are in float32, or in float64 if the arguments are float64. float32, bfloat16 and float16 arguments may be
    mixed. With "cpu" and "triton", outputs and gradients are bitwise reproducible; the other two follow
    ``torch.use_deterministic_algorithms``.

    Args:
        x: (batch, length, d_inner) the input, at least one position long.
        weight: (d_inner, d_conv) a filter of K = d_conv taps for each channel, the last for the current position.
        bias: (d_inner,).
        activation: "silu" to pass the sum through silu.
        initial_state: (batch, d_conv - 1, d_inner) the inputs before x, the latest last; zeros if None.
        return_final_state: whether to return the last d_conv - 1 inputs too, those of ``initial_state`` among them
            where x is shorter.
        seq_idx: (batch, length) integers for sequences packed one after another: a new one begins where the number
            differs from that of the position before, and has zeros before it. ``initial_state`` belongs to the sequence
            of position 0; the final state is the last sequence's, zeros where that is shorter. Negative numbers are
            padding: y is 0 there, whatever x is, and contributes to no gradient.
        backend: "auto" for the fastest that can run, or a name in ``BACKENDS``.

    Returns:
        y (batch, length, d_inner) in x's dtype, or (y, final state), the state in x's dtype too.

    Raises:
        ValueError: a shape, dtype, device or activation that does not fit, or a backend that does not exist or
            cannot run.
    """
    tensors = {"x": x, "weight": weight, "bias": bias, "initial_state": initial_state, "seq_idx": seq_idx}
    chosen = checked(_check, tensors, activation, backend)
    if initial_state is not None:
        initial_state = initial_state.to(x.dtype)
    padding = None if seq_idx is None else (seq_idx < 0).unsqueeze(2)  # (Bt, L, 1)
    if padding is not None:
        x = x.masked_fill(padding, 0)
    if chosen in FUSED:
        y, state = fused_conv(x, weight, bias, activation, initial_state, seq_idx, return_final_state, chosen)
    else:
        if initial_state is None:
            initial_state = x.new_zeros(x.shape[0], weight.shape[1] - 1, x.shape[2])
        y = backends.load(__name__, chosen).conv(x, weight, bias, activation, initial_state, seq_idx)
        state = final_state(x, initial_state, seq_idx) if return_final_state else None
    if padding is not None:
        y = y.masked_fill(padding, 0)
    return (y, state) if return_final_state else y
