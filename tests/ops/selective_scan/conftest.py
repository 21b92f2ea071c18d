"""What the tests of the selective scan share."""

import pytest
from scan_cases import set_chunk


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 13 positions at (batch, d_inner, d_state) = (2, 5, 3), 40 at N = 1, and 8, the fewest, at N = 16."""
    set_chunk(monkeypatch, 400)
