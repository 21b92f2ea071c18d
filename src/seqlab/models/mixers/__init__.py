"""Mixers: modules that map (B, L, D) to (B, L, D) causally.

A mixer is built as ``Mixer(d_model, **settings)`` and has

- ``forward(x)``: the whole sequence, (B, L, D) -> (B, L, D);
- ``initial_state(batch_size)``: what it remembers before the first position;
- ``step(x, state)``: one position, (B, D) -> (B, D), and the state after it; equal to ``forward`` at that position;
- ``prefill(x, state)``: L positions at once, (B, L, D) -> (B, L, D), and the state after them; without it the model
  takes them step by step.

A state may be of any kind: one size at every length (Mamba, a GRU), growing (attention), growing up to a window. In a
hybrid, each layer's stands beside the others'. It is continued once, so that a step may write into it.

A projection that writes into the residual stream is called ``out_proj``, so that the model can rescale it.
A mixer whose arithmetic torch's FLOP counter cannot see says it in ``uncounted_flops(batch_size, length)``. FLOPs and
states are counted on the ``meta`` device, so a mixer gives shapes there too.

The layers of flash-linear-attention are mixers through ``fla.FlaLayer``, which imports that library when it is built.
"""

from seqlab.models.mixers.attention import Attention
from seqlab.models.mixers.dense import Dense
from seqlab.models.mixers.gru import GRU
from seqlab.models.mixers.lstm import LSTM
from seqlab.models.mixers.mamba import Mamba
from seqlab.models.mixers.mamba2 import Mamba2
from seqlab.models.mixers.min_gru import MinGRU

__all__ = ["GRU", "LSTM", "Attention", "Dense", "Mamba", "Mamba2", "MinGRU"]
