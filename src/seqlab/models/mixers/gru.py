"""Gated recurrent unit (Cho et al. 2014), one layer of width ``d_model``."""

from torch import Tensor, nn

from seqlab.models.mixers.recurrence import products_alone


class GRU(nn.Module):
    """torch's own GRU as a mixer; its reset gate acts on the hidden state's product, as in cuDNN."""

    def __init__(self, d_model: int):
        super().__init__()
        self.gru = nn.GRU(d_model, d_model, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return products_alone(self.gru, x) if x.is_meta else self.gru(x)[0]

    def initial_state(self, batch_size: int) -> Tensor:
        return self.gru.weight_hh_l0.new_zeros(1, batch_size, self.gru.hidden_size)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y, state = self.gru(x[:, None], state)  # (B, 1, D)
        return y[:, 0], state

    def prefill(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.gru(x, state)
