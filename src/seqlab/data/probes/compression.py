"""Compression: all tokens of a sequence in the one vector at its end.

Symbols: B batch, N examples, L length, n data tokens, V vocabulary, P answers.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor
from typing_extensions import override

from seqlab.data.probes.base import Examples, Probe, Setting
from seqlab.data.probes.draws import Draw
from seqlab.data.protocol import IGNORED
from seqlab.errors import UserError
from seqlab.ops import cross_entropy

BLANK = 0


@dataclass(kw_only=True, eq=False)
class Compression(Probe):
    """Data tokens among blanks, then a compression token, at which one output predicts all of them.

    With ``length`` 7, ``data_tokens`` 4 and ``vocab_size`` 6 (0 the blank ``_``, 5 the compression token ``#``), one
    example is as below: at the last position the model's output is n V logits, V for each data token in turn::

        inputs     3  _  1  1  _  4  #
        targets    .  .  .  .  .  .  3 1 1 4

    After Poli et al. 2024 (MAD), where a separate decoder, an MLP, gets the last position's vector and the place of a
    token. Here the model's own linear head reads all tokens from that vector at once, so that every model can be
    trained unchanged. In both, everything passes through one vector of width d_model: queries at later positions would
    let attention look the tokens up. Blanks allow tests that are longer than training.

    mad-lab's generator (``variant`` "mad") has no blank, so that all tokens of the vocabulary but the last are data;
    the compression token is an answer too, after them. ``length`` is ``data_tokens`` + 1::

        inputs     3  0  1  4  #
        targets    .  .  .  .  3 0 1 4 5

    Targets are (B, L, n), or (B, L, n + 1) in that variant. Accuracy is the share of these tokens that are right.

    Args:
        vocab_size: the blank, the compression token and at least two data tokens.
        data_tokens: the number of tokens to compress.
        variant: None for the task with blanks, "mad" for mad-lab's.
    """

    name = "compression"

    vocab_size: Annotated[int, Field(ge=4)]
    data_tokens: PositiveInt
    variant: Literal["mad"] | None = None

    @override
    def check_setting(self, setting: Setting) -> None:
        if setting["length"] <= self.data_tokens:
            rule = f"must leave room for {self.data_tokens} data tokens and the compression token"
            raise UserError("length", setting["length"], rule, f"Set length={self.data_tokens + 1} or more")
        if self.variant == "mad" and setting["length"] != self.data_tokens + 1:
            rule = f"has no blanks to fill, and {self.data_tokens} data tokens and the compression token"
            raise UserError("length", setting["length"], rule, f"Set length={self.data_tokens + 1}")

    @override
    def answers(self, setting: Setting) -> int:
        return 1

    @property
    @override
    def d_output(self) -> int:
        return self.n_scored * self.vocab_size

    @property
    def n_scored(self) -> int:
        """The number of tokens that the last output predicts."""
        return self.data_tokens + (self.variant == "mad")

    @property
    @override
    def chance(self) -> float:
        return 1 / (self.vocab_size - 1 if self.variant == "mad" else self.vocab_size - 2)

    @override
    def generate(self, draw: Draw, *, length: int) -> Examples:
        symbols, first = (self.vocab_size - 1, 0) if self.variant == "mad" else (self.vocab_size - 2, 1)
        data = draw.below("data", self.data_tokens, symbols) + first  # (N, n)
        inputs = np.full((draw.count, length), BLANK, dtype=np.int64)
        np.put_along_axis(inputs, draw.subset("places", self.data_tokens, length - 1), data, axis=1)
        inputs[:, -1] = self.vocab_size - 1
        targets = np.full((draw.count, length, self.n_scored), IGNORED, dtype=np.int64)
        targets[:, -1] = inputs if self.variant == "mad" else data
        return inputs, targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats, averaged over the data tokens: (B, L, n V) and (B, L, n) to (B, L) float32."""
        logits = outputs[:, -1].unflatten(1, (self.n_scored, self.vocab_size))  # (B, n, V)
        mean = cross_entropy(logits, targets[:, -1]).float().mean(dim=1, keepdim=True)  # (B, 1)
        return F.pad(mean, (targets.shape[1] - 1, 0))

    def mask(self, targets: Tensor) -> Tensor:
        """The compression token, (B, L) bool, of targets (B, L, n)."""
        return targets[..., 0] != IGNORED


def token_accuracy(preds: Tensor, target: Tensor) -> Tensor:
    """Whether each token is predicted: logits (P V,), V for each token in turn, and tokens (P,) to (P,) bool."""
    return preds.view(len(target), -1).argmax(dim=1) == target
