"""Keys and values that attention keeps of the positions so far: of all of them, or of the last W alone.

Symbols: B batch, L new positions, H heads, P width of a head, C positions that a buffer has room for, W window.
"""

from typing import NamedTuple

import torch
from torch import Tensor

SPARE = 256
"""Positions of room, at least, that a cache grows by."""


class Cache(NamedTuple):
    """Keys and values of all positions so far, or of the last W in a ring, where position t stands at t mod W.

    What comes next is written into the room that there is, so a cache can be continued once: what is continued from it
    again takes the same room. A buffer grows by an eighth, so that a position costs the same however many there are.
    """

    k: Tensor  # (B, H, C, P); those of ``filled`` come first
    v: Tensor
    length: int
    window: int | None

    def extended(self, k: Tensor, v: Tensor) -> "Cache":
        """The cache with the keys and values (B, H, L, P) of the next L positions, of which a window keeps the last."""
        end = self.length + k.shape[2]
        window = self.window or end
        first = max(self.length, end - window)  # of the new positions that are kept
        place = first % window
        unwrapped = min(end - first, window - place)  # those before the ring's end; the others stand at its start
        buffers = []
        for buffer, new in ((self.k, k), (self.v, v)):
            buffer = with_room(buffer, self.length, min(end, window), new, most=self.window)
            new = new[:, :, first - self.length :]
            buffer[:, :, place : place + unwrapped] = new[:, :, :unwrapped]
            if unwrapped < end - first:
                buffer[:, :, : end - first - unwrapped] = new[:, :, unwrapped:]
            buffers.append(buffer)
        return Cache(*buffers, end, self.window)

    @property
    def filled(self) -> tuple[Tensor, Tensor]:
        """Keys and values that are kept, each (B, H, length, P) or (B, H, min(length, W), P) in the ring's order."""
        count = self.length if self.window is None else min(self.length, self.window)
        return self.k[:, :, :count], self.v[:, :, :count]

    def before(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values that a window keeps, oldest first, and behind them those (B, H, L, P) of what is next."""
        if self.length == 0:
            return k, v
        oldest = self.length % self.window if self.length > self.window else 0
        return tuple(
            torch.cat((old[:, :, oldest:], old[:, :, :oldest], new), dim=2)
            for old, new in zip(self.filled, (k, v), strict=True)
        )


def with_room(buffer: Tensor, length: int, needed: int, new: Tensor, most: int | None = None) -> Tensor:
    """The buffer (B, H, C, P), or a larger one with its first ``length`` positions, if ``needed`` do not fit into it.

    At the start it takes the dtype of what is new, and just the room that is needed; later it grows by an eighth, to
    ``most`` positions at most.
    """
    if needed <= buffer.shape[2]:
        return buffer
    capacity = needed + max(SPARE, needed // 8) if length else needed
    capacity = capacity if most is None else min(capacity, most)
    larger = new.new_empty(*new.shape[:2], capacity, new.shape[3])
    larger[:, :, :length] = buffer[:, :, :length]
    return larger
