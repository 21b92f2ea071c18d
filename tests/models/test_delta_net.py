"""DeltaNet and its gated forms: against the papers' equations written out, and what their settings do."""

import pytest
import torch
from torch import Tensor

from seqlab.errors import UserError
from seqlab.models.mixers import DeltaNet, delta_net

D, H, LENGTH, BATCH = 12, 2, 9, 2
KINDS = {
    "delta_net": {},
    "gated_delta_net": {"decay": "head", "gate": "silu", "expand_k": 0.75, "expand_v": 1.5},
    "kimi_delta": {"decay": "channel", "gate": "sigmoid"},
    "gated_delta_net2": {"decay": "channel", "beta": "channel", "gate": "sigmoid", "expand_v": 1.5},
}


def mixer(name: str, **settings) -> DeltaNet:
    torch.manual_seed(0)
    return DeltaNet(D, n_heads=H, **KINDS[name] | settings).double()


def inputs() -> Tensor:
    return torch.randn(BATCH, LENGTH, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def by_the_equations(m: DeltaNet, x: Tensor, largest_beta: float) -> Tensor:
    """One sequence x (L, D), head after head and position after position."""
    K, V, w = m.d_key, m.d_value, m.in_proj.weight
    by_channel = m.beta_by == "channel"
    n_betas, n_writes = (K, V) if by_channel else (1, 0)
    widths = torch.tensor([H * K, H * K, H * V, H * n_betas, H * n_writes])
    ends = widths.cumsum(0).tolist()
    decays, gates = (ends[-1], ends[-1] + m.d_decay), (ends[-1] + m.d_decay, len(w))
    mixed = x @ w[: ends[2]].T
    padded = torch.cat([torch.zeros(3, ends[2], dtype=x.dtype), mixed])
    mixed = sum(m.conv_weight[:, i] * padded[i : i + LENGTH] for i in range(4))
    mixed = mixed * sigmoid(mixed)
    beta = largest_beta * sigmoid(x @ w[ends[2] : ends[3]].T).unflatten(1, (H, n_betas))
    write = sigmoid(x @ w[ends[3] : ends[4]].T).unflatten(1, (H, V)) if by_channel else beta
    a, z = x @ w[slice(*decays)].T, x @ w[slice(*gates)].T
    if m.n_decays > 1:
        a, z = a @ m.decay_proj.weight.T, z @ m.gate_proj.weight.T + m.gate_proj.bias
    outputs = []
    for h in range(H):
        q, k = (mixed[:, start + h * K : start + (h + 1) * K] for start in (0, ends[0]))
        q, k = (part / part.norm(dim=1, keepdim=True) for part in (q, k))
        v = mixed[:, ends[1] + h * V : ends[1] + (h + 1) * V]
        S, rows = torch.zeros(V, K, dtype=x.dtype), []  # the papers' S, (V, K)
        for t in range(LENGTH):
            if m.n_decays:
                own = slice(h * m.n_decays, (h + 1) * m.n_decays)
                S = S * torch.exp(-torch.exp(m.A_log[h]) * torch.log(1 + torch.exp(a[t, own] + m.dt_bias[own])))
            S = S @ (torch.eye(K, dtype=x.dtype) - torch.outer(beta[t, h] * k[t], k[t]))
            S = S + torch.outer(write[t, h] * v[t], k[t])
            rows.append(S @ q[t])
        y = torch.stack(rows)
        y = y / torch.sqrt(y.square().mean(dim=1, keepdim=True) + 1e-5) * m.norm.weight
        gate = z[:, h * V : (h + 1) * V]
        outputs.append(y * {"none": 1, "silu": gate * sigmoid(gate), "sigmoid": sigmoid(gate)}[m.gate])
    return torch.cat(outputs, dim=1) @ m.out_proj.weight.T


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("negative", [False, True])
@torch.no_grad()
def test_the_equations_of_the_papers(name, negative, monkeypatch):
    monkeypatch.setattr(delta_net, "SMALLEST", 0.0)  # which the papers do not have
    m, x = mixer(name, negative_eigenvalues=negative), inputs()
    m.norm.weight.uniform_(0.5, 1.5)  # ones at the start, which would hide where they act
    expected = torch.stack([by_the_equations(m, row, 2.0 if negative else 1.0) for row in x])
    assert (m(x) - expected).norm() <= 1e-12 * expected.norm()


@pytest.mark.parametrize("name", KINDS)
def test_its_backends_agree(name):
    x, found = inputs(), []
    for backend in ("chunked", "reference"):
        m = mixer(name, scan_backend=backend)
        leaf = x.clone().requires_grad_()
        y = m(leaf)
        found.append((y, *torch.autograd.grad(y.square().sum(), [leaf, *m.parameters()])))
    for actual, expected in zip(*found, strict=True):
        assert (actual - expected).norm() <= 1e-11 * expected.norm()


def test_decays_begin_in_the_range():
    m = DeltaNet(D, n_heads=H, decay="channel", gate="sigmoid", dt_min=0.01, dt_max=0.02, A_min=2.0, A_max=3.0)
    rates, steps = m.A_log.exp(), torch.nn.functional.softplus(m.dt_bias)
    assert 2.0 <= rates.min() <= rates.max() <= 3.0
    assert 0.0099 <= steps.min() <= steps.max() <= 0.0201


@pytest.mark.parametrize("wrong", [{"dt_min": 0.2}, {"A_min": 20.0}])
def test_a_range_has_two_ends(wrong):
    with pytest.raises(UserError, match="is above the largest"):
        DeltaNet(D, n_heads=H, **wrong)
