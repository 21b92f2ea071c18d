"""M²RNN's recurrence against the equations row after row, its layer written out, how it begins."""

import pytest
import torch
from torch import Tensor

from seqlab.errors import UserError
from seqlab.models.mixers import M2RNN
from seqlab.ops import m2rnn

BATCH, HEADS, KEYS, VALUES, LENGTH, D = 2, 3, 5, 4, 21, 12


def by_the_equations(q: Tensor, k: Tensor, v: Tensor, f: Tensor, W: Tensor) -> Tensor:
    """Row after row, head after head, position after position."""
    rows = []
    for b in range(BATCH):
        heads = []
        for n in range(HEADS):
            H, outputs = torch.zeros(KEYS, VALUES, dtype=W.dtype), []
            for t in range(LENGTH):
                Z = torch.tanh(H @ W[n] + torch.outer(k[b, t], v[b, t, n]))
                H = f[b, t, n] * H + (1 - f[b, t, n]) * Z
                outputs.append(q[b, t] @ H)
            heads.append(torch.stack(outputs))
        rows.append(torch.stack(heads, dim=1))
    return torch.stack(rows)


@torch.no_grad()
def test_the_layer_written_out():
    torch.manual_seed(0)
    m = M2RNN(D, d_key=KEYS, d_value=VALUES, expand=1.0).double()
    assert m.n_heads == HEADS
    for parameter in (m.state_weight, m.D, m.norm_weight):  # the identity and ones at the start
        parameter.uniform_(0.5, 1.5)
    x = torch.randn(BATCH, LENGTH, D, dtype=torch.float64)
    mixed, a, z = (x @ m.in_proj.weight.T).split([2 * KEYS + D, HEADS, D], dim=2)
    padded = torch.cat([torch.zeros(BATCH, 3, 2 * KEYS + D, dtype=x.dtype), mixed], dim=1)
    mixed = sum(m.conv_weight[:, i] * padded[:, i : i + LENGTH] for i in range(4))
    mixed = mixed / (1 + torch.exp(-mixed))
    q, k, v = mixed[..., :KEYS], mixed[..., KEYS : 2 * KEYS], mixed[..., 2 * KEYS :].unflatten(2, (HEADS, VALUES))
    f = torch.exp(-torch.exp(m.A_log) * torch.log(1 + torch.exp(a + m.dt_bias)))
    recurrent = by_the_equations(q, k, v, f, m.state_weight)
    torch.testing.assert_close(m2rnn(q, k, v, f, m.state_weight, backend="reference"), recurrent)
    y = (recurrent + m.D * v).flatten(2)
    y = y * z / (1 + torch.exp(-z))
    y = y / torch.sqrt(y.square().mean(dim=2, keepdim=True) + 1e-5) * m.norm_weight
    torch.testing.assert_close(m(x), y @ m.out_proj.weight.T, rtol=1e-11, atol=1e-12)


def test_it_begins_as_published():
    m = M2RNN(64)
    assert m.n_heads == 5  # 84 at the paper's 1,024
    assert torch.equal(m.state_weight, torch.eye(16).expand(5, 16, 16))
    assert torch.equal(m.D, torch.ones(5, 16))
    assert 0 < m.A_log.exp().min() <= m.A_log.exp().max() <= 16
    step = torch.nn.functional.softplus(m.dt_bias)
    assert 0.00099 <= step.min() <= step.max() <= 0.101


@pytest.mark.parametrize("wrong", [{"dt_min": 0.2}, {"A_min": 20.0}])
def test_a_range_has_two_ends(wrong):
    with pytest.raises(UserError, match="is above the largest"):
        M2RNN(D, **wrong)
