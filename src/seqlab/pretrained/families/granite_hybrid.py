"""Granite 4 (IBM 2025): Mamba-2 and attention, a gated feed-forward, experts beside it or not, and multipliers."""

from seqlab.models import SequenceModel
from seqlab.models.feedforward import SwiGLU
from seqlab.models.mixers import Attention, Mamba2
from seqlab.models.mixture_of_experts import MixtureOfExperts
from seqlab.pretrained.families import pieces
from seqlab.pretrained.families.family import Family, Settings, halves, mixers_of, rms_norm, sequence_model
from seqlab.pretrained.families.rope import rotary
from seqlab.pretrained.fields import Fields
from seqlab.pretrained.sources import Source, Table, Values, scaled

KINDS = {"mamba": "mamba2", "linear_attention": "mamba2", "attention": "attention", "full_attention": "attention"}
"""By the name in ``layer_types``, of versions up to 5.23 and after."""


def pattern(fields: Fields) -> list[str]:
    """Each layer's mixer."""
    name = "layer_types" if fields.values.get("layer_types") else "layers_block_type"
    n_layers = fields.whole("num_hidden_layers")
    kinds = fields.values.get(name) or ["mamba"] * n_layers
    if not isinstance(kinds, list) or len(kinds) != n_layers or not set(map(str, kinds)) <= KINDS.keys():
        fields.refuse(name, kinds, f"one of {', '.join(KINDS)} for each of {n_layers} layers")
    return [KINDS[kind] for kind in kinds]


def n_experts(fields: Fields) -> int:
    """How many experts there are; 0 for none."""
    return 0 if fields.values.get("num_local_experts") == 0 else fields.whole("num_local_experts", 8)


def granite(fields: Fields) -> Settings:
    """The settings of a model of Granite 4."""
    fields.only(hidden_act=("silu", "swish"), position_embedding_type=(None, "nope", "rope"))
    width, shared = fields.whole("hidden_size"), fields.whole("shared_intermediate_size", 1024)
    turns = fields.values.get("position_embedding_type") == "rope"
    positions = rotary(fields, pieces.head_width(fields)) if turns else {"rotary": False}
    mixers = {
        "mamba2": pieces.mamba2_settings(fields, fields.whole("mamba_expand", 2) * width),
        "attention": pieces.attention_settings(
            fields, bias=fields.flag("attention_bias", default=False), positions=positions
        ),
    }
    feedforward = pieces.swiglu_settings(shared)
    if experts := n_experts(fields):
        if experts > 1 and fields.whole("num_experts_per_tok", 2) == 1:
            fields.refuse("num_experts_per_tok", 1, "2 or more, whose gates are divided by their sum")
        feedforward = pieces.experts_settings(fields, experts, renormalise=True, d_shared=shared)
    return sequence_model(
        d_model=width,
        n_layers=fields.whole("num_hidden_layers"),
        layers=(pattern(fields), mixers),
        feedforward=feedforward,
        norm=rms_norm(fields.number("rms_norm_eps", 1e-6)),
        tied=fields.flag("tie_word_embeddings", default=False),
    )


def sources(fields: Fields) -> Table:
    """Which tensors are which parameters: the multipliers are in what is next to them."""
    residual, logits = fields.number("residual_multiplier", 1.0), 1 / fields.number("logits_scaling", 1.0)
    table = pieces.outer(fields, "model.norm", fields.number("embedding_multiplier", 1.0), logits)
    for i, kind in enumerate(pattern(fields)):
        inner, theirs = f"layers.{i}.mixer.inner", f"model.layers.{i}"
        table |= pieces.norms(i, "input_layernorm", "post_attention_layernorm")
        table |= feedforward(f"layers.{i}.feedforward.inner", theirs, n_experts(fields) > 0, residual)
        if kind == "mamba2":
            table |= pieces.mamba2(inner, f"{theirs}.mamba", out=residual)
        else:
            table |= pieces.attention(inner, f"{theirs}.self_attn", rows=attention_rows(fields), out=residual)
    return table


def attention_rows(fields: Fields) -> pieces.Factors:
    """Factors on queries, keys and values: scores are divided by the root of a head's width, theirs multiplied."""
    d_head, multiplier = pieces.head_width(fields), fields.number("attention_multiplier", 1.0)
    queries = fields.whole("num_attention_heads")
    others = 2 * fields.whole("num_key_value_heads", queries)
    return pieces.rows((multiplier * d_head**0.5, queries * d_head), (1.0, others * d_head))


def feedforward(ours: str, theirs: str, experts: bool, out: float) -> Table:
    """A feed-forward: ``shared_mlp`` alone, or beside experts; ``out`` is a factor on its output."""
    plain = f"{ours}.shared" if experts else ours
    table: Table = {
        f"{plain}.in_proj.weight": f"{theirs}.shared_mlp.input_linear.weight",
        f"{plain}.out_proj.weight": scaled(f"{theirs}.shared_mlp.output_linear.weight", out),
    }
    if not experts:
        return table
    theirs = f"{theirs}.block_sparse_moe"
    return table | {
        f"{ours}.router.weight": f"{theirs}.router.layer.weight",
        f"{ours}.in_proj.weight": of_experts(f"{theirs}.input_linear.weight"),
        f"{ours}.out_proj.weight": scaled(of_experts(f"{theirs}.output_linear.weight"), out),
    }


def of_experts(name: str) -> Source:
    """The experts' matrices (E, D_out, D_in) as (E, D_in, D_out)."""
    return Source((name,), lambda tensor: tensor.mT, lambda parameter, _: (parameter.mT,))


def granite_fields(model: SequenceModel) -> Values | None:
    """The fields of a model of Granite 4, with every multiplier 1."""
    mixers, feedforward = mixers_of(model), halves(model)[1]
    mamba2 = next((one for one in mixers if isinstance(one, Mamba2)), None)
    attention = next((one for one in mixers if isinstance(one, Attention)), None)
    if mamba2 is None or not isinstance(feedforward, SwiGLU | MixtureOfExperts):
        return None
    experts = isinstance(feedforward, MixtureOfExperts)
    shared = feedforward.shared if experts else feedforward
    return {
        **pieces.outer_fields(model, "granitemoehybrid", len(mixers)),
        **pieces.mamba2_fields(mamba2, model.head.in_features),
        **pieces.attention_fields(attention, model.max_length),
        "layer_types": ["attention" if isinstance(one, Attention) else "mamba" for one in mixers],
        "position_embedding_type": "rope" if attention is not None and attention.rotary else None,
        "attention_multiplier": 1.0 if attention is None else attention.d_head**-0.5,
        **(pieces.experts_fields(feedforward) if experts else {"intermediate_size": 1}),
        "num_local_experts": len(feedforward.expert_share) if experts else 0,
        "shared_intermediate_size": 1 if shared is None else shared.out_proj.in_features,
        **dict.fromkeys(("embedding_multiplier", "residual_multiplier", "logits_scaling"), 1.0),
    }


GRANITE = Family(granite, sources, "model", granite_fields, constant=pieces.FREQUENCIES)
