"""mLSTM: its cell against the equations one position after another, its layer written out, what its gates may be."""

import math

import pytest
import torch
from torch import Tensor

from seqlab.models.mixers import MLSTM
from seqlab.models.mixers.mlstm_cell import CellState, Inputs, mlstm_flops, mlstm_scan, mlstm_update, reference

BATCH, HEADS, KEYS, VALUES, LENGTH = 2, 3, 5, 7, 77
SEQ_IDX = torch.tensor([[3] * 5 + [0] + [1] * 71, [2] * 77])


def drawn(length: int = LENGTH, dtype: torch.dtype = torch.float64) -> tuple[Inputs, CellState]:
    """Gates of both signs, of which the input's reach 20, and sizes of what is read on both sides of 1."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    per_head = BATCH, length, HEADS
    heads = normal(*per_head, KEYS), normal(*per_head, KEYS), normal(*per_head, VALUES)
    inputs = Inputs(*heads, 5 * normal(*per_head) - 1, torch.nn.functional.logsigmoid(2 * normal(*per_head)))
    state = CellState(normal(BATCH, HEADS, KEYS, VALUES), normal(BATCH, HEADS, KEYS), 5 * normal(BATCH, HEADS))
    return inputs, state


def cut(inputs: Inputs, start: int, end: int) -> Inputs:
    return Inputs(*(t[:, start:end] for t in inputs))


def unscaled(state: CellState) -> list[Tensor]:
    """C and n themselves, which are the same whatever m is."""
    scale = state.m.double().exp()
    return [scale[..., None, None] * state.C, scale[..., None] * state.n]


def results(scan, inputs: Inputs, state: CellState | None, **settings) -> list[Tensor]:
    """h, the state after it, and the gradient of all of these along one direction by every tensor but m."""
    inputs = Inputs(*(t.clone().requires_grad_() for t in inputs))
    state = state and CellState(state.C.clone().requires_grad_(), state.n.clone().requires_grad_(), state.m)
    h, after = scan(inputs, state, **settings)
    outputs = [h, *unscaled(after)]
    loss = sum((t * torch.linspace(-1, 2, t.numel(), dtype=t.dtype).view_as(t)).sum() for t in outputs)
    return [t.detach() for t in outputs] + list(torch.autograd.grad(loss, [*inputs, *(state or ())[:2]]))


def close(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-11) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).norm() <= tolerance * (other.norm() + 1e-6)  # some are 0


class TestCell:
    @pytest.mark.parametrize("length", [1, 2, LENGTH])
    @pytest.mark.parametrize("backend", ["chunked", "reference"])
    @pytest.mark.parametrize("goes_on", [False, True])
    def test_values_states_and_gradients(self, length, backend, goes_on):
        inputs, state = drawn(length)
        state = state if goes_on else None
        close(results(mlstm_scan, inputs, state, backend=backend), results(reference, inputs, state))

    def test_both_denominators_occur(self):
        """Or the test above would hold for one of them alone."""
        inputs, _ = drawn()
        h, _ = reference(inputs)
        less, _ = reference(inputs._replace(a=inputs.a - 1))  # then h is 1 / e of it where the denominator is 1
        shrunk = (less / h - math.exp(-1)).abs().amax(dim=3) < 1e-9
        assert 0.1 < shrunk.double().mean() < 0.9

    def test_pieces_and_steps_give_what_the_whole_gives(self):
        inputs, state = drawn()
        whole, expected = reference(inputs, state)
        outputs = []
        for start, end in ((0, 1), (1, 40)):
            h, state = mlstm_scan(cut(inputs, start, end), state)
            outputs.append(h)
        for t in range(40, 60):
            h, state = mlstm_update(Inputs(*(part[:, t] for part in inputs)), state)
            outputs.append(h[:, None])
        h, state = mlstm_scan(cut(inputs, 60, LENGTH), state)
        close([torch.cat([*outputs, h], dim=1), *unscaled(state)], [whole, *unscaled(expected)])

    def test_the_maximum_is_the_recurrences(self):
        inputs, state = drawn()
        _, scanned = mlstm_scan(inputs, state)
        m = state.m
        for t in range(LENGTH):
            m = torch.maximum(inputs.log_f[:, t] + m, inputs.a[:, t])
        close([scanned.m], [m])

    def test_packed(self):
        inputs, state = drawn()
        settings = {"seq_idx": SEQ_IDX}
        close(results(mlstm_scan, inputs, state, **settings), results(reference, inputs, state, **settings))
        _, packed = mlstm_scan(inputs, state, **settings)
        _, alone = mlstm_scan(cut(inputs, 6, LENGTH))
        close([packed.m[0]], [alone.m[0]])

    def test_a_packed_sequence_is_not_scaled_by_the_one_before(self):
        """After an input gate of exp(600) one of exp(-1) would be 0 in any dtype."""
        inputs, _ = drawn()
        inputs.a[:, 3] = 600
        expected, _ = reference(inputs, seq_idx=SEQ_IDX)
        h, _ = mlstm_scan(Inputs(*(t.float() for t in inputs)), seq_idx=SEQ_IDX)
        close([h[0, 5:].double()], [expected[0, 5:]], 1e-5)

    @pytest.mark.parametrize("largest", [30.0, 300.0])
    def test_gates_of_all_sizes_in_float32(self, largest):
        """Of input gates up to exp(300), and with nothing kept, or all of it."""
        inputs, _ = drawn(dtype=torch.float32)
        inputs = inputs._replace(a=largest * torch.tanh(inputs.a / 5))
        inputs.log_f[:, ::3], inputs.log_f[:, 1::9] = -1e-7, -1e4
        found, expected = results(mlstm_scan, inputs, None)[:1], results(reference, inputs, None)[:1]
        close([found[0].double()], expected, 1e-5)
        assert all(t.isfinite().all() for t in torch.autograd.grad(self.total(inputs), inputs))

    @staticmethod
    def total(inputs: Inputs) -> Tensor:
        for t in inputs:
            t.requires_grad_()
        return mlstm_scan(inputs)[0].square().sum()

    def test_what_is_kept_is_not_lost_beside_m(self):
        """200 forget gates of exp(-1e-3) after an input gate of exp(2^16), beside which each is no float32."""
        inputs, before = drawn(1, torch.float32)
        inputs = Inputs(*(t.expand(-1, 200, *t.shape[2:]) for t in inputs))
        inputs = inputs._replace(a=torch.full_like(inputs.a, -100.0), log_f=torch.full_like(inputs.log_f, -1e-3))
        before = state = before._replace(m=torch.full_like(before.m, 2.0**16))
        assert torch.equal(state.m + inputs.log_f[:, 0], state.m)
        _, scanned = mlstm_scan(inputs, state)
        for t in range(200):
            _, state = mlstm_update(Inputs(*(part[:, t] for part in inputs)), state)
        for after in (scanned, state):
            scale = (after.m - before.m).double().exp()[..., None, None]
            close([scale * after.C], [math.exp(-0.2) * before.C.double()], 1e-4)

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
    def test_in_other_dtypes(self, dtype, tolerance):
        """Queries, keys and values in the dtype, the gates and the state in float32, as in a model."""
        inputs, state = drawn(dtype=torch.float32)
        inputs = Inputs(*(t.to(dtype) for t in inputs[:3]), *inputs[3:])
        h, after = mlstm_scan(inputs, state)
        assert h.dtype == dtype
        assert {t.dtype for t in after} == {torch.float32}
        close([h.double()], [reference(inputs, state)[0]], tolerance)


D, H = 12, 2


def by_the_equations(m: MLSTM, x: Tensor) -> Tensor:
    """One sequence x (L, D), head after head and position after position: arXiv:2405.04517, equations 19 to 27."""
    K, V = m.d_key, m.d_value
    q, k, v, z, gates = (x @ m.in_proj.weight.T).split([H * K, H * K, H * V, H * V, 2 * H], dim=1)
    gates = 15 * torch.tanh((gates + m.gate_bias) / 15)
    outputs = []
    for h in range(H):
        keys, values = slice(h * K, (h + 1) * K), slice(h * V, (h + 1) * V)
        C, n, rows = torch.zeros(V, K, dtype=x.dtype), torch.zeros(K, dtype=x.dtype), []  # the paper's C, (V, K)
        for t in range(len(x)):
            key, f = k[t, keys] / K**0.5, torch.exp(gates[t, H + h])
            f = f if m.forget_gate == "exp" else f / (1 + f)
            C = f * C + torch.exp(gates[t, h]) * torch.outer(v[t, values], key)
            n = f * n + torch.exp(gates[t, h]) * key
            rows.append(C @ q[t, keys] / max(float((n @ q[t, keys]).abs()), 1.0))
        y = torch.stack(rows)
        y = y - y.mean(dim=1, keepdim=True)
        y = y / torch.sqrt(y.square().mean(dim=1, keepdim=True) + 1e-6) * m.norm_weight[values]
        outputs.append(y / (1 + torch.exp(-z[:, values])))
    return torch.cat(outputs, dim=1) @ m.out_proj.weight.T


@pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])
@torch.no_grad()
def test_the_layer_written_out(forget_gate):
    torch.manual_seed(0)
    m = MLSTM(D, n_heads=H, expand_v=1.5, forget_gate=forget_gate).double()
    m.in_proj.weight.normal_()  # the gates' part is 0 at the start, as is the difference of two scales in the norm
    m.norm_weight.uniform_(0.5, 1.5)
    m.gate_bias.copy_(torch.tensor([0.5, -1.0, 0.5, 2.0]))
    x = torch.randn(2, 9, D, dtype=torch.float64)
    close([m(x)], [torch.stack([by_the_equations(m, row) for row in x])])


def test_its_gates_begin_as_published():
    m = MLSTM(32, n_heads=4)
    assert m.gate_bias.tolist() == [-10.0] * 4 + [3.0, 4.0, 5.0, 6.0]
    assert not m.in_proj.weight[-8:].any()
    assert m.in_proj.weight[:-8].all()


def test_flops_of_one_position_by_hand():
    """K = 2, V = 3: exponentials 3, i v 3, decay 8, k v^T and k 8, sums 8, products with q 8, sums 4, quotients 3."""
    assert mlstm_flops(1, 1, 1, 2, 3) == 3 + 3 + 8 + 8 + 8 + 8 + 4 + 3
