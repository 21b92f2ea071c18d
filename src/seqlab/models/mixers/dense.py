"""A mixer that mixes nothing: each position on its own. Symbols: B batch, L length, D model width."""

from torch import Tensor, nn

from seqlab.models.linear import Linear
from seqlab.models.protocols import constant_state


class Dense(nn.Module):
    """A linear map and a ReLU at each position, the hidden layer of a multilayer perceptron."""

    steps_alike = True
    carried_state = constant_state
    rounds_input = True

    def __init__(self, d_model: int):
        super().__init__()
        self.linear = Linear(d_model, d_model)

    def forward(self, x: Tensor, seq_idx: Tensor | None = None) -> Tensor:
        """(B, L, D) to (B, L, D), whatever the sequences."""
        return self.linear(x).relu()

    def initial_state(self, batch_size: int) -> None:
        """None: there is no state."""

    def step(self, x: Tensor, state: None) -> tuple[Tensor, None]:
        """(B, D) to (B, D)."""
        return self(x), state

    def prefill(self, x: Tensor, state: None) -> tuple[Tensor, None]:
        """(B, L, D) to (B, L, D)."""
        return self(x), state
