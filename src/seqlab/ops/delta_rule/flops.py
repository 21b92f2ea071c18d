"""What the recurrence of the delta rule costs, counted from its equations."""

from typing import Literal


def delta_rule_flops(
    batch: int,
    length: int,
    n_heads: int,
    d_key: int,
    d_value: int,
    n_decays: int = 0,
    *,
    erases: Literal["nothing", "by head", "by channel"] = "by head",
) -> int:
    """Multiplications, additions and exponentials of the recurrence, forward, each counted as one.

    For one position and one head, with K = d_key, V = d_value and E = n_decays (0, 1 or K):

    ===========  =======================  ====================================  =========
    decay        e^g S, where E > 0       E exponentials, K V products          E + K V
    prediction   k^T S                    K V products, (K - 1) V sums          2 K V - V
    correction   beta (v - k^T S)         V differences, V products             2 V
                 w v - (beta k)^T S       2 V, and K products                   2 V + K
    update       S + k u^T                K V products, K V additions           2 K V
    readout      S^T q                    K V products, (K - 1) V sums          2 K V - V
    ===========  =======================  ====================================  =========

    together 6 K V, K more with a beta for each key channel, and K V + E more with a decay. Where nothing is erased v
    is written as it is: 4 K V - V. This is the recurrence itself, however it is computed: matrix products over chunks
    take more FLOPs and less time. A backward pass is usually taken as twice the forward.
    """
    square = d_key * d_value
    decay = n_decays + square if n_decays else 0
    rest = {"nothing": 4 * square - d_value, "by head": 6 * square, "by channel": 6 * square + d_key}[erases]
    return batch * length * n_heads * (rest + decay)
