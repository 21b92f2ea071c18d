"""Mixers side by side in one layer, and the hybrid that has them in every layer."""

import pytest
import torch
import transformers
from torch import nn

from seqlab.errors import UserError
from seqlab.models.mixers import Attention, Mamba2, MinGRU
from seqlab.models.mixers.parallel import Parallel
from seqlab.models.protocols import StepsAlike
from support import built_model

D_MODEL, HEADS, VOCABULARY, LENGTH = 32, 4, 23, 40
SIZE = (f"size.d_model={D_MODEL}", f"size.n_heads={HEADS}", "size.d_ff=48", "size.n_layers=2")


def side_by_side(*overrides: str) -> nn.Module:
    pattern = "model.pattern=[mamba2+attention,mamba2]"
    return built_model("model=hybrid", pattern, *SIZE, *overrides, d_input=VOCABULARY, length=LENGTH)


def their_names(i: int) -> dict[str, str]:
    """Our names of what a layer has, but for what they have in several, and what ``FalconH1ForCausalLM`` calls it."""
    mixer = ("in_proj.weight", "dt_bias", "A_log", "D", "norm.weight", "out_proj.weight")
    own = {name: f"mamba.{name}" for name in mixer}
    own |= {"conv_weight": "mamba.conv1d.weight", "conv_bias": "mamba.conv1d.bias"}
    names = {f"mixer.inner.mixers.0.{name}": theirs for name, theirs in own.items()} | {
        "mixer.norm.weight": "input_layernorm.weight",
        "mixer.inner.mixers.1.out_proj.weight": "self_attn.o_proj.weight",
        "feedforward.norm.weight": "pre_ff_layernorm.weight",
        "feedforward.inner.out_proj.weight": "feed_forward.down_proj.weight",
    }
    return {f"layers.{i}.{name}": f"model.layers.{i}.{theirs}" for name, theirs in names.items()}


def test_hybrid_falcon_is_falcon_h1():
    """The same weights give the same logits as the model of ``transformers``, whose multipliers are 1."""
    model = built_model("model=hybrid_falcon", *SIZE, d_input=VOCABULARY, length=LENGTH).eval()
    config = transformers.FalconH1Config(
        vocab_size=VOCABULARY,
        hidden_size=D_MODEL,
        intermediate_size=32,  # two thirds of 48
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=D_MODEL // 2 // HEADS,
        mamba_d_ssm=D_MODEL,
        mamba_n_heads=HEADS,
        mamba_d_state=64,
        mamba_chunk_size=16,
        mamba_rms_norm=True,
        mamba_norm_before_gate=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e11},
        tie_word_embeddings=True,
    )
    other, own = transformers.FalconH1ForCausalLM(config).eval(), model.state_dict()
    state = {"model.embed_tokens.weight": own["embed.weight"], "lm_head.weight": own["head.weight"]}
    state["model.final_layernorm.weight"] = own["norm.weight"]
    for i in range(2):
        state |= {theirs: own[name] for name, theirs in their_names(i).items()}
        layer, qkv = f"model.layers.{i}", own[f"layers.{i}.mixer.inner.mixers.1.in_proj.weight"].chunk(3)
        state |= {f"{layer}.self_attn.{name}_proj.weight": part for name, part in zip("qkv", qkv, strict=True)}
        gate_up = own[f"layers.{i}.feedforward.inner.in_proj.weight"].chunk(2)
        names = "gate", "up"
        state |= {f"{layer}.feed_forward.{n}_proj.weight": part for n, part in zip(names, gate_up, strict=True)}
    shapes = {name: value.shape for name, value in other.state_dict().items()}
    assert set(state) == set(shapes)
    other.load_state_dict({name: value.reshape(shapes[name]) for name, value in state.items()})
    tokens = torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = other(tokens, use_cache=False).logits
        assert (model(tokens) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_layer_is_the_sum_of_its_mixers():
    model, x = side_by_side(), torch.randn(2, 9, D_MODEL)
    mamba2, attention = model.layers[0].mixer.inner.mixers
    assert (type(mamba2), type(attention)) == (Mamba2, Attention)
    assert torch.equal(model.layers[0].mixer.inner(x), mamba2(x) + attention(x))
    assert type(model.layers[1].mixer.inner) is Mamba2


def test_what_adds_to_the_residual_stream_is_divided_by_how_many_add():
    """Three projections in two layers."""
    alone = built_model("model=hybrid", "model.pattern=[mamba2+attention]", *SIZE[:3], "size.n_layers=1", d_input=23)
    scaled, unscaled = side_by_side(), side_by_side("model.residual=false")
    for i in range(2):
        one, other = (model.layers[0].mixer.inner.mixers[i].out_proj.weight for model in (scaled, unscaled))
        torch.testing.assert_close(one * 3**0.5, other)
        torch.testing.assert_close(alone.layers[0].mixer.inner.mixers[i].out_proj.weight * 2**0.5, other)


def test_it_says_of_itself_what_all_of_them_say():
    """A CUDA graph holds a step of both or of none; a norm may round where linear maps alone read it."""
    mamba2, attention = Mamba2(D_MODEL, n_heads=HEADS), Attention(D_MODEL, n_heads=HEADS)
    recurrent, mixed = Parallel([mamba2, MinGRU(D_MODEL)]), Parallel([mamba2, attention])
    assert isinstance(recurrent, StepsAlike)
    assert not isinstance(mixed, StepsAlike)
    assert side_by_side().layers[0].mixer.norm.rounds

    class Other(Mamba2):
        """Which may read its input otherwise."""

    assert not Parallel([mamba2, Other(D_MODEL, n_heads=HEADS)]).rounds_input


def test_mistakes_name_the_mixer():
    with pytest.raises(UserError, match=r"'mambo' is not under model\.mixers.*\nDid you mean 'mamba'\?"):
        built_model("model=hybrid", "model.pattern=[mambo+attention]", *SIZE)
    with pytest.raises(UserError, match=r"^model\.mixers\.attention\.n_heads=3: must divide expand \* d_model=16\."):
        built_model("model=hybrid_falcon", "model.mixers.attention.n_heads=3", *SIZE)
