"""What torch's own recurrent layers multiply, for counting on the ``meta`` device.

Symbols: B batch, L length, D width, G gates.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def products_alone(layer: nn.RNNBase, x: Tensor) -> Tensor:
    """Shapes for counting, (B, L, D) to (B, L, D): the products of all positions at once.

    On the ``meta`` device torch goes from position to position, which takes a minute where the window is long. The
    hidden state before the first position is data, whose gradient nobody asks for.
    """
    width, weight = layer.hidden_size, layer.weight_hh_l0
    gates = F.linear(x, layer.weight_ih_l0, layer.bias_ih_l0)  # (B, L, G D)
    before = gates[:, :-1, :width]  # (B, L - 1, D), as the hidden states that the positions leave
    first = F.linear(gates.new_empty(len(x), 1, width), weight)
    return (gates + torch.cat([first, F.linear(before, weight)], dim=1))[..., :width]
