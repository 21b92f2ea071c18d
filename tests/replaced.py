"""Parts of a library in whose place quicker ones stand while the tests run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest


class Replaced:
    def __init__(self) -> None:
        self.own: list[tuple[Any, str, Any]] = []

    @contextmanager
    def by(self, parts: Mapping[tuple[Any, str], Any]) -> Iterator[None]:
        """By a part for each owner and name that it has there."""
        with pytest.MonkeyPatch.context() as patch:
            for (owner, name), part in parts.items():
                self.own.append((owner, name, getattr(owner, name)))
                patch.setattr(owner, name, part)
            yield
            self.own.clear()

    @contextmanager
    def not_now(self) -> Iterator[None]:
        """The library's own parts, for a while."""
        with pytest.MonkeyPatch.context() as patch:
            for part in self.own:
                patch.setattr(*part)
            yield
