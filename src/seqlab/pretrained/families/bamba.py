"""Bamba (IBM, Princeton and UIUC 2024): Mamba-2, and some attention with half of each head's channels rotated."""

from seqlab.models import SequenceModel
from seqlab.models.feedforward import SwiGLU
from seqlab.models.mixers import Attention, Mamba2
from seqlab.pretrained.families import pieces
from seqlab.pretrained.families.family import Family, Settings, halves, mixers_of, rms_norm, sequence_model
from seqlab.pretrained.families.rope import rotary
from seqlab.pretrained.fields import Fields
from seqlab.pretrained.sources import Table, Values


def attends(fields: Fields) -> list[bool]:
    """Which layers have attention."""
    indices = fields.values.get("attn_layer_indices") or []
    n_layers = fields.whole("num_hidden_layers")
    if not isinstance(indices, list) or not set(indices) <= set(range(n_layers)):
        fields.refuse("attn_layer_indices", indices, f"a list of layers below {n_layers}")
    return [i in indices for i in range(n_layers)]


def bamba(fields: Fields) -> Settings:
    """The settings of a model of Bamba."""
    fields.only(hidden_act=("silu", "swish"))
    width = fields.whole("hidden_size")
    positions = rotary(fields, pieces.head_width(fields), share=0.5)
    mixers = {
        "mamba2": pieces.mamba2_settings(fields, fields.whole("mamba_expand", 2) * width),
        "attention": pieces.attention_settings(
            fields, bias=fields.flag("attention_bias", default=False), positions=positions
        ),
    }
    return sequence_model(
        d_model=width,
        n_layers=fields.whole("num_hidden_layers"),
        layers=(["attention" if here else "mamba2" for here in attends(fields)], mixers),
        feedforward=pieces.swiglu_settings(
            fields.whole("intermediate_size"), bias=fields.flag("mlp_bias", default=False)
        ),
        norm=rms_norm(fields.number("rms_norm_eps", 1e-5)),
        tied=fields.flag("tie_word_embeddings", default=False),
    )


def sources(fields: Fields) -> Table:
    """Which tensors are which parameters."""
    table = pieces.outer(fields, "model.final_layernorm")
    for i, attention in enumerate(attends(fields)):
        theirs = f"model.layers.{i}"
        table |= pieces.norms(i, "input_layernorm", "pre_ff_layernorm")
        table |= pieces.swiglu(f"layers.{i}.feedforward.inner", f"{theirs}.feed_forward")
        mixer = pieces.attention if attention else pieces.mamba2
        table |= mixer(f"layers.{i}.mixer.inner", f"{theirs}.{'self_attn' if attention else 'mamba'}")
    return table


def bamba_fields(model: SequenceModel) -> Values | None:
    """The fields of a model of Bamba."""
    mixers, feedforward = mixers_of(model), halves(model)[1]
    mamba2 = next((one for one in mixers if isinstance(one, Mamba2)), None)
    attention = next((one for one in mixers if isinstance(one, Attention)), None)
    if mamba2 is None or attention is None or not isinstance(feedforward, SwiGLU):
        return None
    if not attention.rotary or 2 * attention.rotary_width != attention.d_head:
        return None
    return {
        **pieces.outer_fields(model, "bamba", len(mixers)),
        **pieces.mamba2_fields(mamba2, model.head.in_features),
        **pieces.attention_fields(attention, model.max_length),
        "attn_layer_indices": [i for i, one in enumerate(mixers) if isinstance(one, Attention)],
        "intermediate_size": feedforward.out_proj.in_features,
        "mlp_bias": feedforward.in_proj.bias is not None,
    }


BAMBA = Family(bamba, sources, "model", bamba_fields, constant=pieces.FREQUENCIES)
