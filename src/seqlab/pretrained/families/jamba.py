"""Jamba (Lieber et al. 2024, arXiv:2403.19887): Mamba-1 with norms in its selection, some attention, some experts."""

from collections.abc import Sequence

from torch import nn

from seqlab.models import SequenceModel
from seqlab.models.mixers import Attention, Mamba
from seqlab.models.mixture_of_experts import MixtureOfExperts
from seqlab.pretrained.families import pieces
from seqlab.pretrained.families.family import (
    Family,
    Settings,
    feedforwards_of,
    mixers_of,
    part,
    rms_norm,
    sequence_model,
)
from seqlab.pretrained.fields import Fields
from seqlab.pretrained.sources import Table, Values


def every(fields: Fields, name: str, period: int, offset: int) -> list[bool]:
    """Which layers are of one in so many, as ``<name>_layer_period`` and ``<name>_layer_offset`` say."""
    period, offset = fields.whole(f"{name}_layer_period", period), fields.values.get(f"{name}_layer_offset", offset)
    if type(offset) is not int or not 0 <= offset < period:
        fields.refuse(f"{name}_layer_offset", offset, f"a whole number below {name}_layer_period={period}")
    return [i % period == offset for i in range(fields.whole("num_hidden_layers"))]


def attends(fields: Fields) -> list[bool]:
    """Which layers have attention."""
    return every(fields, "attn", 8, 4)


def has_experts(fields: Fields) -> list[bool]:
    """Which layers have experts; none where there is one expert alone."""
    several = fields.whole("num_experts", 16) > 1
    return [several and here for here in every(fields, "expert", 2, 1)]


def jamba(fields: Fields) -> Settings:
    """The settings of a model of Jamba."""
    fields.only(hidden_act=("silu", "swish"), mamba_conv_bias=True, mamba_proj_bias=False)
    width, rank = fields.whole("hidden_size"), fields.values.get("mamba_dt_rank")
    eps = fields.number("rms_norm_eps", 1e-6)
    mamba = part(
        "seqlab.models.mixers.Mamba",
        d_state=fields.whole("mamba_d_state", 16),
        d_conv=fields.whole("mamba_d_conv", 4),
        d_inner=fields.whole("mamba_expand", 2) * width,
        dt_rank=None if rank == "auto" else fields.whole("mamba_dt_rank", None),
        selection_norm_eps=eps,
        selection_norm_weights=True,
    )
    attention = pieces.attention_settings(fields, bias=False, positions={"rotary": False})
    plain = pieces.swiglu_settings(fields.whole("intermediate_size"))
    experts = pieces.experts_settings(fields, fields.whole("num_experts", 16), renormalise=False)
    return sequence_model(
        d_model=width,
        n_layers=fields.whole("num_hidden_layers"),
        layers=(
            ["attention" if here else "mamba" for here in attends(fields)],
            {"mamba": mamba, "attention": attention},
        ),
        feedforward=[experts if here else plain for here in has_experts(fields)],
        norm=rms_norm(eps),
        tied=fields.flag("tie_word_embeddings", default=False),
    )


def sources(fields: Fields) -> Table:
    """Which tensors are which parameters."""
    table = pieces.outer(fields, "model.final_layernorm")
    for i, (attention, experts) in enumerate(zip(attends(fields), has_experts(fields), strict=True)):
        inner, theirs = f"layers.{i}.mixer.inner", f"model.layers.{i}"
        table |= pieces.norms(i, "input_layernorm", "pre_ff_layernorm")
        if attention:
            table |= pieces.attention(inner, f"{theirs}.self_attn")
        else:
            table |= pieces.mamba(inner, f"{theirs}.mamba") | selection_norms(inner, f"{theirs}.mamba")
        feedforward = f"layers.{i}.feedforward.inner", f"{theirs}.feed_forward"
        if experts:
            table |= pieces.listed_experts(*feedforward, fields.whole("num_experts", 16))
        else:
            table |= pieces.swiglu(*feedforward)
    return table


def selection_norms(ours: str, theirs: str) -> Table:
    """The norms of what Mamba-1 selects with."""
    names = {"dt": "dt_layernorm", "B": "b_layernorm", "C": "c_layernorm"}
    return {f"{ours}.selection_norms.{own}": f"{theirs}.{name}.weight" for own, name in names.items()}


def jamba_fields(model: SequenceModel) -> Values | None:
    """The fields of a model of Jamba."""
    mixers, feedforwards, width = mixers_of(model), feedforwards_of(model), model.head.in_features
    mamba = next((one for one in mixers if isinstance(one, Mamba)), None)
    attention = next((one for one in mixers if isinstance(one, Attention)), None)
    experts = next((one for one in feedforwards if isinstance(one, MixtureOfExperts)), None)
    if mamba is None or None in feedforwards:
        return None
    hidden = {"intermediate_size": feedforwards[0].out_proj.weight.shape[-1], "num_experts": 1}
    if experts is not None:
        hidden = pieces.experts_fields(experts) | {"num_experts": len(experts.expert_share)}
    return {
        **pieces.outer_fields(model, "jamba", len(mixers)),
        **pieces.attention_fields(attention, model.max_length),
        **regular("attn", mixers, Attention),
        **regular("expert", feedforwards, MixtureOfExperts),
        **hidden,
        "mamba_d_state": mamba.d_state,
        "mamba_d_conv": mamba.conv_weight.shape[1],
        "mamba_expand": mamba.d_inner // width,
        "mamba_dt_rank": mamba.dt_rank,
        "mamba_conv_bias": True,
        "mamba_proj_bias": False,
    }


def regular(name: str, parts: Sequence[nn.Module], kind: type[nn.Module]) -> Values:
    """The period and the offset of the layers that have a kind of part, from the first two of them."""
    found = [i for i, part in enumerate(parts) if isinstance(part, kind)]
    first = found[0] if found else len(parts)
    period = found[1] - first if len(found) > 1 else len(parts) + 1
    return {f"{name}_layer_period": period, f"{name}_layer_offset": first}


JAMBA = Family(jamba, sources, "model", jamba_fields)
