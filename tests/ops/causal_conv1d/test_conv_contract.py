"""What the causal convolution refuses, and which backend it chooses."""

from importlib import import_module

import pytest
import torch
from conv_cases import PACKAGE, make_arguments

from seqlab.ops import causal_conv1d, causal_conv1d_update, triton_support
from seqlab.ops.causal_conv1d import cpu, resolve_backend, torch_conv, triton


class TestContract:
    @pytest.mark.parametrize(
        ("name", "shape", "expected"),
        [
            ("x", (2, 0, 3), r"\(batch, length, d_inner\) = \(at least 1, at least 1, at least 1\)"),
            ("x", (2, 3), r"\(batch, length, d_inner\) = \(at least 1, at least 1, at least 1\)"),
            ("weight", (4, 3), r"\(d_inner, d_conv\) = \(3, at least 1\)"),
            ("weight", (3, 0), r"\(d_inner, d_conv\) = \(3, at least 1\)"),
            ("bias", (4,), r"\(d_inner\) = \(3\)"),
            ("initial_state", (2, 4, 3), r"\(batch, d_conv - 1, d_inner\) = \(2, 3, 3\)"),
        ],
    )
    def test_a_wrong_shape_is_named(self, name, shape, expected):
        arguments = make_arguments(2, 5, 3, 4) | {name: torch.zeros(shape)}
        spelled = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        with pytest.raises(ValueError, match=rf"^{name} has shape \({spelled}\), expected {expected}$"):
            causal_conv1d(**arguments)

    def test_an_unknown_activation_is_refused(self):
        arguments = make_arguments(2, 5, 3, 4)
        with pytest.raises(ValueError, match=r"^activation is 'relu', expected None or 'silu'$"):
            causal_conv1d(**arguments, activation="relu")
        state, x = arguments["initial_state"], arguments["x"][:, 0]
        with pytest.raises(ValueError, match=r"^activation is 'relu', expected None or 'silu'$"):
            causal_conv1d_update(state, x, arguments["weight"], activation="relu")

    def test_every_tensor_or_none_is_float64(self):
        arguments = make_arguments(2, 5, 3, 4)
        with pytest.raises(ValueError, match=r"^weight is torch.float32 but x is torch.float64: expected"):
            causal_conv1d(**arguments | {"weight": arguments["weight"].float()})

    @pytest.mark.parametrize(
        ("seq_idx", "message"),
        [
            (
                torch.zeros(2, 4, dtype=torch.int32),
                r"seq_idx has shape \(2, 4\), expected \(batch, length\) = \(2, 5\)",
            ),
            (torch.zeros(2, 5), r"seq_idx is torch.float32, expected one of torch.int8, "),
            (torch.zeros(2, 5, dtype=torch.int32, device="meta"), r"seq_idx is on meta, expected cpu like x"),
        ],
    )
    def test_a_wrong_seq_idx_is_named(self, seq_idx, message):
        with pytest.raises(ValueError, match=rf"^{message}"):
            causal_conv1d(**make_arguments(2, 5, 3, 4), seq_idx=seq_idx)

    def test_a_step_holds_the_same_contract(self):
        weight = torch.zeros(3, 4)
        with pytest.raises(ValueError, match=r"^state has shape \(2, 4, 3\), expected .* = \(2, 3, 3\)$"):
            causal_conv1d_update(torch.zeros(2, 4, 3), torch.zeros(2, 3), weight)
        with pytest.raises(ValueError, match=r"^x has shape \(2, 5, 3\), expected \(batch, d_inner\) = "):
            causal_conv1d_update(torch.zeros(2, 3, 3), torch.zeros(2, 5, 3), weight)


class TestBackendChoice:
    def test_auto_takes_the_first_that_can_run(self, monkeypatch):
        assert resolve_backend("auto", "cpu", torch.float32) == "cpu"
        assert resolve_backend("auto", "cpu", torch.float64) == "torch_conv"
        assert resolve_backend("auto", "meta", torch.float32) == "torch_conv"
        monkeypatch.setattr(torch_conv, "why_unavailable", lambda device, dtype: "no day for it")
        assert resolve_backend("auto", "cpu", torch.float64) == "reference"

    def test_auto_never_takes_the_interpreter(self, monkeypatch):
        monkeypatch.setattr(triton, "why_unavailable", lambda device, dtype: None)
        monkeypatch.setattr(cpu, "why_unavailable", lambda device, dtype: "not today")
        assert resolve_backend("triton", "cpu", torch.float32) == "triton"
        assert resolve_backend("auto", "cpu", torch.float32) == "torch_conv"

    @pytest.mark.parametrize(("module", "asks", "package"), [(cpu, cpu, "numba"), (triton, triton_support, "triton")])
    def test_a_missing_package_is_named(self, monkeypatch, module, asks, package):
        monkeypatch.setattr(asks, "find_spec", lambda name: None)
        reason = module.why_unavailable(torch.device("cpu"), torch.float32)
        assert reason == f"the package {package} is not installed"
        assert resolve_backend("auto", "cpu", torch.float32) in ("cpu", "torch_conv")

    def test_an_unknown_name_lists_the_names(self):
        with pytest.raises(ValueError, match=r"causal_conv1d has no backend 'fast'; choose one of auto, .*reference"):
            causal_conv1d(**make_arguments(1, 1, 1, 1), backend="fast")

    def test_a_backend_that_cannot_run_says_why(self, monkeypatch):
        monkeypatch.setattr(torch_conv, "why_unavailable", lambda device, dtype: "not today")
        with pytest.raises(ValueError, match=r"backend='torch_conv' cannot run on cpu .*\(torch_conv: not today\)"):
            causal_conv1d(**make_arguments(1, 1, 1, 1), backend="torch_conv")

    def test_the_function_and_its_package_share_a_name(self):
        assert import_module("seqlab.ops").causal_conv1d is import_module(PACKAGE).causal_conv1d
