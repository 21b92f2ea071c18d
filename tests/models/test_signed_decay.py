"""Decays of either sign: Mamba and Mamba-2 against the recurrence written out, and what they are for."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from seqlab.data.probes.state_tracking import Parity
from seqlab.models.mixers import Mamba, Mamba2
from seqlab.models.mixers.signed_decay import running_sign, signed_decay
from support import built_model

BATCH, LENGTH, D = 2, 19, 12
KINDS = {"mamba": (Mamba, {}), "mamba2": (Mamba2, {"n_heads": 4, "n_groups": 2})}
BOTH = pytest.mark.parametrize("kind", KINDS)


def mixer(kind: str) -> Mamba | Mamba2:
    """In float64, with steps from tiny ones to such that the decay is -1 within rounding."""
    torch.manual_seed(0)
    made, settings = KINDS[kind]
    return made(D, d_state=6, dt_min=1e-3, dt_max=10.0, negative_eigenvalues=True, **settings).double()


def inputs() -> Tensor:
    return torch.randn(BATCH, LENGTH, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def recurrence(a: Tensor, entering: Tensor, C: Tensor) -> Tensor:
    """Outputs sum over n of C h (B, L, ...) of h_t = a_t h_{t-1} + entering_t, (B, L, ..., N) each."""
    h, outputs = torch.zeros_like(entering[:, 0]), []
    for t in range(LENGTH):
        h = a[:, t] * h + entering[:, t]
        outputs.append((C[:, t] * h).sum(dim=-1))
    return torch.stack(outputs, dim=1)


def by_the_equations(m: Mamba | Mamba2, x: Tensor) -> Tensor:
    if isinstance(m, Mamba):
        u, z = m.in_proj(x).chunk(2, dim=-1)
        u = m._convolve(u)
        delta, B, C = m._select(u)
        delta = F.softplus(delta + m.dt_proj.bias)
        a = 2 * torch.exp(delta[..., None] * m.A) - 1  # (B, L, E, N)
        y = recurrence(a, (delta * u)[..., None] * B[:, :, None], C[:, :, None]) + m.D * u
        return m.out_proj(y * F.silu(z))
    z, mixed, dt = m._project(x)
    u, B, C = m._select(m._convolve(mixed))
    B, C = (part.repeat_interleave(2, dim=2)[:, :, :, None] for part in (B, C))  # (B, L, H, 1, N)
    dt = F.softplus(dt + m.dt_bias)
    a = 2 * torch.exp(dt * m.A) - 1
    assert a.min() < -0.99 < 0.9 < a.max()
    y = recurrence(a[..., None, None], (dt[..., None] * u)[..., None] * B, C) + m.D[:, None] * u
    return m._leave(y, z)


@BOTH
def test_the_equations_and_their_gradients(kind):
    m, found = mixer(kind), []
    for forward in (m, lambda x: by_the_equations(m, x)):
        x = inputs().requires_grad_()
        y = forward(x)
        found.append((y, *torch.autograd.grad(y.square().sum(), [x, *m.parameters()])))
    for actual, expected in zip(*found, strict=True):
        assert (actual - expected).norm() <= 1e-12 * expected.norm()


@BOTH
@torch.no_grad()
def test_steps_and_parts_are_the_whole(kind):
    m, x = mixer(kind), inputs()
    expected, state = m(x), m.initial_state(BATCH)
    outputs = []
    for t in range(LENGTH):
        y, state = m.step(x[:, t], state)
        outputs.append(y)
    first, middle = m.prefill(x[:, :8], m.initial_state(BATCH))
    second, last = m.prefill(x[:, 8:], middle)
    for actual in (torch.stack(outputs, dim=1), torch.cat([first, second], dim=1)):
        assert (actual - expected).norm() <= 1e-12 * expected.norm()
    assert (last.ssm - state.ssm).norm() <= 1e-12 * state.ssm.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_decay_from_its_sign_and_step(dtype):
    """As 2 exp(l) - 1 in float64, relative to |a| or 1 - |a|, wherever these are far from rounding."""
    log_decay = torch.tensor([-1e-12, -1e-4, -0.1, -0.6, -0.75, -3.0, -12.0], dtype=torch.float64)
    negative, step = signed_decay(log_decay.to(dtype))
    step = step.double()
    eps = torch.finfo(dtype).eps
    expected = torch.tensor([2 * math.expm1(x) + 1 for x in log_decay.tolist()], dtype=torch.float64)
    assert torch.allclose(torch.where(negative, -1, 1) * torch.exp(-step), expected, rtol=0, atol=2 * eps)
    near_one = torch.tensor([2e-12, 2 * math.exp(-12.0)], dtype=torch.float64)  # -log of the first and the last
    assert torch.allclose(step[[0, -1]], near_one, rtol=1e-5, atol=0)
    assert negative.tolist() == [False] * 4 + [True] * 3


def test_the_ends_of_the_range_have_finite_gradients():
    log_decay = torch.tensor([-1e-38, -math.log(2), -50.0, -1e4], requires_grad=True)
    negative, step = signed_decay(log_decay)
    (1 / step + step).sum().backward()
    assert step.isfinite().all() and (step > 0).all() and log_decay.grad.isfinite().all()
    assert (torch.where(negative, -1, 1) * torch.exp(-step)).tolist() == pytest.approx([1, 0, -1, -1], abs=2e-7)


def test_products_of_signs():
    negative = torch.rand(3, 1000, 2, generator=torch.Generator().manual_seed(0)) < 0.7
    expected = torch.where(negative, -1.0, 1.0).cumprod(dim=1)
    assert running_sign(negative, torch.float32).equal(expected)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mamba2", "delta_net"])
@pytest.mark.parametrize("negative", [True, False])
def test_parity_needs_eigenvalues_below_0(model, negative):
    """Grazzi et al. 2024, theorem 1 and table 2: without them a network learns some lengths by heart at best."""
    sizes = {"n_train": None, "epoch_size": 10**6, "n_validation": 1, "n_test": 256, "seed": 0}
    data = Parity(length=12, tests=[{"length": 48}], **sizes)
    setting = f"model.mixers.{model}.negative_eigenvalues={str(negative).lower()}"
    network = built_model(f"model={model}", "size=tiny", "size.n_layers=1", setting, d_input=2, length=12)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for step in range(100):
        batch = data.train_batch(step, 64, 1)
        optimizer.zero_grad()
        data.loss(network(batch.inputs), batch.targets).mean().backward()
        optimizer.step()
    with torch.no_grad():
        batch = next(data.evaluation_batches("length=48", 256))
        right = (network(batch.inputs).argmax(dim=-1) == batch.targets)[data.mask(batch.targets)]
    assert right.float().mean() > 0.75 if negative else right.float().mean() < 0.55
