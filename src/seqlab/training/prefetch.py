"""Batches made ahead of their steps by a separate thread, so that the device need not wait for them."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import torch

from seqlab.data import Batch

AHEAD = 3
"""The largest number of batches that are ready or being made."""


class Prefetch:
    """Batches ``first`` to ``end - 1`` in order, made by a thread while the context is entered.

    The thread is at most ``AHEAD`` batches ahead; its exceptions are raised in ``take``. For a GPU, batches are in
    pinned memory, from which they are copied while the device computes.

    Args:
        make: returns the batch of a number, a function of the number alone.
        first: the number of the first batch.
        end: one past the number of the last batch.
        device: where the batches will be used.
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
        """The next batch, after waiting until it is made; callable once for each batch."""
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
        torch.cuda.set_device(self._gpu)  # a new thread starts with device 0
        return Batch(*(part.pin_memory() for part in self.make(number)))
