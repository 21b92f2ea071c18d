"""Norms. Symbols: D width; ... any axes before it, (B, L) for a sequence and (B,) for one position."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from seqlab.models.hooks import has_hooks
from seqlab.ops import add_rms_norm, rms_norm


def add_norm(norm: nn.Module, x: Tensor, update: Tensor | None) -> tuple[Tensor, Tensor]:
    """x + update, or x itself without an update, and its norm: (..., D) each."""
    if update is None:
        return x, norm(x)
    if type(norm) is RMSNorm and not has_hooks(norm):  # a subclass may compute something else
        return norm.add(x, update)
    x = x + update
    return x, norm(x)


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm, with the same parameters and arguments; on a GPU in fewer and faster kernels.

    It computes in float32 as torch's does, and on a CPU it is torch's. Under autocast torch's gives float32; where
    ``rounds`` is set this one rounds it to autocast's dtype at once.
    """

    computes: ClassVar[type[nn.Module]] = nn.RMSNorm  # which kernels that know that norm look for

    rounds: bool = False
    """Whether what reads the output rounds it to autocast's dtype anyway, as ``nn.Linear`` does."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) to the same shape."""
        if not self._is_fused(x):
            return super().forward(x)
        return rms_norm(x, self.weight, self.eps, self._out_dtype(x))

    def add(self, x: Tensor, update: Tensor) -> tuple[Tensor, Tensor]:
        """x + update and its norm: (..., D) each."""
        if self._is_fused(x) and torch.promote_types(x.dtype, update.dtype) == x.dtype:
            return add_rms_norm(x, update, self.weight, self.eps, self._out_dtype(x))
        x = x + update
        return x, self(x)

    def _is_fused(self, x: Tensor) -> bool:
        plain = self.weight is not None and self.eps is not None and len(self.normalized_shape) == 1
        return x.is_cuda and plain and x.dtype == self.weight.dtype

    def _out_dtype(self, x: Tensor) -> torch.dtype | None:
        rounds = self.rounds and x.dtype != torch.float64 and torch.is_autocast_enabled("cuda")
        return torch.get_autocast_dtype("cuda") if rounds else None
