"""The operation with its gradient: Triton kernels and PyTorch's product.

Symbols as in ``__init__.py``. Saved are the arguments and, unless ``settings.recompute``, keys, queries, rotations and
states: at 48 heads of 64 channels and 128 states 43 KB a position, beside the projection's 13.
"""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from seqlab.ops.derivatives import FirstDerivative
from seqlab.ops.mamba3_inner.interface import Inputs, Kept, Settings
from seqlab.ops.mamba_inner.operator import kernels, rows


def _parts(projected: Tensor, out_weight: Tensor, n_heads: int, settings: Settings) -> tuple[Tensor, ...]:
    """z, x, maps, heads and angle, views of the projection (Bt, L, 2 E + 2 G N + 3 H + S)."""
    d_inner = out_weight.shape[1]
    others = 3 * n_heads, settings.n_pairs
    maps = projected.shape[2] - 2 * d_inner - sum(others)
    return projected.split((d_inner, d_inner, maps, *others), dim=2)


class Mamba3Inner(FirstDerivative):
    """The output (Bt, L, M) from the projection, the product's weight in the projection's dtype."""

    operation = "mamba3_inner"

    @override
    @staticmethod
    def forward(
        ctx: Any,
        projected: Tensor,
        dt_bias: Tensor,
        norm_weight: Tensor,
        map_bias: Tensor,
        D: Tensor,
        out_weight: Tensor,
        settings: Settings,
        backend: str,
    ) -> Tensor:
        (block,) = kernels("mamba3_inner")
        parameters = dt_bias, norm_weight, map_bias, D
        inputs = Inputs(*_parts(projected, out_weight, D.shape[0], settings), *parameters)
        gated, kept = block.forward(inputs, settings, not settings.recompute and any(ctx.needs_input_grad))
        ctx.save_for_backward(projected, *parameters, out_weight, *(kept or ()))
        ctx.settings, ctx.backend = settings, backend
        return torch.mm(rows(gated), out_weight.t()).view(*projected.shape[:2], -1)

    @override
    @staticmethod
    def differentiate(ctx: Any, d_out: Tensor) -> tuple:
        (block,) = kernels("mamba3_inner")
        projected, dt_bias, norm_weight, map_bias, D, out_weight, *kept = ctx.saved_tensors
        parameters = dt_bias, norm_weight, map_bias, D
        d_projected = torch.empty_like(projected, memory_format=torch.contiguous_format)
        split = out_weight, parameters[0].shape[0], ctx.settings
        d_out = d_out.reshape(-1, d_out.shape[2])
        d_gated = torch.mm(d_out, out_weight).view(*projected.shape[:2], -1)
        inputs = Inputs(*_parts(projected, *split), *parameters)
        kept = Kept(*kept) if kept else None
        found = block.backward(inputs, ctx.settings, d_gated, _parts(d_projected, *split), kept)
        del d_gated
        return d_projected, *found[:4], torch.mm(d_out.t(), rows(found.out)), None, None
