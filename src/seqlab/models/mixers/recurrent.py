"""torch's own recurrent layers as mixers, one layer each.

Symbols: B batch, L length, I and D widths in and out, ``d_model`` unless they are set; G gates.
"""

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn
from typing_extensions import override

from seqlab.models.protocols import constant_state

WEIGHTS = "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"
"""torch's names of a layer's weights, in the order of its functions."""


class Recurrent(nn.Module):
    """A recurrent layer of torch, under the key ``name`` in state dictionaries.

    Other widths than ``d_model`` need a model without residual connections and norms, whose other layers fit them.
    """

    steps_alike = True
    carried_state = constant_state

    def __init__(self, name: str, layer: nn.RNNBase):
        super().__init__()
        self.name = name
        self.add_module(name, layer)

    @property
    def io_widths(self) -> tuple[int, int]:
        """I and D."""
        return self.layer.input_size, self.layer.hidden_size

    @property
    def layer(self) -> nn.RNNBase:
        """The layer of torch."""
        return self.get_submodule(self.name)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, I) to (B, L, D)."""
        return products_alone(self.layer, x) if x.is_meta else self.run(x)[0]

    def initial_state(self, batch_size: int) -> Any:
        """The hidden state, zeros (B, D)."""
        return self.layer.weight_hh_l0.new_zeros(batch_size, self.layer.hidden_size)

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """(B, I) to (B, D)."""
        y, state = self.prefill(x[:, None], state)  # (B, 1, D)
        return y[:, 0], state

    def prefill(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """(B, L, I) to (B, L, D)."""
        if x.is_meta:
            return products_alone(self.layer, x), state
        y, after = self.run(x, state[None])  # torch's states are (1, B, D)
        return y, after[0]

    def run(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """What ``layer`` gives, (B, L, I) to (B, L, D), also where its weights have others in their place."""
        layer = self.layer
        weights = [getattr(layer, name) for name in WEIGHTS]
        if all(type(weight) is nn.Parameter for weight in weights):
            return layer(x, state)
        # Given weights in place of its parameters, torch's layer would move all of them side by side in memory at each
        # pass, its parameters too, and a captured step would go on with those in another place.
        zeros = x.new_zeros(1, len(x), layer.hidden_size)
        state = state if state is not None else (zeros, zeros) if isinstance(layer, nn.LSTM) else zeros
        y, *after = self.function(x, state, weights, True, 1, 0.0, self.training, False, True)
        return y, after[0] if len(after) == 1 else tuple(after)


class GRU(Recurrent):
    """Gated recurrent unit (Cho et al. 2014); the reset gate multiplies W h, not h, as in cuDNN."""

    function = staticmethod(torch.gru)

    def __init__(self, d_model: int, *, d_in: PositiveInt | None = None, d_out: PositiveInt | None = None):
        super().__init__("gru", nn.GRU(d_in or d_model, d_out or d_model, batch_first=True))


class LSTM(Recurrent):
    """Long short-term memory (Hochreiter and Schmidhuber 1997).

    The forget gate's bias starts at 1 (Jozefowicz et al. 2015, section 4).
    """

    function = staticmethod(torch.lstm)

    def __init__(self, d_model: int, *, d_in: PositiveInt | None = None, d_out: PositiveInt | None = None):
        width = d_out or d_model
        super().__init__("lstm", nn.LSTM(d_in or d_model, width, batch_first=True))
        with torch.no_grad():
            # torch orders the gates input, forget, cell, output and adds two biases: one is 1, the other 0.
            self.layer.bias_ih_l0[width : 2 * width] = 1.0
            self.layer.bias_hh_l0[width : 2 * width] = 0.0

    def initial_state(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """The hidden and the cell state, zeros (B, D) each."""
        return super().initial_state(batch_size), super().initial_state(batch_size)

    @override
    def prefill(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(B, L, D) to (B, L, D)."""
        if x.is_meta:
            return products_alone(self.layer, x), state
        y, (hidden, cell) = self.run(x, (state[0][None], state[1][None]))
        return y, (hidden[0], cell[0])


def products_alone(layer: nn.RNNBase, x: Tensor) -> Tensor:
    """The matrix products of all positions at once, (B, L, I) to (B, L, D), to count on the ``meta`` device.

    There torch's own layer loops over positions, which takes a minute for a long window. The hidden state before the
    first position needs no gradient.
    """
    width, weight = layer.hidden_size, layer.weight_hh_l0
    gates = F.linear(x, layer.weight_ih_l0, layer.bias_ih_l0)  # (B, L, G D)
    before = gates[:, :-1, :width]  # (B, L - 1, D), as the hidden states that the positions leave
    first = F.linear(gates.new_empty(len(x), 1, width), weight)
    return (gates + torch.cat([first, F.linear(before, weight)], dim=1))[..., :width]
