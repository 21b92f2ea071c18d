"""What the recurrence of the selective scan costs, counted from its equations."""


def selective_scan_flops(batch: int, length: int, d_inner: int, d_state: int) -> int:
    """Multiplications, additions and exponentials of the recurrence, forward, each counted as one.

    For one position and one channel, with N = d_state:

    ==============  ========================  ============================  =======
    discretisation  exp(delta A)              N products, N exponentials    2N
                    (delta u) B               1 product, then N             N + 1
    recurrence      a h + x                   N products, N additions       2N
    readout         sum over n of C h         N products, N - 1 additions   2N - 1
    ==============  ========================  ============================  =======

    together 7N. Bias and softplus of delta, the skip D u and the gate are not part of the recurrence. A backward
    pass is usually taken as twice the forward.
    """
    discretisation = 2 * d_state + (d_state + 1)
    recurrence = 2 * d_state
    readout = 2 * d_state - 1
    return batch * length * d_inner * (discretisation + recurrence + readout)
