"""Keys and values that attention keeps of the positions so far: of all of them, or of the last W alone.

Symbols: B batch, L new positions, H heads, P width of a head, C positions that a buffer has room for, W window.
Both caches write into the room that there is, so one can be continued once: what is continued from it again takes the
same room. A buffer grows by an eighth, so that a position costs the same however many there are.
"""

from typing import NamedTuple

import torch
from torch import Tensor

SPARE = 256
"""Positions of room, at least, that a cache grows by."""


class Cache(NamedTuple):
    """Keys and values of all positions so far."""

    k: Tensor  # (B, H, C, P), the first ``length`` of the C positions filled
    v: Tensor
    length: int

    def extended(self, k: Tensor, v: Tensor) -> "Cache":
        """The cache with the keys and values (B, H, L, P) of the next L positions."""
        end = self.length + k.shape[2]
        k_buffer, v_buffer = (with_room(old, self.length, end, new) for old, new in ((self.k, k), (self.v, v)))
        k_buffer[:, :, self.length : end] = k
        v_buffer[:, :, self.length : end] = v
        return Cache(k_buffer, v_buffer, end)

    @property
    def filled(self) -> tuple[Tensor, Tensor]:
        """Keys and values of the positions so far, each (B, H, length, P)."""
        return self.k[:, :, : self.length], self.v[:, :, : self.length]


class WindowCache(NamedTuple):
    """Keys and values of the last W positions: a ring, where position t stands at t mod W."""

    k: Tensor  # (B, H, C, P), C at most W
    v: Tensor
    length: int
    window: int

    def extended(self, k: Tensor, v: Tensor) -> "WindowCache":
        """The cache with the keys and values (B, H, L, P) of the next L positions, those that last alone."""
        end = self.length + k.shape[2]
        first = max(self.length, end - self.window)  # of the new positions that are kept
        place = first % self.window
        unwrapped = min(end - first, self.window - place)  # those before the ring's end; the others stand at its start
        k_buffer, v_buffer = (
            with_room(old, self.length, min(end, self.window), new, most=self.window)
            for old, new in ((self.k, k), (self.v, v))
        )
        for buffer, new in ((k_buffer, k), (v_buffer, v)):
            new = new[:, :, first - self.length :]
            buffer[:, :, place : place + unwrapped] = new[:, :, :unwrapped]
            buffer[:, :, : end - first - unwrapped] = new[:, :, unwrapped:]
        return WindowCache(k_buffer, v_buffer, end, self.window)

    @property
    def filled(self) -> tuple[Tensor, Tensor]:
        """Keys and values that are kept, each (B, H, min(length, W), P), in the ring's order."""
        count = min(self.length, self.window)
        return self.k[:, :, :count], self.v[:, :, :count]

    def before(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values that are kept, oldest first, and behind them those (B, H, L, P) of the next positions."""
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
