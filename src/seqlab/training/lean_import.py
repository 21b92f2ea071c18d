"""torchmetrics without what only its plots and its metrics of texts and pictures need.

Where matplotlib and transformers are installed it imports them at once: 1.5 s of the 3.2 s that all imports take
together at every start, for metrics that no data set here could use.
"""

from collections.abc import Iterator
from contextlib import contextmanager

try:
    from lightning_utilities.core.imports import RequirementCache
except ImportError:  # torchmetrics' own affair; it then starts as slowly as it does by itself
    RequirementCache = None


@contextmanager
def as_if_not_installed(*packages: str) -> Iterator[None]:
    """torchmetrics, first imported in here, takes ``packages`` for not installed, and says so if asked for them."""
    if RequirementCache is None:
        yield
        return
    is_met = RequirementCache.__bool__

    def is_met_without(self: RequirementCache) -> bool:
        if (self.requirement or "").startswith(packages):
            self.available, self.message = False, f"{self.requirement} is not imported, to start sooner"
        return is_met(self)

    RequirementCache.__bool__ = is_met_without
    try:
        yield
    finally:
        RequirementCache.__bool__ = is_met
