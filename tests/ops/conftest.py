"""What every test of a kernel uses."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from quick_interpreter import quick_interpreter
from scan_cases import set_chunk
from torch import Tensor

from seqlab.ops import contract, launch


@pytest.fixture(autouse=True)
def _nothing_remembered() -> None:
    """A test may change what an operator otherwise takes as given: how work is cut, where a backend can run."""
    launch.RECORDINGS.clear()
    contract.CHECKED.clear()


@pytest.fixture
def nan_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uninitialised floating-point memory holds NaN, so that an element nobody wrote shows in the result."""

    def filled(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def allocate_filled(*args, **kwargs) -> Tensor:
            tensor = allocate(*args, **kwargs)
            if tensor.is_floating_point():
                with torch.no_grad():
                    tensor.fill_(math.nan)
            return tensor

        return allocate_filled

    for owner, names in (
        (torch, ("empty", "empty_like", "empty_strided")),
        (torch.Tensor, ("new_empty", "new_empty_strided")),
    ):
        for name in names:
            monkeypatch.setattr(owner, name, filled(getattr(owner, name)))


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The selective scan's chunks: 13 positions at (batch, d_inner, d_state) = (2, 5, 3), 40 at N = 1, and 8, the
    fewest, at N = 16."""
    set_chunk(monkeypatch, 400)


@pytest.fixture(autouse=True, scope="session")
def _quick_interpreter() -> Iterator[None]:
    with quick_interpreter():
        yield
