"""Falcon-H1 (TII 2025, arXiv:2507.22448): attention beside Mamba-2 in every layer, and multipliers of its muP."""

from typing import Any

from seqlab.models import SequenceModel
from seqlab.models.feedforward import SwiGLU
from seqlab.models.mixers import Attention, Mamba2
from seqlab.models.mixers.mamba2 import Gate, NormBeforeGate
from seqlab.models.mixers.parallel import side_by_side
from seqlab.pretrained.families import pieces
from seqlab.pretrained.families.family import Family, Settings, halves, rms_norm, sequence_model
from seqlab.pretrained.families.rope import rotary
from seqlab.pretrained.fields import Fields
from seqlab.pretrained.sources import Table, Values, scaled


def falcon_h1(fields: Fields) -> Settings:
    """The settings of a model of Falcon-H1."""
    fields.only(hidden_act=("silu", "swish"), projectors_bias=False, attention_bias=False, mlp_bias=False)
    mamba2 = pieces.mamba2_settings(
        fields,
        inner_width(fields),
        rmsnorm=fields.flag("mamba_rms_norm", default=False),
        norm_before_gate=fields.flag("mamba_norm_before_gate", default=True),
    )
    positions = rotary(fields, pieces.head_width(fields))
    attention = pieces.attention_settings(fields, bias=False, positions=positions)
    return sequence_model(
        d_model=fields.whole("hidden_size"),
        n_layers=fields.whole("num_hidden_layers"),
        layers=(["mamba2+attention"], {"mamba2": mamba2, "attention": attention}),
        feedforward=pieces.swiglu_settings(fields.whole("intermediate_size")),
        norm=rms_norm(fields.number("rms_norm_eps", 1e-5)),
        tied=fields.flag("tie_word_embeddings", default=False),
    )


def inner_width(fields: Fields) -> int:
    """Channels of Mamba-2."""
    if "mamba_d_ssm" in fields.values and fields.values["mamba_d_ssm"] is None:
        return fields.whole("mamba_expand", 2) * fields.whole("hidden_size")
    return fields.whole("mamba_d_ssm", 1024)


def multipliers(fields: Fields, name: str, count: int) -> list[float]:
    """A field of several multipliers."""
    values: Any = fields.values.get(name) or [1.0] * count
    if not isinstance(values, list) or len(values) != count or not all(type(one) in (int, float) for one in values):
        fields.refuse(name, values, f"a list of {count} numbers")
    return [float(one) for one in values]


def sources(fields: Fields) -> Table:
    """Which tensors are which parameters: the multipliers are in what is next to them."""
    one = {name: fields.number(f"{name}_multiplier", 1.0) for name in ONE}
    queries, hidden = fields.whole("num_attention_heads"), fields.whole("intermediate_size")
    keys, d_head = fields.whole("num_key_value_heads", queries), pieces.head_width(fields)
    gate, down = multipliers(fields, "mlp_multipliers", 2)
    qkv = pieces.rows((1.0, queries * d_head), (one["key"], keys * d_head), (1.0, keys * d_head)) * one["attention_in"]
    mixers, theirs = "layers.*.mixer.inner.mixers", "model.layers.*"
    return {
        **pieces.outer(fields, "model.final_layernorm", one["embedding"], one["lm_head"]),
        **pieces.norms("*", "input_layernorm", "pre_ff_layernorm"),
        **pieces.mamba2(f"{mixers}.0", f"{theirs}.mamba", out=one["ssm_out"]),
        f"{mixers}.0.in_proj.weight": scaled(f"{theirs}.mamba.in_proj.weight", selection(fields) * one["ssm_in"]),
        **pieces.attention(f"{mixers}.1", f"{theirs}.self_attn", rows=qkv, out=one["attention_out"]),
        **pieces.swiglu(
            "layers.*.feedforward.inner",
            f"{theirs}.feed_forward",
            gate=pieces.rows((gate, hidden), (1.0, hidden)),
            out=down,
        ),
    }


ONE = ("embedding", "lm_head", "key", "attention_in", "attention_out", "ssm_in", "ssm_out")
"""Multipliers of one number."""


def selection(fields: Fields) -> pieces.Factors:
    """Factors on what Mamba-2 projects: its gate, x, B, C and dt."""
    d_inner, heads = inner_width(fields), fields.whole("mamba_n_heads", 128)
    maps = fields.whole("mamba_n_groups", 1) * fields.whole("mamba_d_state", 256)
    widths = d_inner, d_inner, maps, maps, heads
    return pieces.rows(*zip(multipliers(fields, "ssm_multipliers", 5), widths, strict=True))


def falcon_h1_fields(model: SequenceModel) -> Values | None:
    """The fields of a model of Falcon-H1, with every multiplier 1."""
    mixer, feedforward = halves(model)
    match [] if mixer is None else side_by_side(mixer):
        case [Mamba2() as mamba2, Attention() as attention] if isinstance(feedforward, SwiGLU):
            return {
                **pieces.outer_fields(model, "falcon_h1", len(model.layers)),
                **pieces.mamba2_fields(mamba2, model.head.in_features),
                "mamba_d_ssm": mamba2.d_inner,
                "mamba_rms_norm": not isinstance(mamba2.norm, Gate),
                "mamba_norm_before_gate": isinstance(mamba2.norm, NormBeforeGate),
                **pieces.attention_fields(attention, model.max_length),
                "intermediate_size": feedforward.out_proj.in_features,
            }
    return None


FALCON_H1 = Family(falcon_h1, sources, "model", falcon_h1_fields, constant=pieces.FREQUENCIES)
