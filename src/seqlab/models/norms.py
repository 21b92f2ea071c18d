"""Norms. Symbols: D width; ... any axes before it, (B, L) for a sequence and (B,) for one position."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from seqlab.ops import rms_norm


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
        if not (x.is_cuda and self._is_plain() and x.dtype == self.weight.dtype):
            return super().forward(x)
        rounds = self.rounds and x.dtype != torch.float64 and torch.is_autocast_enabled("cuda")
        return rms_norm(x, self.weight, self.eps, torch.get_autocast_dtype("cuda") if rounds else None)

    def _is_plain(self) -> bool:
        return self.weight is not None and self.eps is not None and len(self.normalized_shape) == 1
