"""Mamba-3 against its equations, step by step; what it begins with, what its settings refuse, what it costs."""

import math

import pytest
import torch
from torch import Tensor, nn

from seqlab.errors import UserError
from seqlab.models.counting import training_flops
from seqlab.models.mixers import Mamba3
from seqlab.models.mixers.mamba3 import rational
from seqlab.training.optim import decays
from support import built_model

D_MODEL, HEADS, D_STATE, LENGTH = 12, 4, 10, 35


def drawn(**settings) -> Mamba3:
    """A mixer in float64 whose every parameter matters, steps large enough for angles to pass 2 pi."""
    torch.manual_seed(0)
    mixer = Mamba3(D_MODEL, n_heads=HEADS, d_state=D_STATE, dt_min=0.5, dt_max=2.0, **settings).double()
    with torch.no_grad():
        for name, parameter in mixer.named_parameters():
            if name != "dt_bias":
                parameter.add_(torch.randn_like(parameter) * 0.5)
    return mixer


def rotation(theta: Tensor, size: int, *, halves: bool) -> Tensor:
    """The matrix that turns pairs of channels by theta[i]: 2 i and 2 i + 1, or i and i + size // 2 of MIMO."""
    matrix = torch.eye(size, dtype=theta.dtype)
    for i, angle in enumerate(theta):
        pair = [i, i + size // 2] if halves else [2 * i, 2 * i + 1]
        cos, sin = angle.cos(), angle.sin()
        matrix[pair[0], pair], matrix[pair[1], pair] = torch.stack((cos, -sin)), torch.stack((sin, cos))
    return matrix


def activated(act: str, v: Tensor) -> Tensor:
    if act == "softplus":
        return torch.log1p(torch.exp(v))
    return 1 + v if v >= 0 else 1 / (1 - v)


def normalised(v: Tensor, weight: Tensor) -> Tensor:
    return v / torch.sqrt((v * v).mean() + 1e-5) * weight


def naive(mixer: Mamba3, sequence: Tensor, act: str, pairs: int) -> Tensor:
    """The outputs (L, D) for one sequence (L, D): every head, position and rank alone, as the paper has the step."""
    inner, groups, rank = mixer.d_inner, mixer.n_groups, mixer.mimo_rank
    channels, width = inner // HEADS, rank * groups * D_STATE
    ones = torch.ones(1, HEADS, channels, dtype=torch.float64)
    x_of, z_of, o_of = (mixer.mimo_x, mixer.mimo_z, mixer.mimo_o) if rank > 1 else (ones, ones, ones)
    biases = mixer.map_bias.view(2, rank, HEADS, D_STATE)
    theta = torch.zeros(HEADS, pairs, dtype=torch.float64)
    h = torch.zeros(HEADS, channels, D_STATE, dtype=torch.float64)
    before = [[(torch.zeros(channels).double(), torch.zeros(D_STATE).double())] * rank] * HEADS
    outputs = []
    for u in sequence:
        widths = [inner, inner, width, width, HEADS, HEADS, HEADS, pairs]
        z, x, B, C, dd_dt, dd_A, trap, angle = (mixer.in_proj.weight @ u).split(widths)
        B, C = B.view(rank, groups, D_STATE), C.view(rank, groups, D_STATE)
        y = []
        for head in range(HEADS):
            own, group = slice(head * channels, (head + 1) * channels), head * groups // HEADS
            delta = activated("softplus", dd_dt[head] + mixer.dt_bias[head])
            decay = -max(activated(act, dd_A[head]), torch.tensor(1e-4, dtype=torch.float64))
            right = 1 / (1 + torch.exp(-trap[head]))
            theta[head] = (theta[head] + delta * math.pi * angle.tanh()) % (2 * math.pi)
            turn = rotation(theta[head], D_STATE, halves=rank > 1)
            alpha = torch.exp(delta * decay)
            h[head] = alpha * h[head]
            now = []
            for r in range(rank):
                k = turn @ (normalised(B[r, group], mixer.norm_weight[0]) + biases[0, r, head])
                now.append((x[own] * x_of[r, head], k))
                h[head] += (1 - right) * delta * alpha * torch.outer(*before[head][r])
                h[head] += right * delta * torch.outer(*now[r])
            summed = torch.zeros(channels, dtype=torch.float64)
            for r in range(rank):
                q = turn @ (normalised(C[r, group], mixer.norm_weight[1]) + biases[1, r, head])
                gate = z[own] * z_of[r, head]
                y_r = (h[head] @ q + mixer.D[head] * now[r][0]) * gate / (1 + torch.exp(-gate))
                summed += y_r * o_of[r, head]
            before = [*before[:head], now, *before[head + 1 :]]
            y.append(summed)
        outputs.append(mixer.out_proj.weight @ torch.cat(y))
    return torch.stack(outputs)


@pytest.mark.parametrize(
    ("act", "rope_fraction", "pairs", "n_groups", "rank"),
    [
        ("rational", 0.5, 2, 1, 1),
        ("softplus", 0.5, 2, 4, 1),
        ("rational", 1.0, 5, 2, 1),
        ("rational", 0.5, 2, 2, 3),
        ("softplus", 1.0, 5, 1, 2),
    ],
)
@torch.no_grad()
def test_whole_and_steps_are_the_equations(act, rope_fraction, pairs, n_groups, rank):
    mixer = drawn(act=act, rope_fraction=rope_fraction, n_groups=n_groups, mimo_rank=rank)
    first_decay = 2 * mixer.d_inner + 2 * rank * n_groups * D_STATE + HEADS
    mixer.in_proj.weight[first_decay] *= (
        2e4  # one head's decay reaches the least, and thousands, of which sums lose digits
    )
    x = torch.randn(2, LENGTH, D_MODEL, dtype=torch.float64)
    expected = torch.stack([naive(mixer, sequence, act, pairs) for sequence in x])
    torch.testing.assert_close(mixer(x), expected, rtol=1e-9, atol=1e-9)
    y, state = mixer.prefill(x[:, :9], mixer.initial_state(2))
    outputs = [y]
    for t in range(9, LENGTH):
        y, state = mixer.step(x[:, t], state)
        outputs.append(y[:, None])
    torch.testing.assert_close(torch.cat(outputs, dim=1), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rank", [1, 2])
def test_gradients_are_those_of_the_equations(rank):
    mixer, x = drawn(mimo_rank=rank), torch.randn(1, 7, D_MODEL, dtype=torch.float64)
    direction = torch.linspace(-1, 2, 7 * D_MODEL, dtype=torch.float64).view(1, 7, D_MODEL)

    def loss(*parameters: Tensor) -> Tensor:
        names = dict(zip(dict(mixer.named_parameters()), parameters, strict=True))
        return (torch.func.functional_call(mixer, names, (x,)) * direction).sum()

    parameters = [p.detach().requires_grad_() for p in mixer.parameters()]
    assert torch.autograd.gradcheck(loss, parameters, fast_mode=True)


@torch.no_grad()
def test_angles_keep_their_precision_over_a_long_sequence():
    """In float32 a sum of 2,000 steps would be off by 1e-4."""
    torch.manual_seed(0)
    double, x = drawn(), torch.randn(1, 2000, D_MODEL)
    single = drawn().float()
    single.load_state_dict(double.state_dict())
    double.load_state_dict(single.state_dict())
    found, expected = single(x), double(x.double())
    assert (found - expected).norm() < 3e-6 * expected.norm()


def test_what_decides_the_start():
    mixer = Mamba3(64, n_heads=64, dt_min=0.01, dt_max=0.02)
    step = nn.functional.softplus(mixer.dt_bias)
    assert 0.0099 < step.min() < 0.012
    assert 0.018 < step.max() < 0.0201
    assert (mixer.map_bias == 1).all()
    decayed = {name for name, parameter in mixer.named_parameters() if decays(parameter, lookups=True)}
    assert decayed == {"in_proj.weight", "out_proj.weight"}
    mixer = Mamba3(64, n_heads=4, mimo_rank=4)
    assert (mixer.map_bias == 1).all()
    for name, first in {"mimo_x": 1 / 4, "mimo_z": 1, "mimo_o": 1 / 4}.items():  # as mamba_ssm has them
        scales = getattr(mixer, name)
        assert scales.shape == (4, 4, 32)
        assert (scales == first).all()


def test_the_rational_act_is_smooth_where_its_forms_meet():
    v = torch.tensor([-3.0, -1e-6, 0.0, 1e-6, 1.0, 3.0], dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(rational(v), torch.tensor([0.25, 1 / (1 + 1e-6), 1, 1 + 1e-6, 2, 4]).double())
    (slope,) = torch.autograd.grad(rational(v).sum(), v)
    torch.testing.assert_close(slope, torch.tensor([1 / 16, 1, 1, 1, 1, 1]).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rope_fraction": 0.7}, r"^rope_fraction=0\.7: must be 0\.5 or 1"),
        ({"d_state": 3}, r"^d_state=3: leaves no pair .* rope_fraction=0\.5\.\nSet d_state=4 or more"),
        ({"d_state": 1, "rope_fraction": 1.0}, r"^d_state=1: leaves no pair .*\nSet d_state=2 or more"),
        ({"n_heads": 5}, r"^n_heads=5: must divide expand \* d_model = 32"),
        ({"n_groups": 3}, r"^n_groups=3: must divide n_heads = 4"),
        ({"dt_min": 1.0}, r"^dt_min=1\.0: is above the largest, dt_max=0\.1"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Mamba3(16, **{"n_heads": 4} | settings)


@pytest.mark.parametrize("rank", [1, 3])
def test_training_flops_are_the_products_and_the_recurrence(rank, d_model=32, length=9):
    class Features:
        def __init__(self):
            self.length = length

        def train_batch(self, index, batch_size, seed):
            return torch.zeros(1, length, d_model), torch.zeros(1, length, d_model)

        def loss(self, outputs, targets):
            return outputs - targets

    inner, channels, d_state = 2 * d_model, 2 * d_model // HEADS, 16
    in_proj = 2 * length * d_model * (2 * inner + 2 * rank * d_state + 3 * HEADS + d_state // 4)
    out_proj = 2 * length * inner * d_model
    decay, each_rank = channels * d_state + 2, 4 * channels * d_state
    recurrence = length * HEADS * (decay + rank * each_rank)
    at_once = length * HEADS * 2 * (channels + d_state)  # gamma k^T q, and that times x
    if rank > 1:  # of every pair of ranks, with the inputs of this position and of the one before
        at_once *= 2 * rank**2
    expected = 2 * in_proj + 3 * (out_proj + recurrence + at_once)  # nothing asks for the gradient of the data
    mixer = Mamba3(d_model, n_heads=HEADS, d_state=d_state, mimo_rank=rank)
    assert training_flops(mixer, Features()) == expected


def test_the_hybrid_is_five_to_one_without_positions():
    model = built_model("model=hybrid_mamba3", "size.d_model=16", "size.n_heads=2", d_input=11, length=9)
    kinds = [type(layer.mixer.inner).__name__ for layer in model.layers]
    assert kinds == ["Mamba3"] * 5 + ["Attention"]
    assert not model.layers[-1].mixer.inner.rotary
