"""What the recurrence of state-space duality costs, counted from its equations."""


def ssd_flops(batch: int, length: int, n_heads: int, d_head: int, d_state: int) -> int:
    """Multiplications, additions and exponentials of the recurrence, forward, each counted as one.

    For one position and one head, with P = d_head and N = d_state:

    ==============  ========================  ===============================  ===========
    discretisation  exp(dt A)                 1 product, 1 exponential         2
                    (dt x) B                  P products, then P N             P + P N
    recurrence      a h + x                   P N products, P N additions      2 P N
    readout         sum over n of C h         P N products, P (N - 1) sums     2 P N - P
    ==============  ========================  ===============================  ===========

    together 5 P N + 2. As for ``selective_scan_flops`` this is the recurrence itself, however it is computed: matrix
    products over chunks take more FLOPs and less time. Bias and softplus of dt and the skip D x are not part of it. A
    backward pass is usually taken as twice the forward.
    """
    discretisation = 2 + d_head + d_head * d_state
    recurrence = 2 * d_head * d_state
    readout = d_head * (2 * d_state - 1)
    return batch * length * n_heads * (discretisation + recurrence + readout)
