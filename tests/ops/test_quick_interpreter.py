"""The tests' quick interpreter against Triton's own."""

import pytest
import torch
from comparison import skip_unless_available
from quick_interpreter import REPLACED
from scan_cases import PACKAGE, make_arguments

from seqlab.ops import selective_scan


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU runs everything")
def test_every_bit_is_that_of_tritons_own(monkeypatch):
    skip_unless_available(PACKAGE, "triton", "cpu", torch.float32)
    arguments = make_arguments(1, 3, 5, 3, dtype=torch.float32)
    tensors = [tensor.requires_grad_() for tensor in arguments.values()]

    def results() -> list[torch.Tensor]:
        y = selective_scan(**arguments, backend="triton", deterministic=True)
        return [y, *torch.autograd.grad(y.square().sum(), tensors)]

    quick = results()
    with REPLACED.not_now():
        own = results()
    assert all(torch.equal(*pair) for pair in zip(quick, own, strict=True))
