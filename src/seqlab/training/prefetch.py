"""Batches made ahead of their steps by a thread of their own, so that the device need not wait for them."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import torch

from seqlab.data import Batch

AHEAD = 3
"""Batches that are ready or being made, at most."""


class Prefetch:
    """Batches ``first`` to ``end - 1`` in order; batch number i is a function of i alone, whoever makes it and when.

    While entered, a thread makes them, at most ``AHEAD`` before they are taken and none past the last. What goes
    wrong there is raised where the batch is taken. For a GPU, batches come in pinned memory, from which they are
    copied while the device computes.

    Args:
        make: given its number, a batch.
        first: the number of the batch that is taken first.
        end: the number after that of the last batch.
        device: where the batches go.
    """

    def __init__(self, make: Callable[[int], Batch], first: int, end: int, *, device: torch.device):
        self.make, self.numbers = make, iter(range(first, end))
        self._gpu = torch.cuda.current_device() if device.type == "cuda" else None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._pending: deque[Future[Batch]] = deque()

    def __enter__(self) -> Self:
        for _ in range(AHEAD):
            self._submit()
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def take(self) -> Batch:
        """The next batch, as soon as it is made; never asked for more often than there are batches."""
        batch = self._pending.popleft().result()
        self._submit()
        return batch

    def _submit(self) -> None:
        number = next(self.numbers, None)
        if number is not None:
            self._pending.append(self._pool.submit(self._made, number))

    def _made(self, number: int) -> Batch:
        if self._gpu is None:
            return self.make(number)
        torch.cuda.set_device(self._gpu)  # a thread begins on the machine's first
        return Batch(*(part.pin_memory() for part in self.make(number)))
