"""Mixers side by side in one layer: each reads the same input, and their outputs are added.

Falcon-H1 has attention beside Mamba-2 (arXiv:2507.22448, figure 1): it concatenates the heads of both before one output
projection, which is the sum of a projection for each. Symbols: B batch, L length, D model width.
"""

from collections.abc import Iterable
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from seqlab.models.layer import Read, prefill_mixer, rounds_input, step_mixer
from seqlab.models.protocols import Mixer, StepsAlike


class Parallel(nn.Module):
    """The sum of mixers; a pattern joins their names with a plus sign. Its state is the list of theirs.

    Args:
        mixers: two or more.
    """

    def __init__(self, mixers: Iterable[Mixer]):
        super().__init__()
        self.mixers = nn.ModuleList(mixers)
        self.rounds_input = all(map(rounds_input, self.mixers))
        if all(isinstance(mixer, StepsAlike) for mixer in self.mixers):
            self.steps_alike = True

    def forward(self, x: Tensor, seq_idx: Tensor | None = None) -> Tensor:
        """(B, L, D) to (B, L, D); ``seq_idx`` (B, L) as ``Packs`` has it."""
        packed = {} if seq_idx is None else {"seq_idx": seq_idx}
        return reduce(torch.add, [mixer(x, **packed) for mixer in self.mixers])

    def initial_state(self, batch_size: int) -> list[Any]:
        """The states of all, before the first position."""
        return [mixer.initial_state(batch_size) for mixer in self.mixers]

    def carried_state(self, batch_size: int, length: int) -> list[Any]:
        """Those of all, as ``Carries`` has it."""
        return [mixer.carried_state(batch_size, length) for mixer in self.mixers]

    def _advance(self, read: Read, x: Tensor, states: list[Any]) -> tuple[Tensor, list[Any]]:
        advanced = [read(mixer, x, state) for mixer, state in zip(self.mixers, states, strict=True)]
        return reduce(torch.add, [y for y, _ in advanced]), [state for _, state in advanced]

    def step(self, x: Tensor, state: list[Any]) -> tuple[Tensor, list[Any]]:
        """(B, D) to (B, D)."""
        return self._advance(step_mixer, x, state)

    def prefill(self, x: Tensor, state: list[Any]) -> tuple[Tensor, list[Any]]:
        """(B, L, D) to (B, L, D)."""
        return self._advance(prefill_mixer, x, state)


def side_by_side(mixer: nn.Module) -> list[nn.Module]:
    """The mixers of a ``Parallel``; another part alone."""
    return list(mixer.mixers) if isinstance(mixer, Parallel) else [mixer]
