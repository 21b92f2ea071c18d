"""What the causal convolution refuses, and which backend it chooses."""

import pytest
import torch
from conv_cases import make_arguments

from seqlab.ops import causal_conv1d, causal_conv1d_update, triton_support
from seqlab.ops.causal_conv1d import cpu, resolve_backend, triton


class TestContract:
    def test_an_unknown_activation_is_refused(self):
        arguments = make_arguments(2, 5, 3, 4)
        with pytest.raises(ValueError, match=r"^activation is 'relu', expected None or 'silu'$"):
            causal_conv1d(**arguments, activation="relu")
        state, x = arguments["initial_state"], arguments["x"][:, 0]
        with pytest.raises(ValueError, match=r"^activation is 'relu', expected None or 'silu'$"):
            causal_conv1d_update(state, x, arguments["weight"], activation="relu")

    def test_a_step_holds_the_same_contract(self):
        weight = torch.zeros(3, 4)
        with pytest.raises(ValueError, match=r"^state has shape \(2, 4, 3\), expected .* = \(2, 3, 3\)$"):
            causal_conv1d_update(torch.zeros(2, 4, 3), torch.zeros(2, 3), weight)
        with pytest.raises(ValueError, match=r"^x has shape \(2, 5, 3\), expected \(batch, d_inner\) = "):
            causal_conv1d_update(torch.zeros(2, 3, 3), torch.zeros(2, 5, 3), weight)


class TestBackendChoice:
    @pytest.mark.parametrize(("module", "asks", "package"), [(cpu, cpu, "numba"), (triton, triton_support, "triton")])
    def test_a_missing_package_is_named(self, monkeypatch, module, asks, package):
        monkeypatch.setattr(asks, "find_spec", lambda name: None)
        reason = module.why_unavailable(torch.device("cpu"), torch.float32)
        assert reason == f"the package {package} is not installed"
        assert resolve_backend("auto", "cpu", torch.float32) in ("cpu", "torch_conv")
