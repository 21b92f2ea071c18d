"""What the recurrence of M²RNN costs, counted from its equations."""


def m2rnn_flops(batch: int, length: int, n_heads: int, d_key: int, d_value: int) -> int:
    """Multiplications, additions and hyperbolic tangents of the recurrence, forward, each counted as one.

    For one position and head, with K = d_key and V = d_value:

    =========  ==================  =======================================  ================
    candidate  H W                 K V^2 products, K V (V - 1) sums         2 K V^2 - K V
               tanh(H W + k v^T)   K V products, additions and tangents     3 K V
    update     f H + (1 - f) Z     2 K V products, K V + 1 additions        3 K V + 1
    readout    H^T q               K V products, (K - 1) V sums             2 K V - V
    =========  ==================  =======================================  ================

    together 2 K V^2 + 7 K V - V + 1. A backward pass is usually taken as twice the forward.
    """
    square = d_key * d_value
    return batch * length * n_heads * (2 * square * d_value + 7 * square - d_value + 1)
