"""Batches made ahead of their steps by a thread of their own, so that the device need not wait for them."""

import threading
from collections.abc import Callable
from queue import SimpleQueue
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
        self.make, self.numbers = make, range(first, end)
        self._gpu = torch.cuda.current_device() if device.type == "cuda" else None
        self._ready: SimpleQueue[Batch | BaseException] = SimpleQueue()
        self._room = threading.Semaphore(AHEAD)
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closed = True
        self._room.release()
        self._thread.join()

    def take(self) -> Batch:
        """The next batch, as soon as it is made; never asked for more often than there are batches."""
        batch = self._ready.get()
        self._room.release()
        if isinstance(batch, BaseException):
            raise batch
        return batch

    def _work(self) -> None:
        try:
            if self._gpu is not None:
                torch.cuda.set_device(self._gpu)  # a thread begins on the machine's first
            for number in self.numbers:
                self._room.acquire()
                if self._closed:
                    return
                self._ready.put(self._made(number))
        except BaseException as error:
            self._ready.put(error)

    def _made(self, number: int) -> Batch:
        batch = self.make(number)
        return batch if self._gpu is None else Batch(*(part.pin_memory() for part in batch))
