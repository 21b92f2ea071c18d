"""Mamba-2: the same weights give the same logits as the model of ``transformers``; what its settings refuse."""

import inspect

import pytest
import torch
import transformers
from torch import nn

from seqlab.errors import UserError, under
from seqlab.models.counting import scan_backend, training_flops
from seqlab.models.mixers import Mamba, Mamba2
from support import built_model

VOCABULARY, LENGTH, LAYERS, D_MODEL = 97, 75, 3, 48
MIXER = {
    "in_proj.weight": "in_proj.weight",
    "conv_weight": "conv1d.weight",
    "conv_bias": "conv1d.bias",
    "dt_bias": "dt_bias",
    "A_log": "A_log",
    "D": "D",
    "norm.weight": "norm.weight",
    "out_proj.weight": "out_proj.weight",
}
SIZES = pytest.mark.parametrize(("n_heads", "n_groups", "d_state"), [(4, 1, 64), (6, 3, 16)])


def ours(n_heads: int, n_groups: int, d_state: int) -> nn.Module:
    mixer = [f"model.mixers.mamba2.n_groups={n_groups}", f"model.mixers.mamba2.d_state={d_state}"]
    size = [f"size.d_model={D_MODEL}", f"size.n_layers={LAYERS}", f"size.n_heads={n_heads}"]
    model = built_model("model=mamba2", *size, *mixer, d_input=VOCABULARY, length=LENGTH)
    with torch.no_grad():
        for layer in model.layers:
            layer.mixer.inner.norm.weight.uniform_(0.5, 1.5)  # ones at the start, which would hide where they act
    return model.eval()


def theirs(n_heads: int, n_groups: int, d_state: int) -> nn.Module:
    torch.manual_seed(2)
    config = transformers.Mamba2Config(
        vocab_size=VOCABULARY,
        hidden_size=D_MODEL,
        num_hidden_layers=LAYERS,
        num_heads=n_heads,
        head_dim=2 * D_MODEL // n_heads,
        n_groups=n_groups,
        state_size=d_state,
        conv_kernel=4,
        expand=2,
        chunk_size=32,
    )
    return transformers.Mamba2ForCausalLM(config).eval()


def names() -> dict[str, str]:
    """Our parameter names, and what ``Mamba2ForCausalLM`` calls the same matrices."""
    names = {"embed.weight": "backbone.embeddings.weight", "norm.weight": "backbone.norm_f.weight"}
    for i in range(LAYERS):
        names[f"layers.{i}.mixer.norm.weight"] = f"backbone.layers.{i}.norm.weight"
        for own, other in MIXER.items():
            names[f"layers.{i}.mixer.inner.{own}"] = f"backbone.layers.{i}.mixer.{other}"
    return names | {"head.weight": "lm_head.weight"}


def tokens() -> torch.Tensor:
    return torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(1))


@SIZES
class TestAgainstTransformers:
    def test_our_weights_in_theirs(self, n_heads, n_groups, d_state):
        model, other = ours(n_heads, n_groups, d_state), theirs(n_heads, n_groups, d_state)
        state = other.state_dict()
        assert set(names().values()) == set(state)
        for own, name in names().items():
            state[name] = model.state_dict()[own].view_as(state[name])
        other.load_state_dict(state)
        self.assert_same_logits(model, other)

    def test_their_weights_in_ours(self, n_heads, n_groups, d_state):
        model, other = ours(n_heads, n_groups, d_state), theirs(n_heads, n_groups, d_state)
        assert set(names()) == set(model.state_dict())
        with torch.no_grad():
            other.lm_head.weight.copy_(other.backbone.embeddings.weight)  # ours shares the two
        state = {own: other.state_dict()[name] for own, name in names().items()}
        model.load_state_dict({own: value.view_as(model.state_dict()[own]) for own, value in state.items()})
        self.assert_same_logits(model, other)

    def assert_same_logits(self, model, other):
        """Both round in float32, each in its own order of sums."""
        with torch.no_grad():
            expected = other(tokens(), use_cache=False).logits
            difference = (model(tokens()) - expected).abs().max()
        assert expected.std() > 0.01
        assert difference < 2e-6 * expected.abs().max()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_heads": 5}, r"^n_heads=5: must divide expand \* d_model = 32\.\nChoose one of 1, 2, 4, 8, 16, 32"),
        ({"n_heads": 4, "n_groups": 3}, r"^n_groups=3: must divide n_heads = 4\.\nChoose one of 1, 2, 4"),
    ],
)
def test_heads_and_groups_have_to_divide(settings, message):
    with pytest.raises(UserError, match=message):
        Mamba2(16, **settings)


def test_what_decides_the_start():
    """A and the steps lie in the ranges that the settings give, whatever the seed."""
    mixer = Mamba2(64, n_heads=128, dt_min=0.01, dt_max=0.02, A_min=3.0, A_max=5.0)
    step = nn.functional.softplus(mixer.dt_bias)
    assert 0.0099 < step.min() < 0.012
    assert 0.018 < step.max() < 0.0201
    assert -5 <= mixer.A.min() < -4.8
    assert -3.2 < mixer.A.max() <= -3


def test_the_state_is_the_same_at_every_length():
    mixer = Mamba2(32, n_heads=4, d_state=16)
    sizes = set()
    with torch.no_grad():
        for length in (1, 3, 70):
            _, state = mixer.prefill(torch.randn(2, length, 32), mixer.initial_state(2))
            sizes.add(tuple(part.shape for part in state))
    assert sizes == {((2, 3, 64 + 32), (2, 4, 16, 16))}


def test_the_backend_of_its_own_scan_is_reported():
    device = torch.device("cpu")
    assert scan_backend(Mamba2(16, n_heads=2), device) == "parallel"
    assert scan_backend(nn.ModuleList([Mamba2(16, n_heads=2, scan_backend="reference"), Mamba(16)]), device) in (
        "cpu, reference",
        "parallel, reference",  # without Numba
    )
    with pytest.raises(UserError, match=r"scan_backend=cpu: ssd has no backend 'cpu'"):
        scan_backend(Mamba2(16, n_heads=2, scan_backend="cpu"), device)


def test_training_flops_are_the_products_and_the_recurrence(n_heads=4, d_state=16, d_model=32, length=9):
    """Projections, convolution and the scan's own count; the products over chunks are a way to compute that."""

    class Features:
        def __init__(self):
            self.length = length

        def train_batch(self, index, batch_size, seed):
            return torch.zeros(1, length, d_model), torch.zeros(1, length, d_model)

        def loss(self, outputs, targets):
            return outputs - targets

    mixer = Mamba2(d_model, n_heads=n_heads, d_state=d_state)
    mixed = 2 * d_model + 2 * d_state
    in_proj = 2 * length * d_model * (2 * d_model + mixed + n_heads)
    out_proj = 2 * length * 2 * d_model * d_model
    convolution = 2 * length * mixed * 4
    recurrence = length * n_heads * (5 * (2 * d_model // n_heads) * d_state + 2)
    expected = 2 * in_proj + 3 * (out_proj + convolution + recurrence)  # nothing asks for the gradient of the data
    assert training_flops(mixer, Features()) == expected


@pytest.mark.parametrize(
    ("mixer", "settings", "message"),
    [
        (Mamba, {"dt_min": 0.2}, r"model\.mixers\.mamba\.dt_min=0\.2: is above the largest, dt_max=0\.1"),
        (Mamba2, {"n_heads": 2, "dt_max": 1e-4}, r"model\.mixers\.mamba2\.dt_min=0\.001: .* dt_max=0\.0001"),
        (
            Mamba2,
            {"n_heads": 2, "A_min": 20.0},
            r"mamba2\.A_min=20\.0: .* A_max=16\.0.\n.*set model\.mixers\.mamba2\.A_max=20\.0 or more",
        ),
    ],
)
def test_a_range_the_wrong_way_round_is_refused(mixer, settings, message):
    place = under(f"model.mixers.{mixer.__name__.lower()}", inspect.signature(mixer).parameters)
    with pytest.raises(UserError, match=message), place:
        mixer(8, **settings)


def test_a_range_of_one_number_is_one():
    mixer = Mamba2(8, n_heads=2, A_min=3.0, A_max=3.0, dt_min=0.05, dt_max=0.05)
    torch.testing.assert_close(mixer.A, torch.full((2,), -3.0))
    torch.testing.assert_close(nn.functional.softplus(mixer.dt_bias), torch.full((2,), 0.05))
