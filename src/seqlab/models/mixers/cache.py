"""The cache of attention: keys and values of all positions so far, or of the last W.

Symbols: B batch, L new positions, H heads, P width of a head, C capacity of a buffer in positions, W window.
"""

from typing import NamedTuple

import torch
from torch import Tensor

SPARE = 256
"""Least number of positions that a cache grows by."""


class Cache(NamedTuple):
    """Keys and values of all positions so far, or of the last W in a ring buffer, position t at index t mod W.

    New positions are written into the buffers in place, so a cache can be extended only once: a second extension would
    overwrite the first. A buffer grows by an eighth, so that a position costs amortised O(1).
    """

    k: Tensor  # (B, H, C, P), the first of them in use (``filled``)
    v: Tensor  # the same
    length: int  # positions so far
    window: int | None  # W; None for all positions

    def extended(self, k: Tensor, v: Tensor) -> "Cache":
        """The cache with keys and values (B, H, L, P) of the next L positions appended; a window keeps the last W."""
        end = self.length + k.shape[2]
        window = self.window or end
        first = max(self.length, end - window)  # of the new positions that are kept
        place = first % window
        unwrapped = min(end - first, window - place)  # up to the ring's end; the others wrap around to its start
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
        """The keys and the values kept: (B, H, length, P) each, or (B, H, min(length, W), P) in the ring's order."""
        count = self.length if self.window is None else min(self.length, self.window)
        return self.k[:, :, :count], self.v[:, :, :count]

    def before(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the window, oldest first, followed by the next ones k and v (B, H, L, P)."""
        if self.length == 0:
            return k, v
        oldest = self.length % self.window if self.length > self.window else 0
        return tuple(
            torch.cat((old[:, :, oldest:], old[:, :, :oldest], new), dim=2)
            for old, new in zip(self.filled, (k, v), strict=True)
        )


class LastWindow(NamedTuple):
    """Keys, not rotated, and values of the last M positions of each text, the latest last."""

    k: Tensor  # (B, H, M, P)
    v: Tensor  # the same
    length: Tensor  # (B,) int64, how many of them there are: the others, at first all, are not to be attended to

    def followed_by(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, "LastWindow"]:
        """Keys and values of these positions and the next ones (B, H, L, P), (B, H, M + L, P) each; the next state."""
        most = self.k.shape[2]
        k, v = (torch.cat((old.to(new.dtype), new), dim=2) for old, new in ((self.k, k), (self.v, v)))
        length = (self.length + k.shape[2] - most).clamp(max=most)
        return k, v, LastWindow(k[:, :, k.shape[2] - most :], v[:, :, v.shape[2] - most :], length)


def with_room(buffer: Tensor, length: int, needed: int, new: Tensor, most: int | None) -> Tensor:
    """The buffer (B, H, C, P), or a larger one with its first ``length`` positions if ``needed`` exceeds C.

    The first allocation is exactly ``needed``; later ones add an eighth, up to ``most`` positions (None for any). The
    dtype is that of ``new``.
    """
    if needed <= buffer.shape[2]:
        return buffer
    capacity = needed + max(SPARE, needed // 8) if length else needed
    capacity = capacity if most is None else min(capacity, most)
    larger = new.new_empty(*new.shape[:2], capacity, new.shape[3])
    larger[:, :, :length] = buffer[:, :, :length]
    return larger
