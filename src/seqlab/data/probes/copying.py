"""Copying: output the data tokens of a sequence in order; they are at its start, or scattered over it (selective).

Symbols: B batch, N examples, L length.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from typing_extensions import override

from seqlab.data.probes.base import Examples, Probe, Setting, blank, power_of_two
from seqlab.data.probes.draws import Draw
from seqlab.data.protocol import Batch
from seqlab.errors import UserError

BLANK = 0


@dataclass(kw_only=True, eq=False)
class Copying(Probe):
    """Data tokens first, then blanks, then as many markers as there are data tokens, each asking for the next one.

    The delayed copying task of Arjovsky et al. 2016 (section 4.1). With ``length`` 10, ``data_tokens`` 3 and
    ``vocab_size`` 6 (0 the blank ``_``, 5 the marker ``?``), one example is::

        inputs     2  4  4  _  _  _  _  ?  ?  ?
        targets    .  .  .  .  .  .  .  2  4  4

    All markers are the same token and no answer is ever an input, so a model must remember the data tokens and count
    the markers.

    Args:
        vocab_size: the blank, the marker and at least two data tokens.
        data_tokens: the number of tokens to copy.
    """

    name = "copying"
    difficulty = ("length", "data_tokens")

    vocab_size: Annotated[int, Field(ge=4)]
    data_tokens: PositiveInt

    @override
    def check_setting(self, setting: Setting) -> None:
        length, tokens = setting["length"], setting["data_tokens"]
        if length < 2 * tokens:
            rule = f"{tokens} data tokens and {tokens} markers do not fit into length {length}"
            remedy = f"Set length={2 * tokens} or more, or fewer data tokens"
            raise UserError("data_tokens", tokens, rule, remedy)

    @override
    def answers(self, setting: Setting) -> int:
        return setting["data_tokens"]

    @property
    @override
    def chance(self) -> float:
        return 1 / (self.vocab_size - 2)

    def places(self, draw: Draw, context: int, data_tokens: int) -> np.ndarray:
        """The positions of the data tokens in the context, (N, data_tokens) int64, ascending."""
        return np.arange(data_tokens)[None].repeat(draw.count, axis=0)

    @override
    def generate(self, draw: Draw, *, length: int, data_tokens: int) -> Examples:
        data = draw.below("data", data_tokens, self.vocab_size - 2) + 1  # (N, data_tokens)
        context = length - data_tokens
        inputs, targets = blank(draw.count, length)
        np.put_along_axis(inputs, self.places(draw, context, data_tokens), data, axis=1)
        inputs[:, context:] = self.vocab_size - 1
        targets[:, context:] = data
        return inputs, targets

    def slices(self, batch: Batch) -> dict[str, Tensor]:
        """Positions back to the data token, and its number among them, rounded up to powers of two: (B, L) each."""
        inputs, asked = batch.inputs, self.mask(batch.targets)
        is_data = (inputs != BLANK) & (inputs != self.vocab_size - 1)
        rows, sources = is_data.nonzero(as_tuple=True)
        number = is_data.cumsum(dim=1) - 1  # (B, L)
        where = torch.zeros_like(inputs).index_put((rows, number[rows, sources]), sources)  # (B, L), by number
        rank = (asked.cumsum(dim=1) - 1).clamp(min=0)  # (B, L)
        positions = torch.arange(inputs.shape[1], device=inputs.device)
        return {"distance": power_of_two(positions - where.gather(1, rank)), "number": power_of_two(rank + 1)}


@dataclass(kw_only=True, eq=False)
class SelectiveCopying(Copying):
    """Data tokens at random places among blanks, then a marker for each, asking for the next one.

    Selective copying as in Gu and Dao 2023 (Mamba, table 1 and appendix E.1): only a token's value shows whether
    it matters, so fixed convolutions fail. With ``length`` 10, ``data_tokens`` 3 and ``vocab_size`` 6 (0 the blank
    ``_``, 5 the marker ``?``), one example is::

        inputs     _  2  _  _  4  4  _  ?  ?  ?
        targets    .  .  .  .  .  .  .  2  4  4

    ``length`` counts blanks, data tokens and markers. The blank, which the paper calls noise, is no data token, and
    every set of places is equally likely. ``vocab_size`` counts the blank and the marker.

    In mad-lab's generator (Poli et al. 2024; ``variant`` "mad") a single marker is followed by blanks, at which the
    data tokens are the targets; each earlier blank is put before a data token drawn uniformly, so that the context ends
    with the last data token::

        inputs     _  2  _  4  4  ?  _  _  _
        targets    .  .  .  .  .  .  2  4  4

    Args:
        variant: None for the task of the Mamba paper, "mad" for mad-lab's.
    """

    name = "selective_copying"

    variant: Literal["mad"] | None = None

    @override
    def check_setting(self, setting: Setting) -> None:
        super().check_setting(setting)
        if self.variant == "mad" and setting["length"] < (least := 2 * setting["data_tokens"] + 2):
            rule = "must leave room for the marker and a blank besides data tokens and answers"
            raise UserError("length", setting["length"], rule, f"Set length={least} or more")

    @override
    def places(self, draw: Draw, context: int, data_tokens: int) -> np.ndarray:
        if self.variant is None:
            return draw.subset("places", data_tokens, context)
        before = draw.below("places", context - 1 - data_tokens, data_tokens)  # (N, blanks), the data token after each
        blanks = (before[..., None] <= np.arange(data_tokens)).sum(axis=1)  # (N, data_tokens)
        return blanks + np.arange(data_tokens)

    @override
    def generate(self, draw: Draw, *, length: int, data_tokens: int) -> Examples:
        inputs, targets = super().generate(draw, length=length, data_tokens=data_tokens)
        if self.variant == "mad":
            inputs[:, -data_tokens:] = BLANK
            inputs[:, -data_tokens - 1] = self.vocab_size - 1
        return inputs, targets
