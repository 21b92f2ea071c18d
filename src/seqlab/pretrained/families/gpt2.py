"""GPT-2, whose linear maps are stored as (D_in, D_out)."""

from seqlab.models import SequenceModel
from seqlab.models import feedforward as feedforwards
from seqlab.models.mixers import Attention
from seqlab.pretrained.families.family import Family, Settings, eps_of, halves, part, sequence_model
from seqlab.pretrained.fields import Fields
from seqlab.pretrained.sources import Table, Values, transposed

MIXER, FEEDFORWARD, THEIRS = "layers.*.mixer", "layers.*.feedforward", "transformer.h.*"

SOURCES: Table = {
    "embed.weight": "transformer.wte.weight",
    "positions.weight": "transformer.wpe.weight",
    f"{MIXER}.norm.weight": f"{THEIRS}.ln_1.weight",
    f"{MIXER}.norm.bias": f"{THEIRS}.ln_1.bias",
    f"{MIXER}.inner.in_proj.weight": transposed(f"{THEIRS}.attn.c_attn.weight"),
    f"{MIXER}.inner.in_proj.bias": f"{THEIRS}.attn.c_attn.bias",
    f"{MIXER}.inner.out_proj.weight": transposed(f"{THEIRS}.attn.c_proj.weight"),
    f"{MIXER}.inner.out_proj.bias": f"{THEIRS}.attn.c_proj.bias",
    f"{FEEDFORWARD}.norm.weight": f"{THEIRS}.ln_2.weight",
    f"{FEEDFORWARD}.norm.bias": f"{THEIRS}.ln_2.bias",
    f"{FEEDFORWARD}.inner.in_proj.weight": transposed(f"{THEIRS}.mlp.c_fc.weight"),
    f"{FEEDFORWARD}.inner.in_proj.bias": f"{THEIRS}.mlp.c_fc.bias",
    f"{FEEDFORWARD}.inner.out_proj.weight": transposed(f"{THEIRS}.mlp.c_proj.weight"),
    f"{FEEDFORWARD}.inner.out_proj.bias": f"{THEIRS}.mlp.c_proj.bias",
    "norm.weight": "transformer.ln_f.weight",
    "norm.bias": "transformer.ln_f.bias",
    "head.weight": "lm_head.weight",
}

ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}


def gpt2(fields: Fields) -> Settings:
    """The settings of a model of GPT-2; dropout, which the trained model does not have, is the run's own."""
    fields.only(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    fields.only(activation_function=tuple(ACTIVATIONS))
    width, heads = fields.whole("n_embd"), fields.whole("n_head")
    return sequence_model(
        d_model=width,
        n_layers=fields.whole("n_layer"),
        mixer=("attention", part("seqlab.models.mixers.Attention", n_heads=heads, rotary=False, bias=True)),
        feedforward=part(
            "seqlab.models.feedforward.MLP",
            d_ff=fields.whole("n_inner", 4 * width),
            bias=True,
            activation=ACTIVATIONS[fields.values.get("activation_function") or "gelu_new"],
        ),
        norm=part("torch.nn.LayerNorm", eps=fields.number("layer_norm_epsilon", 1e-5)),
        positions="learned",
        max_length=fields.whole("n_positions", 1024),
        tied=fields.flag("tie_word_embeddings", default=True),
    )


def gpt2_fields(model: SequenceModel) -> Values | None:
    """The fields of a model of GPT-2; dropout is on the embedding and each half layer's output, as it was trained."""
    attention, feedforward = halves(model)
    if not (isinstance(attention, Attention) and isinstance(feedforward, feedforwards.MLP)):
        return None
    names = {feedforwards.ACTIVATIONS[ours]: theirs for theirs, ours in ACTIVATIONS.items()}
    return {
        "model_type": "gpt2",
        "n_embd": model.head.in_features,
        "n_layer": len(model.layers),
        "n_head": attention.n_heads,
        "n_inner": feedforward.out_proj.in_features,
        "n_positions": model.max_length,
        "activation_function": names[feedforward.activation],
        "layer_norm_epsilon": eps_of(model),
        "embd_pdrop": model.dropout.p,
        "resid_pdrop": model.dropout.p,
        "attn_pdrop": 0.0,
    }


GPT2 = Family(gpt2, SOURCES, "transformer", gpt2_fields, constant=r".*\.attn\.(masked_)?bias")
