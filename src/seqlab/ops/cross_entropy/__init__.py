"""Cross-entropy over a vocabulary, from the logits as they are: no copy of them in float32 is made.

    loss = log(sum over v of exp(x_v)) - x_target        gradient by x_v: softmax(x)_v - [v = target]

The logits of a language model are its largest tensor by far, so the loss and its gradient cost what it takes to move
them. "triton" reads them once forward, adding up with a running maximum (Milakov and Gimelshein 2018,
arXiv:1805.02867, algorithm 3), and once backward, and keeps two numbers a row in between.
"""

import torch
from torch import Tensor

from seqlab.ops import backends
from seqlab.ops.contract import accumulation_dtype, check_dtypes
from seqlab.ops.cross_entropy.operator import FUSED, fused_losses

__all__ = ["BACKENDS", "cross_entropy", "resolve_backend", "smoothing_excess"]

BACKENDS = ("triton", "reference")
"""Fastest first; each is the file of that name in this folder."""


def resolve_backend(backend: str, device: torch.device | str, dtype: torch.dtype) -> str:
    """The backend that ``cross_entropy(..., backend=backend)`` uses for logits on ``device`` in ``dtype``.

    A pure function: call it to record what "auto" chose. Raises ValueError as ``cross_entropy`` does.
    """
    return backends.resolve(__name__, BACKENDS, backend, device, dtype)


def cross_entropy(logits: Tensor, targets: Tensor, *, ignore_index: int = -100, backend: str = "auto") -> Tensor:
    """The negative logarithm of the probability of each target, in nats.

    Arithmetic is in float32, or in float64 if the logits are float64; the gradient is rounded to the logits' dtype
    once. Infinities and NaN come out as from ``torch.nn.functional.cross_entropy``, with one exception: with "triton"
    a row that is ignored, or whose loss has a gradient of 0, has a gradient of 0 even if its logits are not finite.
    Losses and gradients of "triton" are the same from run to run, bit by bit.

    Args:
        logits: (..., vocabulary), float32, bfloat16, float16 or float64. Rows may lie apart in memory, as in a slice
            of a wider tensor; a layout that is not one row after another at equal distances is copied.
        targets: (...) int64 from 0 to vocabulary - 1, or ``ignore_index``. For another number "reference" raises
            IndexError on a CPU and fails on the device elsewhere, as PyTorch does, while "triton", which waits for
            nothing, gives NaN, in the loss and in the gradient of that row.
        ignore_index: the target where there is nothing to predict.
        backend: "auto" for the fastest that can run, or a name in ``BACKENDS``.

    Returns:
        losses (...) float32, or float64 for float64 logits; 0 where ignored.

    Raises:
        ValueError: a shape, dtype or device that does not fit, or a backend that does not exist or cannot run.
    """
    check_arguments(logits, targets)
    rows, picks = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)  # (N, V), (N,)
    chosen = resolve_backend(backend, logits.device, logits.dtype)
    if chosen in FUSED:
        losses = fused_losses(rows, picks, ignore_index, chosen)
    else:
        losses = backends.load(__name__, chosen).losses(rows, picks, ignore_index)
    return losses.view(targets.shape)


def smoothing_excess(logits: Tensor, targets: Tensor, *, ignore_index: int = -100) -> Tensor:
    """What label smoothing adds to each loss of ``cross_entropy``, but for its factor: x_target - mean over v of x_v.

    The cross-entropy of the smoothed target (1 - e) [v = target] + e / V (Szegedy et al. 2016, arXiv:1512.00567,
    section 7; torch's ``label_smoothing``) is that of the target plus e times this, since both have one normaliser.

    Args:
        logits: (..., V) of any floating dtype.
        targets: (...) int64, as in ``cross_entropy``.
        ignore_index: the target where there is nothing to predict.

    Returns:
        (...) float32, or float64 for float64 logits; 0 where ignored.
    """
    counts, dtype = targets != ignore_index, accumulation_dtype(logits.dtype)
    own = logits.gather(-1, targets.where(counts, 0)[..., None])[..., 0].to(dtype)
    return (own - logits.mean(-1, dtype=dtype)).where(counts, 0)


def check_arguments(logits: Tensor, targets: Tensor) -> None:
    """Refuse arguments that do not fit each other: logits (..., V), targets (...) int64 on the logits' device.

    Raises:
        ValueError: a shape, dtype or device that does not fit.
    """
    check_dtypes({"logits": logits})
    shape = tuple(logits.shape)
    if not shape or shape[-1] < 1:
        raise ValueError(f"logits has shape {shape}, expected (..., vocabulary), the vocabulary at least 1")
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"targets has shape {tuple(targets.shape)}, expected {shape[:-1]} for logits of {shape}")
    if targets.dtype != torch.int64 or targets.device != logits.device:
        raise ValueError(f"targets is {targets.dtype} on {targets.device}, expected torch.int64 on {logits.device}")
