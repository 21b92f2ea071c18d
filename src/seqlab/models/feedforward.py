"""Feed-forward halves of a layer, which treat each position separately.

Symbols: D model width; ... any axes before it, (B, L) for a sequence and (B,) for one position.
"""

import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from seqlab.models.linear import Linear


class MLP(nn.Module):
    """Two linear maps with a ReLU between them (Vaswani et al. 2017, equation 2).

    Args:
        d_model: width D.
        d_ff: hidden width.
        bias: biases in both maps.
    """

    rounds_input = True

    def __init__(self, d_model: int, *, d_ff: PositiveInt, bias: bool = True):
        super().__init__()
        self.in_proj = Linear(d_model, d_ff, bias=bias)
        self.out_proj = Linear(d_ff, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) to the same shape."""
        return self.out_proj(F.relu(self.in_proj(x)))


def swiglu_width(d_ff: int) -> int:
    """The hidden width of ``SwiGLU``: two thirds of ``d_ff``, rounded up to a multiple of 8.

    It has three matrices where ``MLP`` has two, so that both have as many parameters and FLOPs at the same ``d_ff``
    (Shazeer 2020, section 2).
    """
    return -(-2 * d_ff // 24) * 8


class SwiGLU(nn.Module):
    """A gated feed-forward, silu(x V) * (x W) projected back (Shazeer 2020, equation 6).

    Args:
        d_model: width D.
        d_ff: hidden width of an ``MLP`` of the same size; the hidden width here is ``swiglu_width(d_ff)``.
    """

    rounds_input = True

    def __init__(self, d_model: int, *, d_ff: PositiveInt):
        super().__init__()
        d_hidden = swiglu_width(d_ff)
        self.in_proj = Linear(d_model, 2 * d_hidden, bias=False)
        self.out_proj = Linear(d_hidden, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) to the same shape."""
        gate, value = self.in_proj(x).chunk(2, dim=-1)
        return self.out_proj(F.silu(gate) * value)
