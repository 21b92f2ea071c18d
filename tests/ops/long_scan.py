"""The selective scan over tens of thousands of positions in seconds: what long sequences are held to.

The reference itself goes through autograd at each position, 0.25 ms each. Here only the recurrence goes position by
position, in numpy, and its gradient is written out; all else is over whole sequences. It is held to the reference in
``selective_scan/test_scan_reference.py``.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class Recurrence(torch.autograd.Function):
    """h_t = a_t h_{t-1} + b_t: decays a and drives b (L, ...) and the state h_0 (...) to the states h_1..h_L (L, ...).

    With g_t = dh_t + a_{t+1} g_{t+1}, the gradients are g_t h_{t-1} by a_t, g_t by b_t and a_1 g_1 by h_0.
    """

    @staticmethod
    def forward(ctx, decay: Tensor, drive: Tensor, before: Tensor) -> Tensor:
        states = np.empty((len(decay) + 1, *before.shape))
        states[0] = before.numpy()
        for t, (a, b) in enumerate(zip(decay.numpy(), drive.numpy(), strict=True)):
            np.multiply(a, states[t], out=states[t + 1])
            states[t + 1] += b
        states = torch.from_numpy(states)
        ctx.save_for_backward(decay, states)
        return states[1:].clone()

    @staticmethod
    def backward(ctx, d_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        decay, states = ctx.saved_tensors
        g = d_states.numpy().copy()
        a = decay.numpy()
        for t in range(len(g) - 2, -1, -1):
            g[t] += a[t + 1] * g[t + 1]
        g = torch.from_numpy(g)
        return g * states[:-1], g, decay[0] * g[0]


def scan(
    *,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    initial_state: Tensor,
    delta_softplus: bool = False,
    return_final_state: bool = True,
) -> tuple[Tensor, Tensor]:
    """y and the final state of arguments in float64 on the CPU; as ``selective_scan``, every option given."""
    assert return_final_state
    assert u.dtype == torch.float64
    delta = delta + delta_bias
    if delta_softplus:
        delta = F.softplus(delta)
    decay = torch.exp(delta[..., None] * A)  # (Bt, L, D, N)
    drive = (delta * u)[..., None] * B[:, :, None]  # (Bt, L, D, N)
    h = Recurrence.apply(decay.transpose(0, 1), drive.transpose(0, 1), initial_state).transpose(0, 1)
    y = (h * C[:, :, None]).sum(dim=3) + D * u  # (Bt, L, D)
    return y * F.silu(z), h[:, -1]
