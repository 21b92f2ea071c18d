"""The reference: every expert processes every token; those that are not the token's have a gate of 0.

Symbols: T tokens, E experts, D model width, H hidden width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def why_unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """None: plain PyTorch runs everywhere."""
    return None


def experts(x: Tensor, in_weight: Tensor, out_weight: Tensor, experts: Tensor, gates: Tensor) -> Tensor:
    """y (T, D); arguments as in ``routed_experts``."""
    shares = gates.new_zeros(len(x), len(in_weight)).scatter_add(1, experts, gates)  # (T, E)
    gate, value = torch.einsum("td,edf->etf", x, in_weight).chunk(2, dim=-1)  # (E, T, H) each
    outputs = torch.einsum("eth,ehd->etd", F.silu(gate) * value, out_weight)
    return torch.einsum("te,etd->td", shares.to(x.dtype), outputs)
