"""What every test of a kernel uses."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor


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
