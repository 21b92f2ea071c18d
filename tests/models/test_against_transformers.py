"""The same weights give the same logits as the models of ``transformers`` and torch, float32 on the CPU."""

import pytest
import torch
import transformers
from torch import nn

from seqlab.pretrained.families import FAMILIES
from seqlab.pretrained.sources import translated
from support import built_model

VOCABULARY, LENGTH = 97, 33


def ours(name: str, **size: int) -> nn.Module:
    sizes = (f"size.{key}={value}" for key, value in size.items())
    return built_model(f"model={name}", *sizes, d_input=VOCABULARY, length=LENGTH).eval()


def tokens() -> torch.Tensor:
    return torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(1))


MAMBA_CONFIG = {"vocab_size": VOCABULARY, "hidden_size": 48, "num_hidden_layers": 3}
LLAMA_CONFIG = {"vocab_size": VOCABULARY, "hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 64}
LLAMA_CONFIG |= {"num_attention_heads": 4, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
YAMLS = {
    "mamba": ({"d_model": 48, "n_layers": 3}, transformers.MambaForCausalLM, transformers.MambaConfig(**MAMBA_CONFIG)),
    "transformer": (
        {"d_model": 48, "n_layers": 2, "n_heads": 4, "d_ff": 96},
        transformers.LlamaForCausalLM,
        transformers.LlamaConfig(**LLAMA_CONFIG),
    ),
}


@pytest.mark.parametrize("name", YAMLS)
@torch.no_grad()
def test_a_configuration_is_a_model_of_transformers(name):
    """Both round in float32, each in its own order of sums: the error grows with the logits, up to 119 here."""
    size, kind, config = YAMLS[name]
    torch.manual_seed(2)
    model, other = ours(name, **size), kind(config).eval()
    other.get_input_embeddings().weight.mul_(20)  # so that logits are of the size that training gives
    parameters = dict(model.named_parameters())
    for own, value in translated(parameters, FAMILIES[kind.__name__].sources, other.state_dict()).items():
        parameters[own].copy_(value)
    expected = other(tokens(), use_cache=False).logits
    assert (model(tokens()) - expected).abs().max() < 1e-6 * expected.abs().max()


def test_vanilla_layer_is_torchs_encoder_layer():
    """LayerNorm first, attention with biases, ReLU feed-forward: torch's own layer under a causal mask."""
    model = ours("transformer_vanilla", d_model=32, n_layers=1, n_heads=4, d_ff=64)
    layer = model.layers[0].double()
    other = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True).double()
    attention, feedforward = layer.mixer, layer.feedforward
    pairs = {
        other.self_attn.in_proj_weight: attention.inner.in_proj.weight,
        other.self_attn.in_proj_bias: attention.inner.in_proj.bias,
        other.self_attn.out_proj.weight: attention.inner.out_proj.weight,
        other.self_attn.out_proj.bias: attention.inner.out_proj.bias,
        other.linear1.weight: feedforward.inner.in_proj.weight,
        other.linear1.bias: feedforward.inner.in_proj.bias,
        other.linear2.weight: feedforward.inner.out_proj.weight,
        other.linear2.bias: feedforward.inner.out_proj.bias,
        other.norm1.weight: attention.norm.weight,
        other.norm2.weight: feedforward.norm.weight,
    }
    with torch.no_grad():
        for theirs, own in pairs.items():
            theirs.copy_(own)
        x = torch.randn(2, 7, 32, dtype=torch.float64)
        mask = nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64)
        torch.testing.assert_close(sum(layer(x)), other(x, src_mask=mask, is_causal=True))


@pytest.mark.parametrize("seed", [0, 1])
def test_rotary_scores_depend_on_distance_alone(seed):
    """Su et al. 2021, equation 16."""
    from seqlab.models.mixers.rotary import rotate

    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)

    def score(m: int, n: int) -> torch.Tensor:
        return (rotate(q, m, 10_000.0) * rotate(k, n, 10_000.0)).sum()

    torch.testing.assert_close(score(3, 1), score(103, 101), rtol=1e-4, atol=1e-5)
    assert not torch.isclose(score(3, 1), score(3, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotary_turns_by_the_angle_a_million_positions_on(dtype):
    """As complex numbers in float64, at a place whose angle float32 does not hold; an evaluation asks first."""
    from seqlab.models.mixers.rotary import rotate

    x = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    first, base = 2**20 - 2, 1_000.0
    with torch.inference_mode():
        rotate(x, first, base)
    position = torch.arange(first, first + 5, dtype=torch.float64)[:, None]
    angle = position * base ** (-torch.arange(4, dtype=torch.float64) / 4)
    pairs = torch.complex(*x.detach().double().chunk(2, dim=-1)) * torch.polar(torch.ones_like(angle), angle)
    turned = rotate(x, first, base)
    turned.sum().backward()
    assert turned.dtype == dtype
    one_rounding = {"rtol": torch.finfo(dtype).eps, "atol": 1e-6}
    torch.testing.assert_close(turned.double(), torch.cat((pairs.real, pairs.imag), dim=-1), **one_rounding)


@torch.no_grad()
def test_mlstm_is_the_layer_of_xlstm():
    """With nothing added to the cell's denominator, which the paper does not do."""
    from transformers.models.xlstm.modeling_xlstm import xLSTMLayer

    from seqlab.models.mixers import MLSTM

    config = transformers.xLSTMConfig(
        hidden_size=32, num_heads=4, mode="train", return_last_states=True, chunk_size=16, eps=0.0
    )
    torch.manual_seed(0)
    layer, mixer = xLSTMLayer(config), MLSTM(32, n_heads=4)
    mixer.gate_bias.normal_(std=5)
    names = ("q", "k", "v", "ogate_preact", "igate_preact", "fgate_preact")
    weights = dict(zip(names, mixer.in_proj.weight.normal_(std=0.5).split([16, 16, 32, 32, 4, 4]), strict=True))
    state = {f"{name}.weight": weight for name, weight in weights.items()}
    state |= dict(zip(("igate_preact.bias", "fgate_preact.bias"), mixer.gate_bias.chunk(2), strict=True))
    mixer.norm_weight.uniform_(0.5, 1.5)
    layer.load_state_dict(
        state | {"multihead_norm.weight": mixer.norm_weight, "out_proj.weight": mixer.out_proj.weight}
    )
    x = torch.randn(2, 48, 32)  # three chunks of theirs
    expected, _ = layer(x)
    assert (mixer(x) - expected).norm() <= 1e-5 * expected.norm()
