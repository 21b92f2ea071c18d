"""torch's own recurrent layers as mixers, one layer of width ``d_model`` each.

Symbols: B batch, L length, D width, G gates.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from seqlab.models.protocols import constant_state


class Recurrent(nn.Module):
    """A recurrent layer of torch, under the key ``name`` in state dictionaries."""

    steps_alike = True
    carried_state = constant_state

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
        """The hidden state, zeros (B, D)."""
        return self.layer.weight_hh_l0.new_zeros(batch_size, self.layer.hidden_size)

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """(B, D) to (B, D)."""
        y, state = self.prefill(x[:, None], state)  # (B, 1, D)
        return y[:, 0], state

    def prefill(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """(B, L, D) to (B, L, D)."""
        if x.is_meta:
            return products_alone(self.layer, x), state
        y, after = self.layer(x, state[None])  # torch's states are (1, B, D)
        return y, after[0]


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
        """The hidden and the cell state, zeros (B, D) each."""
        return super().initial_state(batch_size), super().initial_state(batch_size)

    @override
    def prefill(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(B, L, D) to (B, L, D)."""
        if x.is_meta:
            return products_alone(self.layer, x), state
        y, (hidden, cell) = self.layer(x, (state[0][None], state[1][None]))
        return y, (hidden[0], cell[0])


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
