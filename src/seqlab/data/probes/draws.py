"""Random numbers of numbered examples: those of an example depend on its number and not on the batch it is in.

Symbols: N examples, K numbers for each, S places. Everything is 32-bit words of Philox and exactly rounded
arithmetic, as in ``streams``, so that the bytes are the same on every machine.
"""

import decimal
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from seqlab.data.streams import bits

DENSE = 8
"""A draw without replacement sorts all numbers below ``bound`` if that is at most this many times ``width``."""


@dataclass(frozen=True)
class Draw:
    """The random numbers of ``count`` examples from number ``first`` on.

    Args:
        seed, purpose: name the stream; different purposes never share words.
        first, count: the examples, by number.
    """

    seed: int
    purpose: str
    first: int
    count: int

    def words(self, what: str, width: int, attempt: int = 0) -> np.ndarray:
        """Uniform 32-bit words, (N, width) uint32."""
        blocks = -(-width // 8)  # a block is four words of 64 bits
        shape = (self.count, 4 * blocks)
        raw = bits(self.seed, f"{self.purpose} {what}", attempt, shape, start=self.first * blocks)  # (N, 4 blocks)
        return raw.astype("<u8", copy=False).view("<u4")[:, :width]  # (N, width)

    def below(self, what: str, width: int, bound: int, attempt: int = 0) -> np.ndarray:
        """Integers uniform on [0, bound), with ``bound`` at most 2^32: (N, width) int64."""
        scaled = self.words(what, width, attempt).astype(np.uint64)
        scaled *= np.uint64(bound)
        scaled >>= np.uint64(32)
        return scaled.view(np.int64)

    def distinct(self, what: str, width: int, bound: int) -> np.ndarray:
        """Different integers of [0, bound), every ordered choice equally likely: (N, width) int64."""
        if bound <= DENSE * width:
            keys = self.words(what, bound).astype(np.uint64) << np.uint64(32)
            keys |= np.arange(bound, dtype=np.uint64)
            keys.sort(axis=1)
            return (keys[:, :width] & np.uint64(2**32 - 1)).view(np.int64)  # (N, width)
        values, attempt = self.below(what, width, bound), 0
        # of two equal numbers the later is drawn again, whatever they are, so all choices stay equally likely
        while True:
            rows, later = _repeated(values)
            if not len(rows):
                return values
            attempt += 1
            values[rows, later] = self.below(what, width, bound, attempt)[rows, later]

    def subset(self, what: str, width: int, bound: int) -> np.ndarray:
        """Different integers of [0, bound) in ascending order, every choice equally likely: (N, width) int64."""
        if width == bound:
            return np.arange(bound)[None].repeat(self.count, axis=0)
        return np.sort(self.distinct(what, width, bound), axis=1)

    def weighted(self, what: str, width: int, weights: np.ndarray) -> np.ndarray:
        """Different places, drawn successively in proportion to the weights (S,) of those left: (N, width) int64.

        Exponential variables with these rates, in ascending order, are in the order of such draws (Efraimidis and
        Spirakis 2006), so all are drawn at once and sorted.
        """
        top = self.words(what, len(weights)) >> np.uint32(16)
        times = exponentials()[top]  # (N, S)
        times /= weights
        low = (1 << len(weights).bit_length()) - 1
        keys = times.view(np.uint64)  # positive numbers sort as their bits do
        keys &= np.uint64(2**64 - 1 - low)
        keys |= np.arange(len(weights), dtype=np.uint64)
        keys.sort(axis=1)
        return (keys[:, :width] & np.uint64(low)).view(np.int64)  # (N, width)


def _repeated(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the entries of (N, K) that equal an earlier one of their row."""
    shift = values.shape[1].bit_length()
    tagged = np.sort(values << shift | np.arange(values.shape[1]), axis=1)  # (N, K)
    same = tagged[:, 1:] >> shift == tagged[:, :-1] >> shift
    rows, places = np.nonzero(same)
    return rows, tagged[rows, places + 1] & ((1 << shift) - 1)


@lru_cache(maxsize=1)
def exponentials() -> np.ndarray:
    """-log(u) at the midpoints u of 2^16 equal parts of [0, 1], exactly rounded at each step: (65536,) float64."""
    mantissa, exponent = np.frexp((np.arange(2**16) + 0.5) / 2**16)
    s = (mantissa - 1) / (mantissa + 1)  # log m = 2 artanh(s), and |s| is at most 1/3
    square, total = s * s, np.zeros_like(s)
    for odd in range(35, 0, -2):
        total = total * square + 1 / odd
    return -(2 * s * total + exponent * 0.6931471805599453)


@lru_cache(maxsize=32)
def power_law(places: int, alpha: float) -> np.ndarray:
    """Weights x^(alpha - 1) of the places x = 1, 2, ... in decimal arithmetic, rounded once: (places,) float64."""
    with decimal.localcontext(decimal.Context(prec=25)):
        slope = decimal.Decimal(alpha) - 1
        return np.array([float((slope * decimal.Decimal(x).ln()).exp()) for x in range(1, places + 1)])
