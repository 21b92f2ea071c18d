"""Mixers: modules that map (B, L, D) to (B, L, D) causally, as ``seqlab.models.protocols.Mixer`` says.

The layers of flash-linear-attention are mixers through ``fla.FlaLayer``, which imports that library when it is built.
"""

from seqlab.models.mixers.attention import Attention
from seqlab.models.mixers.delta_net import DeltaNet
from seqlab.models.mixers.dense import Dense
from seqlab.models.mixers.m2rnn import M2RNN
from seqlab.models.mixers.mamba import Mamba
from seqlab.models.mixers.mamba2 import Mamba2
from seqlab.models.mixers.mamba3 import Mamba3
from seqlab.models.mixers.min_gru import MinGRU
from seqlab.models.mixers.mlstm import MLSTM
from seqlab.models.mixers.recurrent import GRU, LSTM

__all__ = ["GRU", "LSTM", "M2RNN", "MLSTM", "Attention", "DeltaNet", "Dense", "Mamba", "Mamba2", "Mamba3", "MinGRU"]
