"""Copying: give back, in order, the data tokens of a sequence; at its start, or scattered over it (selective)."""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

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

    The markers are all alike and no answer is ever an input, so each must come from the memory of the data tokens
    and of how many markers there have been.

    Args:
        vocab_size: the blank, the marker and at least two data tokens.
        data_tokens: how many to copy.
    """

    name = "copying"
    difficulty = ("length", "data_tokens")

    vocab_size: Annotated[int, Field(ge=4)]
    data_tokens: PositiveInt

    def check_setting(self, setting: Setting) -> None:
        length, tokens = setting["length"], setting["data_tokens"]
        if length < 2 * tokens:
            rule = f"{tokens} data tokens and {tokens} markers do not fit into length {length}"
            remedy = f"Set length={2 * tokens} or more, or fewer data tokens"
            raise UserError("data_tokens", tokens, rule, remedy)

    def answers(self, setting: Setting) -> int:
        return setting["data_tokens"]

    @property
    def chance(self) -> float:
        return 1 / (self.vocab_size - 2)

    def places(self, draw: Draw, context: int, data_tokens: int) -> np.ndarray:
        """Where the data tokens stand in the context, (N, data_tokens) int64, ascending."""
        return np.arange(data_tokens)[None].repeat(draw.count, axis=0)

    def generate(self, draw: Draw, *, length: int, data_tokens: int) -> Examples:
        data = draw.below("data", data_tokens, self.vocab_size - 2) + 1  # (N, data_tokens)
        context = length - data_tokens
        inputs, targets = blank(draw.count, length)
        np.put_along_axis(inputs, self.places(draw, context, data_tokens), data, axis=1)
        inputs[:, context:] = self.vocab_size - 1
        targets[:, context:] = data
        return inputs, targets

    def slices(self, batch: Batch) -> dict[str, Tensor]:
        """Positions back to the data token, and its number among them; both rounded up to powers of two."""
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

    Selective copying as in Gu and Dao 2023 (Mamba, table 1 and appendix E.1): which tokens matter is known by what
    they are alone, so fixed convolutions fail. With ``length`` 10, ``data_tokens`` 3 and ``vocab_size`` 6 (0 the
    blank ``_``, 5 the marker ``?``), one example is::

        inputs     _  2  _  _  4  4  _  ?  ?  ?
        targets    .  .  .  .  .  .  .  2  4  4

    ``length`` counts blanks, data tokens and markers. The blank, which the paper calls noise, is no data token, and
    every set of places is equally likely. ``vocab_size`` counts the blank and the marker.

    As mad-lab's generator draws it (Poli et al. 2024; ``variant`` "mad"), one marker asks for all, at the blanks after
    it, and each blank before it stands before a data token drawn evenly, so that the last of these ends the context::

        inputs     _  2  _  4  4  ?  _  _  _
        targets    .  .  .  .  .  .  2  4  4

    Args:
        variant: None for that of the Mamba paper, or mad-lab's.
    """

    name = "selective_copying"

    variant: Literal["mad"] | None = None

    def check_setting(self, setting: Setting) -> None:
        super().check_setting(setting)
        if self.variant == "mad" and setting["length"] < (least := 2 * setting["data_tokens"] + 2):
            rule = "must leave room for the marker and a blank besides data tokens and answers"
            raise UserError("length", setting["length"], rule, f"Set length={least} or more")

    def places(self, draw: Draw, context: int, data_tokens: int) -> np.ndarray:
        if self.variant is None:
            return draw.subset("places", data_tokens, context)
        before = draw.below("places", context - 1 - data_tokens, data_tokens)  # (N, blanks), each before which token
        blanks = (before[..., None] <= np.arange(data_tokens)).sum(axis=1)  # (N, data_tokens)
        return blanks + np.arange(data_tokens)

    def generate(self, draw: Draw, *, length: int, data_tokens: int) -> Examples:
        inputs, targets = super().generate(draw, length=length, data_tokens=data_tokens)
        if self.variant == "mad":
            inputs[:, -data_tokens:] = BLANK
            inputs[:, -data_tokens - 1] = self.vocab_size - 1
        return inputs, targets
