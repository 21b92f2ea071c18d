"""minGRU against the paper's equations (arXiv:2410.01201, section 3.1), position by position in float64."""

import pytest
import torch
from torch import Tensor

from seqlab.models.mixers import MinGRU
from seqlab.models.mixers.min_gru import gate_over_step

D_MODEL, LENGTH = 6, 37


def mixer(backend: str = "auto", **settings) -> MinGRU:
    torch.manual_seed(0)
    return MinGRU(D_MODEL, scan_backend=backend, **settings)


def written_out(mixer: MinGRU, x: Tensor) -> Tensor:
    """h_t = (1 - z_t) h_{t-1} + z_t h~_t from h_0 = 0, with the mixer's own maps."""
    k, candidate = mixer.in_proj(x).chunk(2, dim=-1)
    if mixer.positive_candidate:
        candidate = torch.where(candidate >= 0, candidate + 0.5, 1 / (1 + torch.exp(-candidate)))
    z, h, states = 1 / (1 + torch.exp(-k)), torch.zeros_like(k[:, 0]), []
    for t in range(x.shape[1]):
        h = (1 - z[:, t]) * h + z[:, t] * candidate[:, t]
        states.append(h)
    return mixer.out_proj(torch.stack(states, dim=1))


def close(actual: Tensor, expected: Tensor, tolerance: float = 2e-6) -> None:
    """Within rounding of the largest number about."""
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("scale", [1, 30])
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("backend", ["reference", "parallel", "cpu"])
def test_values_and_gradients(backend, positive, scale):
    """At scale 30 the gates stand between e^-50 and 1 - e^-50."""
    ours = mixer(backend, positive_candidate=positive)
    exact = mixer(positive_candidate=positive).double()
    x = scale * torch.randn(2, LENGTH, D_MODEL)
    inputs, inputs64 = x.clone().requires_grad_(), x.double().requires_grad_()
    y, expected = ours(inputs), written_out(exact, inputs64)
    close(y, expected)
    dy = torch.randn_like(expected)
    gradients = torch.autograd.grad(y, [inputs, *ours.parameters()], dy.float())
    for actual, wanted in zip(
        gradients, torch.autograd.grad(expected, [inputs64, *exact.parameters()], dy), strict=True
    ):
        close(actual, wanted)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["triton", "parallel"])
def test_on_a_gpu(backend):
    ours, exact = mixer(backend).cuda(), mixer().double().cuda()
    x = torch.randn(4, 513, D_MODEL, device="cuda")
    inputs, inputs64 = x.clone().requires_grad_(), x.double().requires_grad_()
    y, expected = ours(inputs), written_out(exact, inputs64)
    close(y, expected, 1e-5)
    (gradient,) = torch.autograd.grad(y.sum(), inputs)
    close(gradient, torch.autograd.grad(expected.sum(), inputs64)[0], 1e-5)


def test_the_gate_over_the_step_at_both_ends():
    """Values and slopes of sigmoid(k) / softplus(k), from k where both are below float32's range to far open."""
    k = torch.tensor([-200.0, -90, -60, -20, -1, 0, 1, 19, 21, 500, 1e6])
    wide = k.double().requires_grad_()
    step = torch.logaddexp(wide, torch.zeros(()))  # softplus without a threshold
    exact = torch.where(step > 1e-6, -torch.expm1(-step) / step.clamp(min=1e-300), 1 - step / 2)
    (slope,) = torch.autograd.grad(exact.sum(), wide)
    k.requires_grad_()
    value = gate_over_step(k)
    torch.testing.assert_close(value, exact.float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.autograd.grad(value.sum(), k)[0], slope.float(), rtol=1e-5, atol=3e-7)


@torch.no_grad()
def test_the_state_is_h_itself():
    """The hidden state after the last position, the same size at every length."""
    ours = mixer().eval()
    x = torch.randn(2, LENGTH, D_MODEL)
    for length in (1, LENGTH):
        y, state = ours.prefill(x[:, :length], ours.initial_state(2))
        assert state.shape == (2, 2 * D_MODEL, 1)
        close(ours.out_proj(state[..., 0]), y[:, -1])
