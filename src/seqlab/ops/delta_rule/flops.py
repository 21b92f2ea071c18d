"""What the recurrence of the delta rule costs, counted from its equations."""


def delta_rule_flops(batch: int, length: int, n_heads: int, d_key: int, d_value: int, n_decays: int = 0) -> int:
    """Multiplications, additions and exponentials of the recurrence, forward, each counted as one.

    For one position and one head, with K = d_key, V = d_value and E = n_decays (0, 1 or K):

    ===========  =======================  ====================================  =========
    decay        e^g S, where E > 0       E exponentials, K V products          E + K V
    prediction   k^T S                    K V products, (K - 1) V sums          2 K V - V
    correction   beta (v - k^T S)         V differences, V products             2 V
    update       S + k u^T                K V products, K V additions           2 K V
    readout      S^T q                    K V products, (K - 1) V sums          2 K V - V
    ===========  =======================  ====================================  =========

    together 6 K V, and 7 K V + E with a decay. This is the recurrence itself, however it is computed: matrix products
    over chunks take more FLOPs and less time. A backward pass is usually taken as twice the forward.
    """
    decay = n_decays + d_key * d_value if n_decays else 0
    return batch * length * n_heads * (6 * d_key * d_value + decay)
