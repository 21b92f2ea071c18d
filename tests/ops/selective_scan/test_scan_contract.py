"""What the selective scan refuses, and which backend it chooses."""

from importlib import import_module

import pytest
import torch
from comparison import (
    skip_unless_available,
)
from scan_cases import PACKAGE, every_backend, make_arguments

from seqlab.ops import selective_scan, selective_state_update
from seqlab.ops.selective_scan import cpu, parallel, resolve_backend, triton


class TestContract:
    @pytest.mark.parametrize(
        ("name", "shape", "expected"),
        [
            ("u", (2, 5), r"\(batch, length, d_inner\) = \(at least 1, at least 1, at least 1\)"),
            ("u", (2, 0, 3), r"\(batch, length, d_inner\) = \(at least 1, at least 1, at least 1\)"),
            ("delta", (2, 5, 4), r"\(batch, length, d_inner\) = \(2, 5, 3\)"),
            ("A", (4, 3), r"\(d_inner, d_state\) = \(3, at least 1\)"),
            ("A", (3, 0), r"\(d_inner, d_state\) = \(3, at least 1\)"),
            ("B", (2, 5, 3), r"\(batch, length, d_state\) = \(2, 5, 4\)"),
            ("C", (2, 4, 5), r"\(batch, length, d_state\) = \(2, 5, 4\)"),
            ("D", (3, 1), r"\(d_inner\) = \(3\)"),
            ("z", (1, 5, 3), r"\(batch, length, d_inner\) = \(2, 5, 3\)"),
            ("delta_bias", (5,), r"\(d_inner\) = \(3\)"),
            ("initial_state", (2, 4, 3), r"\(batch, d_inner, d_state\) = \(2, 3, 4\)"),
        ],
    )
    def test_a_wrong_shape_is_named(self, name, shape, expected):
        arguments = make_arguments(2, 5, 3, 4) | {name: torch.zeros(shape)}
        spelled = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        with pytest.raises(ValueError, match=rf"^{name} has shape \({spelled}\), expected {expected}$"):
            selective_scan(**arguments)

    def test_every_tensor_or_none_is_float64(self):
        arguments = make_arguments(2, 5, 3, 4, dtype=torch.float32)
        with pytest.raises(ValueError, match=r"^A is torch.float64 but u is torch.float32: expected"):
            selective_scan(**arguments | {"A": arguments["A"].double()})

    def test_integers_are_refused(self):
        arguments = make_arguments(2, 5, 3, 4)
        with pytest.raises(ValueError, match=r"^u is torch.int64, expected one of torch.float64"):
            selective_scan(**arguments | {"u": arguments["u"].long()})

    def test_another_device_is_refused(self):
        arguments = make_arguments(2, 5, 3, 4)
        with pytest.raises(ValueError, match=r"^B is on meta, expected cpu like u$"):
            selective_scan(**arguments | {"B": arguments["B"].to("meta")})

    def test_the_state_has_the_accumulation_dtype(self):
        arguments = make_arguments(2, 5, 3, 4, dtype=torch.bfloat16)
        half = {"initial_state": arguments["initial_state"].bfloat16()}
        with pytest.raises(ValueError, match=r"^initial_state is torch.bfloat16, expected torch.float32$"):
            selective_scan(**arguments | half)

    @pytest.mark.parametrize(
        ("seq_idx", "message"),
        [
            (
                torch.zeros(2, 4, dtype=torch.int32),
                r"seq_idx has shape \(2, 4\), expected \(batch, length\) = \(2, 5\)",
            ),
            (torch.zeros(2, 5), r"seq_idx is torch.float32, expected one of torch.int8, "),
            (torch.zeros(2, 5, dtype=torch.int32, device="meta"), r"seq_idx is on meta, expected cpu like u"),
        ],
    )
    def test_a_wrong_seq_idx_is_named(self, seq_idx, message):
        with pytest.raises(ValueError, match=rf"^{message}"):
            selective_scan(**make_arguments(2, 5, 3, 4), seq_idx=seq_idx)

    def test_a_step_holds_the_same_contract(self):
        x, state = torch.zeros(2, 3), torch.zeros(2, 3, 4)
        A, B = torch.zeros(3, 4), torch.zeros(2, 4)
        with pytest.raises(ValueError, match=r"^C has shape \(2, 5\), expected \(batch, d_state\) = \(2, 4\)$"):
            selective_state_update(state, x, x, A, B, torch.zeros(2, 5))
        with pytest.raises(ValueError, match=r"^state has shape \(2, 3, 5\), expected .* = \(2, 3, 4\)$"):
            selective_state_update(torch.zeros(2, 3, 5), x, x, A, B, B)
        with pytest.raises(ValueError, match=r"^state is torch.float16, expected torch.float32$"):
            selective_state_update(state.half(), x.half(), x.half(), A, B, B)


class TestBackendChoice:
    def test_auto_takes_the_first_that_can_run(self, monkeypatch):
        assert resolve_backend("auto", "cpu", torch.float32) == "cpu"
        assert resolve_backend("auto", "cpu", torch.float64) == "parallel"
        assert resolve_backend("auto", "meta", torch.float32) == "parallel"
        monkeypatch.setattr(parallel, "why_unavailable", lambda device, dtype: "no day for it")
        assert resolve_backend("auto", torch.device("cpu"), torch.float64) == "reference"

    def test_auto_never_takes_the_interpreter(self, monkeypatch):
        monkeypatch.setattr(triton, "why_unavailable", lambda device, dtype: None)
        monkeypatch.setattr(cpu, "why_unavailable", lambda device, dtype: "not today")
        assert resolve_backend("triton", "cpu", torch.float32) == "triton"
        assert resolve_backend("auto", "cpu", torch.float32) == "parallel"

    @every_backend
    def test_a_name_means_itself(self, backend):
        skip_unless_available(PACKAGE, backend, "cpu", torch.float32)
        assert resolve_backend(backend, "cpu", torch.float32) == backend

    def test_an_unknown_name_lists_the_names(self):
        with pytest.raises(ValueError, match=r"selective_scan has no backend 'fast'; choose one of auto, .*reference"):
            selective_scan(**make_arguments(1, 1, 1, 1), backend="fast")

    def test_a_backend_that_cannot_run_says_why(self, monkeypatch):
        monkeypatch.setattr(parallel, "why_unavailable", lambda device, dtype: f"no {dtype} on {device.type}")
        message = r"backend='parallel' cannot run on cpu with torch.float64 \(parallel: no torch.float64 on cpu\)"
        with pytest.raises(ValueError, match=message):
            selective_scan(**make_arguments(1, 1, 1, 1), backend="parallel")

    def test_the_function_and_its_package_share_a_name(self):
        assert callable(import_module("seqlab.ops").selective_scan)
        assert import_module(PACKAGE).selective_scan is selective_scan
