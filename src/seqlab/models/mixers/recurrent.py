"""torch's own recurrent layers as mixers, one layer of width ``d_model`` each.

Symbols: B batch, L length, D width, G gates.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Recurrent(nn.Module):
    """A recurrent layer of torch, under the key ``name`` in state dictionaries."""

    steps_alike = True

    def __init__(self, name: str, layer: nn.RNNBase):
        super().__init__()
        self.name = name
        self.add_module(name, layer)

    @property
    def layer(self) -> nn.RNNBase:
        """The layer of torch."""
        return self.get_submodule(self.name)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        return products_alone(self.layer, x) if x.is_meta else self.layer(x)[0]

    def initial_state(self, batch_size: int) -> Any:
        """The hidden state, zeros (1, B, D)."""
        return self.layer.weight_hh_l0.new_zeros(1, batch_size, self.layer.hidden_size)

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """(B, D) to (B, D)."""
        y, state = self.layer(x[:, None], state)  # (B, 1, D)
        return y[:, 0], state

    def prefill(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """(B, L, D) to (B, L, D)."""
        return self.layer(x, state)


class GRU(Recurrent):
    """Gated recurrent unit (Cho et al. 2014); the reset gate multiplies W h, not h, as in cuDNN."""

    def __init__(self, d_model: int):
        super().__init__("gru", nn.GRU(d_model, d_model, batch_first=True))


class LSTM(Recurrent):
    """Long short-term memory (Hochreiter and Schmidhuber 1997).

    The forget gate's bias starts at 1 (Jozefowicz et al. 2015, section 4).
    """

    def __init__(self, d_model: int):
        super().__init__("lstm", nn.LSTM(d_model, d_model, batch_first=True))
        with torch.no_grad():
            # torch orders the gates input, forget, cell, output and adds two biases: one is 1, the other 0.
            self.layer.bias_ih_l0[d_model : 2 * d_model] = 1.0
            self.layer.bias_hh_l0[d_model : 2 * d_model] = 0.0

    def initial_state(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """The hidden and the cell state, zeros (1, B, D) each."""
        zeros = super().initial_state(batch_size)
        return zeros, zeros


def products_alone(layer: nn.RNNBase, x: Tensor) -> Tensor:
    """The matrix products of all positions at once, (B, L, D) to (B, L, D), to count on the ``meta`` device.

    There torch's own layer loops over positions, which takes a minute for a long window. The hidden state before the
    first position needs no gradient.
    """
    width, weight = layer.hidden_size, layer.weight_hh_l0
    gates = F.linear(x, layer.weight_ih_l0, layer.bias_ih_l0)  # (B, L, G D)
    before = gates[:, :-1, :width]  # (B, L - 1, D), as the hidden states that the positions leave
    first = F.linear(gates.new_empty(len(x), 1, width), weight)
    return (gates + torch.cat([first, F.linear(before, weight)], dim=1))[..., :width]
