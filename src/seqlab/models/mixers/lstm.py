"""Long short-term memory (Hochreiter and Schmidhuber 1997), one layer of width ``d_model``."""

import torch
from torch import Tensor, nn

from seqlab.models.mixers.recurrence import products_alone

State = tuple[Tensor, Tensor]  # hidden and cell state, each (1, B, D)


class LSTM(nn.Module):
    """torch's own LSTM as a mixer. The forget gate starts open (bias 1; Jozefowicz et al. 2015, section 4)."""

    def __init__(self, d_model: int):
        super().__init__()
        self.lstm = nn.LSTM(d_model, d_model, batch_first=True)
        with torch.no_grad():
            # torch orders the gates input, forget, cell, output and adds two biases: one carries the opening.
            self.lstm.bias_ih_l0[d_model : 2 * d_model] = 1.0
            self.lstm.bias_hh_l0[d_model : 2 * d_model] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return products_alone(self.lstm, x) if x.is_meta else self.lstm(x)[0]

    def initial_state(self, batch_size: int) -> State:
        weight = self.lstm.weight_hh_l0
        zeros = weight.new_zeros(1, batch_size, self.lstm.hidden_size)
        return zeros, zeros

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = self.lstm(x[:, None], state)  # (B, 1, D)
        return y[:, 0], state

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return self.lstm(x, state)
