"""Feed-forward halves of a layer, which treat each position separately.

Symbols: D model width; ... any axes before it, (B, L) for a sequence and (B,) for one position.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from seqlab.models.linear import Linear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


class MLP(nn.Module):
    """Two linear maps with an activation between them (Vaswani et al. 2017, equation 2).

    Args:
        d_model: width D.
        d_ff: hidden width.
        bias: biases in both maps.
        activation: ``gelu_tanh`` is GPT-2's, the approximation of GELU by tanh (Hendrycks and Gimpel 2016, section 2).
    """

    rounds_input = True

    def __init__(
        self,
        d_model: int,
        *,
        d_ff: PositiveInt,
        bias: bool = True,
        activation: Literal["relu", "gelu", "gelu_tanh"] = "relu",
    ):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.in_proj = Linear(d_model, d_ff, bias=bias)
        self.out_proj = Linear(d_ff, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) to the same shape."""
        return self.out_proj(self.activation(self.in_proj(x)))


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
        d_hidden: the hidden width here, whatever ``d_ff`` is; null for ``swiglu_width(d_ff)``.
        bias: biases in both maps.
    """

    rounds_input = True

    def __init__(self, d_model: int, *, d_ff: PositiveInt, d_hidden: PositiveInt | None = None, bias: bool = False):
        super().__init__()
        d_hidden = swiglu_width(d_ff) if d_hidden is None else d_hidden
        self.in_proj = Linear(d_model, 2 * d_hidden, bias=bias)
        self.out_proj = Linear(d_hidden, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) to the same shape."""
        gate, value = self.in_proj(x).chunk(2, dim=-1)
        return self.out_proj(F.silu(gate) * value)
