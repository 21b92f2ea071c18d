"""Mamba-2, with one or several groups.

The gated norm is of each group by itself, as in ``mamba_ssm``, and in ``transformers`` from version 5.23 on; before, it
was of all groups together.
"""

import math

from seqlab.models import SequenceModel
from seqlab.models.mixers import Mamba2
from seqlab.pretrained.families.family import Family, Settings, eps_of, halves, part, rms_norm, sequence_model
from seqlab.pretrained.fields import Fields
from seqlab.pretrained.sources import Table, Values, depthwise

INNER, THEIRS = "layers.*.mixer.inner", "backbone.layers.*.mixer"

SOURCES: Table = {
    "embed.weight": "backbone.embeddings.weight",
    "layers.*.mixer.norm.weight": "backbone.layers.*.norm.weight",
    f"{INNER}.in_proj.weight": f"{THEIRS}.in_proj.weight",
    f"{INNER}.conv_weight": depthwise(f"{THEIRS}.conv1d.weight"),
    f"{INNER}.conv_bias": f"{THEIRS}.conv1d.bias",
    f"{INNER}.dt_bias": f"{THEIRS}.dt_bias",
    f"{INNER}.A_log": f"{THEIRS}.A_log",
    f"{INNER}.D": f"{THEIRS}.D",
    f"{INNER}.norm.weight": f"{THEIRS}.norm.weight",
    f"{INNER}.out_proj.weight": f"{THEIRS}.out_proj.weight",
    "norm.weight": "backbone.norm_f.weight",
    "head.weight": "lm_head.weight",
}


def mamba2(fields: Fields) -> Settings:
    """The settings of a model of Mamba-2."""
    fields.only(hidden_act=("silu", "swish"), use_bias=False, use_conv_bias=True)
    fields.only(time_step_limit=([0.0, math.inf],), rms_norm=True)
    width, n_heads = fields.whole("hidden_size"), fields.whole("num_heads", 128)
    d_inner, d_head = fields.whole("expand", 2) * width, fields.whole("head_dim", 64)
    if n_heads * d_head != d_inner:
        fields.refuse("num_heads", n_heads, f"expand * hidden_size / head_dim = {d_inner} / {d_head}")
    eps = fields.number("layer_norm_epsilon", 1e-5)
    mixer = part(
        "seqlab.models.mixers.Mamba2",
        n_heads=n_heads,
        d_state=fields.whole("state_size", 128),
        d_conv=fields.whole("conv_kernel", 4),
        d_inner=d_inner,
        n_groups=fields.whole("n_groups", 8),
        norm_eps=eps,
    )
    return sequence_model(
        d_model=width,
        n_layers=fields.whole("num_hidden_layers"),
        mixer=("mamba2", mixer),
        norm=rms_norm(eps),
        tied=fields.flag("tie_word_embeddings", default=False),
    )


def mamba2_fields(model: SequenceModel) -> Values | None:
    """The fields of a model of Mamba-2."""
    mixer, width = halves(model)[0], model.head.in_features
    if not isinstance(mixer, Mamba2):
        return None
    return {
        "model_type": "mamba2",
        "hidden_size": width,
        "num_hidden_layers": len(model.layers),
        "state_size": mixer.d_state,
        "conv_kernel": mixer.conv_weight.shape[1],
        "expand": mixer.d_inner // width,
        "num_heads": mixer.n_heads,
        "head_dim": mixer.d_inner // mixer.n_heads,
        "n_groups": mixer.n_groups,
        "layer_norm_epsilon": eps_of(model),
        "hidden_act": "silu",
        "use_bias": False,
        "use_conv_bias": True,
    }


MAMBA2 = Family(mamba2, SOURCES, "backbone", mamba2_fields)
