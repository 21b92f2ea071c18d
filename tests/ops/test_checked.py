"""Checks of arguments that are not made again."""

import pytest
import torch

from seqlab.ops import causal_conv1d, contract, selective_scan
from seqlab.ops.contract import checked


def counted():
    def check(tensors, *settings):
        calls.append(settings)
        if len(tensors["x"]) == 0:
            raise ValueError("x is empty")
        return "an answer"

    calls = []
    return check, calls


def test_once_for_each_shape_dtype_and_setting():
    check, calls = counted()
    for x in (torch.zeros(2), torch.ones(2), torch.zeros(3), torch.zeros(2, dtype=torch.float64), torch.zeros(2)):
        for setting in ("a", "b"):
            assert checked(check, {"x": x, "y": None}, setting) == "an answer"
    assert len(calls) == 6
    checked(check, {"x": torch.zeros(2), "y": torch.zeros(1)}, "a")
    checked(check, {"x": torch.zeros(2, device="meta"), "y": None}, "a")
    assert len(calls) == 8


def test_an_error_is_raised_each_time():
    check, calls = counted()
    for _ in range(2):
        with pytest.raises(ValueError, match="x is empty"):
            checked(check, {"x": torch.zeros(0)})
    assert len(calls) == 2


def test_other_kinds_of_tensors_are_checked_each_time():
    class Tagged(torch.Tensor):
        pass

    check, calls = counted()
    for _ in range(2):
        checked(check, {"x": torch.zeros(2).as_subclass(Tagged)})
    assert len(calls) == 2


def test_operators_refuse_what_changed_since():
    u, A, B = torch.zeros(1, 4, 3), torch.zeros(3, 2), torch.zeros(1, 4, 2)
    selective_scan(u, u, A, B, B, backend="reference")
    with pytest.raises(ValueError, match="B has shape"):
        selective_scan(u, u, A, B[:, 1:], B, backend="reference")
    with pytest.raises(ValueError, match=r"seq_idx is torch\.float32"):
        selective_scan(u, u, A, B, B, seq_idx=u[..., 0], backend="reference")
    with pytest.raises(ValueError, match="no backend 'other'"):
        selective_scan(u, u, A, B, B, backend="other")
    causal_conv1d(u, A, backend="reference")
    with pytest.raises(ValueError, match="activation is 'relu'"):
        causal_conv1d(u, A, activation="relu", backend="reference")
    assert len(contract.CHECKED) == 2
