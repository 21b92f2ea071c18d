"""Linear maps of sequences, on a CPU by the faster of the two libraries that PyTorch has for products of matrices.

Symbols: B batch, L length, D and O widths in and out.
"""

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from seqlab.models.hooks import has_hooks

LEAST_PRODUCTS = 2**23
"""Fewest products of two numbers by convolution: its call costs some 30 us more, its backward 100."""
LEAST_BATCH, LEAST_LENGTH = 16, 16
"""PyTorch convolves fewer sequences by itself on one thread; a convolution of few positions is slow."""


class Linear(nn.Linear):
    """``nn.Linear``, with the product of ``linear``."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., O)."""
        return linear(x, self.weight, self.bias)


def is_plain(part: nn.Module) -> bool:
    """Whether a part is a ``Linear`` without a bias, and nobody looks on as it is called."""
    return type(part) is Linear and part.bias is None and not has_hooks(part)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b: x (..., D), weight (O, D) and bias (O,) to (..., O), as ``F.linear`` takes and returns them.

    PyTorch multiplies float32 matrices on a CPU with MKL, which on a processor that is not Intel's leaves half of the
    vector units idle: 105 GFLOP/s of one Zen 5 core, where oneDNN has 230. A convolution of width 1 over (B, L, D) is
    the same product, and PyTorch gives it to oneDNN, both ways. Results differ by rounding.
    """
    if not _by_convolution(x, weight):
        return F.linear(x, weight, bias)
    channels = x.contiguous()[:, :, None].permute(0, 3, 1, 2)  # (B, D, L, 1), a view
    y = F.conv2d(channels, weight[:, :, None, None])  # (B, O, L, 1), of rows of O
    if bias is not None:  # oneDNN sums its gradient one by one, which is slower and rounds more than PyTorch's own sum
        y.add_(bias[:, None, None])
    return y.permute(0, 2, 3, 1)[:, :, 0]  # (B, L, O), contiguous


def _by_convolution(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.ndim == 3
        and x.shape[0] >= LEAST_BATCH
        and x.shape[1] >= LEAST_LENGTH
        and x.numel() * weight.shape[0] >= LEAST_PRODUCTS
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and mkl_is_slow()
    )


@cache
def mkl_is_slow() -> bool:
    """Whether PyTorch multiplies with MKL on an x86 processor that is not Intel's, and has oneDNN too; on Linux."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    try:
        return "vendor_id\t: GenuineIntel" not in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
