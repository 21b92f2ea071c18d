"""What every model must be, found by glob: causal, the same step by step, of the size that a formula says."""

import pytest
import torch
from torch import nn

from seqlab.errors import UserError
from support import architectures, built_model, compose_config, depth

MODELS = architectures()
SMALLEST = ["size.d_model=16", "size.n_heads=2", "size.d_ff=40"]
D_INPUT, D_OUTPUT, LENGTH = 11, 11, 9


def build(name: str, *, tokens: bool = True, overrides: tuple[str, ...] = (), length: int = LENGTH) -> nn.Module:
    size = [*SMALLEST, f"size.n_layers={depth(name)}"]
    return built_model(f"model={name}", *size, *overrides, d_input=D_INPUT, length=length, tokens=tokens).eval()


def inputs(*, tokens: bool, length: int = LENGTH) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if tokens:
        return torch.randint(D_INPUT, (3, length), generator=generator)
    return torch.randn(3, length, D_INPUT, generator=generator)


@pytest.mark.parametrize("tokens", [True, False])
@pytest.mark.parametrize("name", MODELS)
class TestEveryModel:
    def test_gives_an_output_for_each_position_and_is_causal(self, name, tokens):
        model, x = build(name, tokens=tokens), inputs(tokens=tokens)
        changed = x.clone()
        changed[:, 5:] = (changed[:, 5:] + 1) % D_INPUT
        before, after = model(x), model(changed)
        assert before.shape == (3, LENGTH, D_OUTPUT)
        # How many positions an expert works through at once depends on all of them, and so does its rounding.
        rounding = 1e-6 if any(type(module).__name__ == "MixtureOfExperts" for module in model.modules()) else 0.0
        torch.testing.assert_close(before[:, :5], after[:, :5], rtol=rounding, atol=rounding)
        assert not torch.allclose(before[:, 5], after[:, 5])

    def test_steps_give_what_the_whole_gives(self, name, tokens):
        model, x = build(name, tokens=tokens), inputs(tokens=tokens)
        state, steps = model.initial_state(len(x)), []
        for position in range(LENGTH):
            y, state = model.step(x[:, position], state)
            steps.append(y)
        torch.testing.assert_close(torch.stack(steps, dim=1), model(x), rtol=1e-5, atol=1e-6)

    def test_every_parameter_has_a_gradient(self, name, tokens):
        model = build(name, tokens=tokens)
        model(inputs(tokens=tokens)).square().sum().backward()
        without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert not without


CARRIES_ON = {"gru", "lstm"}
"""Models with layers of torch that know no packed sequences."""


@pytest.mark.parametrize("name", MODELS)
def test_nothing_flows_from_one_document_to_the_next(name):
    """Outputs are those of each document alone, or by itself at its place where positions are absolute."""
    model = build(name, length=14)
    if name in CARRIES_ON:
        with pytest.raises(UserError, match=r"^data\.separate_documents=True: .* carries its state from one document"):
            model.separate(0)
        return
    tokens = inputs(tokens=True, length=14).clamp(min=1)
    begins = [0, 1, 3, 9]  # a document of one token, one shorter than the convolutions, and longer ones
    tokens[:, begins] = 0
    whole = model(tokens)
    model.separate(0)
    apart = model(tokens)
    for start, end in ((1, 3), (9, 14)):
        if model.positions is None:
            alone = model(tokens[:, start:end])
        else:
            others = (tokens % (D_INPUT - 1) + 1).scatter(1, torch.tensor([begins] * 3), 0)
            others[:, start:end] = tokens[:, start:end]
            alone = model(others)[:, start:end]
        torch.testing.assert_close(apart[:, start:end], alone, rtol=1e-5, atol=1e-6)
    if name not in ("linear", "mlp"):
        assert not torch.allclose(whole[:, 4:], apart[:, 4:])


def linear(d_in: int, d_out: int, *, bias: bool = True) -> int:
    return d_in * d_out + bias * d_out


def mamba_parameters(d: int) -> int:
    e, n, k, r = 2 * d, 16, 4, -(-d // 16)
    projections = linear(d, 2 * e, bias=False) + linear(e, r + 2 * n, bias=False) + linear(r, e)
    return projections + e * (k + 1) + e * n + e + linear(e, d, bias=False)


def delta_parameters(d: int, key: int, value: int, *, decays: int = 0, decay: int = 0, gate: int = 0) -> int:
    """Two heads; ``decay`` and ``gate`` are widths that the input is projected to, ``decays`` those of a head."""
    mixed = 2 * (2 * key + value)
    own = (2 + 2 * decays if decays else 0) + value  # A_log and dt_bias, the norm
    return linear(d, mixed + 2 + decay + gate, bias=False) + 4 * mixed + own + linear(2 * value, d, bias=False)


def mamba2_parameters(d: int, expand: int = 2, h: int = 2) -> int:
    e, n, k = expand * d, 64, 4
    projections = linear(d, 2 * e + 2 * n + h, bias=False) + linear(e, d, bias=False)
    return projections + (e + 2 * n) * (k + 1) + 3 * h + e


def mamba3_parameters(d: int, rank: int = 1, h: int = 2) -> int:
    e, n, pairs = 2 * d, 64, 16
    projections = linear(d, 2 * e + 2 * rank * n + 3 * h + pairs, bias=False) + linear(e, d, bias=False)
    return projections + 2 * n + 2 * rank * h * n + 2 * h + (3 * rank * e if rank > 1 else 0)


D_MODEL, LAYERS, D_FF, HIDDEN = 16, 2, 40, 32  # HIDDEN: two thirds of D_FF, up to a multiple of 8
TIED, UNTIED = D_INPUT * D_MODEL, D_INPUT * D_MODEL + linear(D_MODEL, D_OUTPUT)
ATTENTION, FEEDFORWARD = 4 * linear(D_MODEL, D_MODEL), linear(D_MODEL, D_FF) + linear(D_FF, D_MODEL)
EXPERTS = 8 * D_MODEL + 8 * 3 * D_MODEL * HIDDEN
GATED_DELTA = delta_parameters(D_MODEL, 6, 12, decays=1, decay=2, gate=24)
KIMI_DELTA = delta_parameters(D_MODEL, 8, 8, decays=8, decay=8, gate=8) + linear(8, 16, bias=False) + linear(8, 16)
GATED_DELTA_2 = KIMI_DELTA + linear(D_MODEL, 2 * 8 + 2 * 8 - 2, bias=False)  # shares of keys and of values, no beta
MLSTM = linear(D_MODEL, 8 + 8 + 16 + 16 + 4, bias=False) + 4 + 16 + D_MODEL**2  # gates' biases, the norm, the output
M2RNN = (
    linear(D_MODEL, 64 + 64 + 16 + 1 + 16, bias=False) + 144 * 4 + 2 + 16**2 + 16 + 16 + D_MODEL**2
)  # one head of 16
SWIGLU = 3 * D_MODEL * HIDDEN
RMS, LAYER_NORM = D_MODEL, 2 * D_MODEL
PARAMETERS = {  # counted by hand from the papers' equations, for tokens
    "mamba": TIED + LAYERS * (mamba_parameters(D_MODEL) + RMS) + RMS,
    "mamba2": TIED + LAYERS * (mamba2_parameters(D_MODEL) + RMS) + RMS,
    "mamba3": TIED + LAYERS * (mamba3_parameters(D_MODEL) + RMS) + RMS,
    "mamba3_mimo": TIED + LAYERS * (mamba3_parameters(D_MODEL, rank=4) + RMS) + RMS,
    "hybrid_mamba3": TIED + 5 * mamba3_parameters(D_MODEL) + 4 * D_MODEL**2 + 6 * RMS + RMS,
    "mamba_moe": TIED + LAYERS * (mamba_parameters(D_MODEL) + EXPERTS + 2 * RMS) + RMS,
    "transformer": TIED + LAYERS * (4 * D_MODEL**2 + 3 * D_MODEL * HIDDEN + 2 * RMS) + RMS,
    "transformer_moe": TIED + LAYERS * (4 * D_MODEL**2 + EXPERTS + 2 * RMS) + RMS,
    "transformer_vanilla": UNTIED + LENGTH * D_MODEL + LAYERS * (ATTENTION + FEEDFORWARD + 2 * LAYER_NORM) + LAYER_NORM,
    "self_attention": UNTIED + LENGTH * D_MODEL + 4 * D_MODEL**2,
    "hybrid": TIED + 3 * mamba_parameters(D_MODEL) + 4 * D_MODEL**2 + 4 * RMS + RMS,
    "transformer_window": TIED + LAYERS * (4 * D_MODEL**2 + 3 * D_MODEL * HIDDEN + 2 * RMS) + RMS,
    "gru": TIED + LAYERS * (6 * D_MODEL**2 + 6 * D_MODEL + RMS) + RMS,
    "min_gru": TIED + LAYERS * (linear(D_MODEL, 4 * D_MODEL) + 2 * D_MODEL**2 + RMS) + RMS,
    "lstm": TIED + LAYERS * (8 * D_MODEL**2 + 8 * D_MODEL + RMS) + RMS,
    "delta_net": TIED + LAYERS * (delta_parameters(D_MODEL, 8, 8) + SWIGLU + 2 * RMS) + RMS,
    "gated_delta_net": TIED + LAYERS * (GATED_DELTA + SWIGLU + 2 * RMS) + RMS,
    "kimi_delta": TIED + LAYERS * (KIMI_DELTA + SWIGLU + 2 * RMS) + RMS,
    "gated_delta_net2": TIED + LAYERS * (GATED_DELTA_2 + SWIGLU + 2 * RMS) + RMS,
    "hybrid_qwen": TIED + 3 * GATED_DELTA + 4 * D_MODEL**2 + 4 * (SWIGLU + 2 * RMS) + RMS,
    "hybrid_falcon": TIED
    + LAYERS * (mamba2_parameters(D_MODEL, expand=1) + 4 * D_MODEL**2 // 2 + SWIGLU + 2 * RMS)
    + RMS,
    "hybrid_nemotron": TIED + 3 * mamba2_parameters(D_MODEL) + 4 * D_MODEL**2 + 3 * EXPERTS + 7 * RMS + RMS,
    "mlstm": TIED + LAYERS * (MLSTM + SWIGLU + 2 * RMS) + RMS,
    "m2rnn": TIED + LAYERS * (M2RNN + SWIGLU + 2 * RMS) + RMS,
    "mlp": UNTIED + LAYERS * linear(D_MODEL, D_MODEL),
    "linear": UNTIED,
}


@pytest.mark.parametrize("name", MODELS)
def test_number_of_parameters(name):
    if name not in PARAMETERS:
        pytest.skip(f"nobody has counted {name} by hand yet")
    assert sum(p.numel() for p in build(name).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("size", ["small", "medium", "large", "wide", "deep"])
def test_the_named_sizes_are_the_sizes(size):
    named, sized = compose_config(f"model=mamba_{size}"), compose_config("model=mamba", f"size={size}")
    assert named.size == sized.size
    assert named.model == sized.model
    assert compose_config(f"model=mamba_{size}", "size=tiny").size.d_model == 64  # the command line has the last word


def test_a_hybrid_is_yaml_alone():
    model = build(
        "mamba",
        overrides=(
            "model.pattern=[mamba,lstm]",
            "+model.mixers.lstm={_target_: seqlab.models.mixers.LSTM, _partial_: true}",
        ),
    )
    assert [type(layer.mixer.inner).__name__ for layer in model.layers] == ["Mamba", "LSTM"]


def test_learned_positions_end():
    with pytest.raises(UserError, match=r"sequence of 10 is past the 9 positions"):
        build("transformer_vanilla")(inputs(tokens=True, length=10))


def test_dropout_acts_in_training_alone():
    model, x = build("transformer", overrides=("model.dropout=0.5",)), inputs(tokens=True)
    torch.testing.assert_close(model(x), model(x), rtol=0, atol=0)
    model.train()
    assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.pattern=[mamba,mamba,mamba]",), r"model\.pattern=.*3 mixers do not fit into n_layers=2"),
        (("model.pattern=[mambo]",), r"'mambo' is not under model\.mixers.*\n.*'mamba'"),
        (("model.pattern=[]",), r"model\.pattern=\[\]: needs at least one mixer, .*\nName 'mamba'"),
        (("model.pattern=[mamba,mambo]",), r"model\.pattern=.*'mambo' is not under.*\nDid you mean 'mamba'\?"),
        (("model.pattern=[mamba,attention]",), r"model\.pattern=.*'attention' is not.*\nUse 'mamba', .*model=hybrid"),
    ],
)
def test_patterns_that_cannot_be(overrides, message):
    with pytest.raises(UserError, match=message):
        build("mamba", overrides=overrides)


def test_a_mixer_that_could_never_generate_is_refused():
    mixers = (
        "model.pattern=[dense]",
        "+model.mixers.dense={_target_: torch.nn.Linear, _partial_: true, out_features: 16}",
    )
    with pytest.raises(UserError, match=r"^model\.mixers\.dense=Linear: has no initial_state and step"):
        build("mamba", overrides=mixers)


def test_heads_must_divide_the_width():
    with pytest.raises(UserError, match=r"size\.n_heads=3: must divide d_model=16.*\n.*1, 2, 4, 8, 16"):
        build("transformer", overrides=("size.n_heads=3",))
    with pytest.raises(UserError, match=r"size\.n_heads=16: .*odd"):
        build("transformer", overrides=("size.n_heads=16",))
    with pytest.raises(UserError, match=r"^model\.mixers\.attention\.n_heads=3: must divide d_model=16"):
        build("transformer", overrides=("model.mixers.attention.n_heads=3",))


class TestMambaAtTheStart:
    """Section 3.6 and appendix of the paper, and mamba's published initialisation."""

    def mixer(self):
        return build("mamba", overrides=("size.d_model=512", "size.n_heads=8")).layers[0].mixer.inner

    def test_decay_is_minus_one_to_n(self):
        A = self.mixer().A
        torch.testing.assert_close(A, -torch.arange(1.0, 17).expand(1024, 16), rtol=1e-6, atol=0)

    def test_steps_are_log_uniform_in_the_range(self):
        step = nn.functional.softplus(self.mixer().dt_proj.bias.detach()).log10()
        assert step.min() >= -3.0001
        assert step.max() <= -0.9999
        quantiles = torch.quantile(step, torch.tensor([0.25, 0.5, 0.75]))  # uniform between -3 and -1
        torch.testing.assert_close(quantiles, torch.tensor([-2.5, -2.0, -1.5]), rtol=0, atol=0.1)

    def test_residual_projections_are_rescaled(self):
        alone = build("mamba", overrides=("size.n_layers=1",)).layers[0].mixer.inner.out_proj.weight
        sixteen = build("mamba", overrides=("size.n_layers=16",)).layers[0].mixer.inner.out_proj.weight
        torch.testing.assert_close(sixteen * 4, alone)
