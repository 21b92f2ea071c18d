"""Costs against the context, and the power of the context with which each of them grows."""

from dataclasses import dataclass, field

from seqlab.benchmarks.exponents import Exponent, fit


@dataclass
class Point:
    """One model at one context and batch. Times are medians; what cannot be measured here is ``None``."""

    context: int  # positions that were read before the token
    prefill_ms: float  # of the whole context, for all sequences of the batch
    prefill_repetitions: int
    prefill_tokens_per_second: float
    token_ms: float  # of one step of all sequences, launched operation by operation
    token_repetitions: int
    tokens_per_second: float
    graph_token_ms: float | None  # of the same step, launched as one CUDA graph
    graph_tokens_per_second: float | None
    state_bytes: int  # recurrent state, or keys and values, of one sequence
    peak_bytes: int | None  # of prefill and one step for the whole batch, beyond the weights


COLUMNS = {
    "prefill_ms": "prefill time",
    "token_ms": "time a token",
    "graph_token_ms": "time a token, CUDA graph",
    "state_bytes": "state bytes",
    "peak_bytes": "peak memory",
}
"""Columns of ``Point`` to which exponents are fitted, with their titles."""


@dataclass
class Curve:
    """One model at one batch against the context."""

    model: str
    architecture: str
    batch: int
    points: list[Point] = field(default_factory=list)
    ended: str | None = None  # why it does not reach the longest context asked for
    no_graph: str | None = None  # why there is no CUDA graph of its step

    @property
    def exponents(self) -> dict[str, Exponent | None]:
        """The fitted exponent of each column."""
        contexts = [point.context for point in self.points]
        return {name: fit(contexts, [getattr(point, name) for point in self.points]) for name in COLUMNS}

    def exponent(self, column: str) -> str:
        """A column's exponent as text."""
        return "-" if (found := self.exponents[column]) is None else str(found)
