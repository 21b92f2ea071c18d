"""M²RNN: its recurrence against the equations one position after another, its layer written out, its gradient."""

import pytest
import torch
from torch import Tensor

from seqlab.errors import UserError
from seqlab.models.mixers import M2RNN, m2rnn_cell
from seqlab.models.mixers.m2rnn_cell import Inputs, m2rnn_flops, m2rnn_scan, m2rnn_update

BATCH, HEADS, KEYS, VALUES, LENGTH = 2, 3, 5, 4, 21
SEQ_IDX = torch.tensor([[3] * 5 + [0] + [1] * 15, [2] * 21])


@pytest.fixture(autouse=True)
def short_spans(monkeypatch):
    monkeypatch.setattr(m2rnn_cell, "SPAN", 4)


def drawn(length: int = LENGTH, dtype: torch.dtype = torch.float64) -> tuple[Inputs, Tensor, Tensor]:
    """The tensors of a sequence, W and a state."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    keys, per_head = (BATCH, length, KEYS), (BATCH, length, HEADS)
    inputs = Inputs(normal(*keys), normal(*keys), normal(*per_head, VALUES), normal(*per_head).sigmoid())
    return inputs, normal(HEADS, VALUES, VALUES), normal(BATCH, HEADS, KEYS, VALUES)


def by_the_equations(inputs: Inputs, W: Tensor, state: Tensor | None = None, *, seq_idx=None) -> tuple[Tensor, Tensor]:
    """Row after row, head after head, position after position."""
    rows, states = [], []
    for b in range(BATCH):
        heads, after = [], []
        for n in range(HEADS):
            H = torch.zeros(KEYS, VALUES, dtype=W.dtype) if state is None else state[b, n]
            outputs = []
            for t in range(inputs.q.shape[1]):
                if seq_idx is not None and t > 0 and seq_idx[b, t] != seq_idx[b, t - 1]:
                    H = torch.zeros_like(H)
                Z = torch.tanh(H @ W[n] + torch.outer(inputs.k[b, t], inputs.v[b, t, n]))
                H = inputs.f[b, t, n] * H + (1 - inputs.f[b, t, n]) * Z
                outputs.append(inputs.q[b, t] @ H)
            heads.append(torch.stack(outputs))
            after.append(H)
        rows.append(torch.stack(heads, dim=1))
        states.append(torch.stack(after))
    return torch.stack(rows), torch.stack(states)


def results(scan, inputs: Inputs, W: Tensor, state: Tensor | None, **settings) -> list[Tensor]:
    """y, the state after it, and the gradient of both along one direction by every tensor."""
    leaves = [t.clone().requires_grad_() for t in (*inputs, W, *([] if state is None else [state]))]
    outputs = scan(Inputs(*leaves[:4]), *leaves[4:], **settings)
    loss = sum((t * torch.linspace(-1, 2, t.numel(), dtype=t.dtype).view_as(t)).sum() for t in outputs)
    return [t.detach() for t in outputs] + list(torch.autograd.grad(loss, leaves))


def close(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-12) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).norm() <= tolerance * other.norm()


class TestCell:
    @pytest.mark.parametrize("packed", [False, True])
    @pytest.mark.parametrize("goes_on", [False, True])
    def test_values_states_and_gradients(self, goes_on, packed):
        inputs, W, state = drawn()
        given = (inputs, W, state if goes_on else None)
        settings = {"seq_idx": SEQ_IDX if packed else None}
        close(results(m2rnn_scan, *given, **settings), results(by_the_equations, *given, **settings))

    def test_pieces_and_steps_give_what_the_whole_gives(self):
        inputs, W, state = drawn()
        whole, expected = by_the_equations(inputs, W, state)
        first, state = m2rnn_scan(Inputs(*(t[:, :9] for t in inputs)), W, state)
        outputs = [first]
        for t in range(9, 15):
            y, state = m2rnn_update(Inputs(*(part[:, t] for part in inputs)), W, state)
            outputs.append(y[:, None])
        y, state = m2rnn_scan(Inputs(*(t[:, 15:] for t in inputs)), W, state)
        close([torch.cat([*outputs, y], dim=1), state], [whole, expected])

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
    def test_in_other_dtypes_and_under_autocast(self, dtype, tolerance):
        inputs, W, state = drawn(dtype=torch.float32)
        inputs = Inputs(*(t.to(dtype) for t in inputs[:3]), inputs.f)
        with torch.autocast("cpu", torch.bfloat16):
            y, after = m2rnn_scan(inputs, W, state)
        assert (y.dtype, after.dtype) == (dtype, torch.float32)
        expected, last = by_the_equations(Inputs(*(t.double() for t in inputs)), W.double(), state.double())
        close([y.double()], [expected], tolerance)
        close([after.double()], [last], 1e-6)

    def test_the_gradient_by_each_state_is_clipped(self):
        """One number a state, of which none is forgotten or entered: without a bound the first gets 1 + 1 + ... + 1."""
        ones = torch.ones(1, 10, 1, dtype=torch.float64)
        state = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64, requires_grad=True)
        for clip, expected in ((None, 10.0), (100.0, 10.0), (2.5, 2.5)):
            inputs = Inputs(ones, 0 * ones, ones[..., None], ones)
            y, _ = m2rnn_scan(inputs, torch.ones(1, 1, 1, dtype=torch.float64), state, gradient_clip=clip)
            (gradient,) = torch.autograd.grad(y.sum(), state)
            assert gradient.item() == expected

    def test_without_a_gradient_nothing_is_kept(self):
        inputs, W, state = drawn()
        y, after = m2rnn_scan(inputs, W, state)
        assert not y.requires_grad
        assert not after.requires_grad

    def test_flops_of_one_position_by_hand(self):
        """K = 2, V = 3: H W 18 and 12, k v^T, + and tanh 18, 1 - f, two products and + 19, H^T q 6 and 3."""
        assert m2rnn_flops(1, 1, 1, 2, 3) == 30 + 18 + 19 + 9


D = 12


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
    y = (by_the_equations(Inputs(q, k, v, f), m.state_weight)[0] + m.D * v).flatten(2)
    y = y * z / (1 + torch.exp(-z))
    y = y / torch.sqrt(y.square().mean(dim=2, keepdim=True) + 1e-5) * m.norm_weight
    close([m(x)], [y @ m.out_proj.weight.T])


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
