"""Mamba-1, and Falcon Mamba, which has norms within the selection (arXiv:2410.05355)."""

from seqlab.models import SequenceModel
from seqlab.models.mixers import Mamba
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
    f"{INNER}.x_proj.weight": f"{THEIRS}.x_proj.weight",
    f"{INNER}.dt_proj.weight": f"{THEIRS}.dt_proj.weight",
    f"{INNER}.dt_proj.bias": f"{THEIRS}.dt_proj.bias",
    f"{INNER}.A_log": f"{THEIRS}.A_log",
    f"{INNER}.D": f"{THEIRS}.D",
    f"{INNER}.out_proj.weight": f"{THEIRS}.out_proj.weight",
    "norm.weight": "backbone.norm_f.weight",
    "head.weight": "lm_head.weight",
}


def mamba(fields: Fields, **more: float) -> Settings:
    """The settings of a model of Mamba; ``more`` of the mixer."""
    fields.only(hidden_act=("silu", "swish"), use_bias=False, use_conv_bias=True)
    width, rank = fields.whole("hidden_size"), fields.values.get("time_step_rank")
    mixer = part(
        "seqlab.models.mixers.Mamba",
        d_state=fields.whole("state_size", 16),
        d_conv=fields.whole("conv_kernel", 4),
        d_inner=fields.whole("expand", 2) * width,
        dt_rank=None if rank == "auto" else fields.whole("time_step_rank", None),
        **more,
    )
    return sequence_model(
        d_model=width,
        n_layers=fields.whole("num_hidden_layers"),
        mixer=("mamba", mixer),
        norm=rms_norm(fields.number("layer_norm_epsilon", 1e-5)),
        tied=fields.flag("tie_word_embeddings", default=True),
    )


def falcon(fields: Fields) -> Settings:
    """The settings of a model of Falcon Mamba."""
    return mamba(fields, selection_norm_eps=fields.number("mixer_rms_eps", 1e-6))


def mamba_fields(model: SequenceModel) -> Values | None:
    """The fields of a model of Mamba."""
    mixer, width = halves(model)[0], model.head.in_features
    if not isinstance(mixer, Mamba):
        return None
    return {
        "model_type": "mamba",
        "hidden_size": width,
        "num_hidden_layers": len(model.layers),
        "state_size": mixer.d_state,
        "conv_kernel": mixer.conv_weight.shape[1],
        "expand": mixer.d_inner // width,
        "time_step_rank": mixer.dt_rank,
        "layer_norm_epsilon": eps_of(model),
        "hidden_act": "silu",
        "use_bias": False,
        "use_conv_bias": True,
    }


def falcon_fields(model: SequenceModel) -> Values | None:
    """The fields of a model of Falcon Mamba."""
    fields = mamba_fields(model)
    if fields is None or (eps := halves(model)[0].selection_norm_eps) is None:
        return None
    return fields | {"model_type": "falcon_mamba", "mixer_rms_eps": eps}


MAMBA = Family(mamba, SOURCES, "backbone", mamba_fields)
FALCON = Family(falcon, SOURCES, "backbone", falcon_fields)
