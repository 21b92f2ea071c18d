"""torch's own recurrent layers as mixers, one layer of width ``d_model`` each.

Symbols: B batch, L length, D width, G gates.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Recurrent(nn.Module):
    """A recurrent layer of torch's, which checkpoints know by ``name``."""

    def __init__(self, name: str, layer: nn.RNNBase):
        super().__init__()
        self.name = name
        self.add_module(name, layer)

    @property
    def layer(self) -> nn.RNNBase:
        return self.get_submodule(self.name)

    def forward(self, x: Tensor) -> Tensor:
        return products_alone(self.layer, x) if x.is_meta else self.layer(x)[0]

    def initial_state(self, batch_size: int) -> Any:
        """The hidden state, zeros (1, B, D)."""
        return self.layer.weight_hh_l0.new_zeros(1, batch_size, self.layer.hidden_size)

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, state = self.layer(x[:, None], state)  # (B, 1, D)
        return y[:, 0], state

    def prefill(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.layer(x, state)


class GRU(Recurrent):
    """Gated recurrent unit (Cho et al. 2014); its reset gate acts on the hidden state's product, as in cuDNN."""

    def __init__(self, d_model: int):
        super().__init__("gru", nn.GRU(d_model, d_model, batch_first=True))


class LSTM(Recurrent):
    """Long short-term memory (Hochreiter and Schmidhuber 1997).

    The forget gate starts open (bias 1; Jozefowicz et al. 2015, section 4).
    """

    def __init__(self, d_model: int):
        super().__init__("lstm", nn.LSTM(d_model, d_model, batch_first=True))
        with torch.no_grad():
            # torch orders the gates input, forget, cell, output and adds two biases: one carries the opening.
            self.layer.bias_ih_l0[d_model : 2 * d_model] = 1.0
            self.layer.bias_hh_l0[d_model : 2 * d_model] = 0.0

    def initial_state(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Hidden and cell state, zeros (1, B, D) each."""
        zeros = super().initial_state(batch_size)
        return zeros, zeros


def products_alone(layer: nn.RNNBase, x: Tensor) -> Tensor:
    """Shapes for counting on the ``meta`` device, (B, L, D) to (B, L, D): the products of all positions at once.

    There torch goes from position to position, which takes a minute where the window is long. The hidden state before
    the first position is data, whose gradient nobody asks for.
    """
    width, weight = layer.hidden_size, layer.weight_hh_l0
    gates = F.linear(x, layer.weight_ih_l0, layer.bias_ih_l0)  # (B, L, G D)
    before = gates[:, :-1, :width]  # (B, L - 1, D), as the hidden states that the positions leave
    first = F.linear(gates.new_empty(len(x), 1, width), weight)
    return (gates + torch.cat([first, F.linear(before, weight)], dim=1))[..., :width]
