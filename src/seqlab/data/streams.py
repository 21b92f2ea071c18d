"""Random numbers that depend on a name and an index alone, and the order in which an epoch hands out its items.

All of it comes from the raw 64-bit words of counter-based Philox, whose sequence NumPy guarantees, and from exactly
rounded arithmetic. So a batch can be drawn without drawing those before it, and is the same on every machine.
"""

import hashlib
from functools import lru_cache

import numpy as np


def bits(seed: int, purpose: str, index: int, shape: int | tuple[int, ...], start: int = 0) -> np.ndarray:
    """Independent uniform 64-bit words of the given shape.

    Args:
        seed: of everything that belongs together.
        purpose: what the words are for; different purposes never share any.
        index: which draw for that purpose, from 0.
        shape: of the result; a longer draw begins with the shorter one.
        start: leave out this many times four words.
    """
    name = int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")
    key = np.array([seed % 2**64, name], dtype=np.uint64)
    counter = np.array([start, 0, 0, index], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(shape)


def uniform(seed: int, purpose: str, index: int, shape: int | tuple[int, ...]) -> np.ndarray:
    """Multiples of 2^-53, uniform on [0, 1), in float64; the arguments are those of ``bits``."""
    return (bits(seed, purpose, index, shape) >> np.uint64(11)) * 2.0**-53


def integers(seed: int, purpose: str, index: int, count: int, bound: int) -> np.ndarray:
    """``count`` integers (int64), uniform on [0, bound)."""
    return (uniform(seed, purpose, index, count) * bound).astype(np.int64)


@lru_cache(maxsize=4)
def permutation(seed: int, purpose: str, epoch: int, size: int) -> np.ndarray:
    """The numbers below ``size`` in random order, read-only."""
    order = np.argsort(bits(seed, purpose, epoch, size), kind="stable")
    order.flags.writeable = False
    return order


def epoch_items(index: int, batch_size: int, seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Which items batch number ``index`` holds when every item comes once an epoch, in an order drawn for the epoch.

    Batches follow one another without a gap, so one may end an epoch and begin the next.

    Returns:
        The epoch and the item for each place in the batch, both (B,) int64.
    """
    epochs, places = np.divmod(index * batch_size + np.arange(batch_size), size)
    items = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch
        items[here] = permutation(seed, "order of an epoch", epoch, size)[places[here]]
    return epochs, items
