"""The causal convolution written out as a sum: the reference for all other backends.

Symbols:

    Bt, L, D, K   batch, length, channels (d_inner), taps (d_conv)
    x             (Bt, L, D) input
    weight        (D, K) filters, the last tap for the current position
    state         (Bt, K - 1, D) the inputs before x
    seq_idx       (Bt, L) integers; a sequence begins where they change
    lag           K - 1 - k, how far back tap k looks
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from seqlab.ops.contract import accumulation_dtype


def why_unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """None: plain PyTorch runs everywhere."""
    return None


def conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, state: Tensor, seq_idx: Tensor | None
) -> Tensor:
    """y (Bt, L, D) in x's dtype; arguments as in ``causal_conv1d``, the state always given."""
    length, taps, dtype = x.shape[1], weight.shape[1], accumulation_dtype(x.dtype)
    window = torch.cat([state, x], dim=1).to(dtype)  # (Bt, K - 1 + L, D)
    seen = [window[:, k : k + length] for k in range(taps)]  # (Bt, L, D) each
    if seq_idx is not None:
        linked = linked_positions(seq_idx, taps)
        seen = [seen[k].where(linked[taps - 1 - k].unsqueeze(2), 0) for k in range(taps)]
    weight = weight.to(dtype)
    y = sum(weight[:, k] * seen[k] for k in range(taps))  # (Bt, L, D)
    if bias is not None:
        y = y + bias.to(dtype)
    if activation == "silu":
        y = F.silu(y)
    return y.to(x.dtype)


def linked_positions(seq_idx: Tensor, lags: int) -> list[Tensor]:
    """For each lag below ``lags``, (Bt, L) whether positions t and t - lag are of one sequence.

    Positions before 0 belong to the sequence of position 0.
    """
    length = seq_idx.shape[1]
    padded = torch.cat([seq_idx[:, :1].expand(-1, lags - 1), seq_idx], dim=1)  # (Bt, lags - 1 + L)
    goes_on = padded[:, 1:] == padded[:, :-1]  # (Bt, lags - 2 + L), the last for position L - 1
    linked = [torch.ones_like(seq_idx, dtype=torch.bool)]
    for lag in range(1, lags):
        start = lags - 1 - lag
        linked.append(linked[-1] & goes_on[:, start : start + length])
    return linked


def final_state(x: Tensor, state: Tensor, seq_idx: Tensor | None) -> Tensor:
    """(Bt, K - 1, D) the inputs that the position after x needs, zeros for those of earlier sequences."""
    length, context = x.shape[1], state.shape[1]
    recent = min(length, context)
    final = torch.cat([state[:, recent:], x[:, length - recent :]], dim=1)
    return final if seq_idx is None else final.where(_of_the_last_sequence(seq_idx, context), 0)


def final_state_gradients(d_final: Tensor, length: int, seq_idx: Tensor | None) -> tuple[Tensor, Tensor]:
    """The gradients through ``final_state``, which reach only the last rows of the initial state and of x.

    Returns:
        (Bt, K - 1 - n, D) of state[:, n:] and (Bt, n, D) of x[:, L - n:], n = min(L, K - 1).
    """
    context = d_final.shape[1]
    if seq_idx is not None:
        d_final = d_final.where(_of_the_last_sequence(seq_idx, context), 0)
    kept = context - min(length, context)
    return d_final[:, :kept], d_final[:, kept:]


def _of_the_last_sequence(seq_idx: Tensor, context: int) -> Tensor:
    """(Bt, K - 1, 1) which of the K - 1 latest inputs, the latest last, belong to the sequence of position L - 1."""
    if context == 0:
        return seq_idx.new_ones(1, dtype=torch.bool)
    linked = linked_positions(seq_idx[:, -context:], context)
    return torch.stack([at_lag[:, -1] for at_lag in reversed(linked)], dim=1).unsqueeze(2)
