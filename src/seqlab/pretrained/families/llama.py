"""Llama, and SmolLM, which is Llama by name; Qwen2, with biases on q, k and v; Mistral, with a sliding window."""

from seqlab.models import SequenceModel
from seqlab.models.feedforward import SwiGLU
from seqlab.models.mixers import Attention
from seqlab.pretrained.families.family import Family, Settings, eps_of, halves, part, rms_norm, sequence_model
from seqlab.pretrained.families.rope import rotary, rotary_fields
from seqlab.pretrained.fields import Fields
from seqlab.pretrained.sources import Table, Values, joined

MIXER, FEEDFORWARD, THEIRS = "layers.*.mixer", "layers.*.feedforward", "model.layers.*"
HEADS = ("num_attention_heads", "num_key_value_heads", "num_key_value_heads")
"""What the rows of q, k and v are multiples of."""

SOURCES: Table = {
    "embed.weight": "model.embed_tokens.weight",
    f"{MIXER}.norm.weight": f"{THEIRS}.input_layernorm.weight",
    **{
        f"{MIXER}.inner.in_proj.{kind}": joined(
            *(f"{THEIRS}.self_attn.{name}_proj.{kind}" for name in "qkv"), shares=HEADS
        )
        for kind in ("weight", "bias")
    },
    **{f"{MIXER}.inner.out_proj.{kind}": f"{THEIRS}.self_attn.o_proj.{kind}" for kind in ("weight", "bias")},
    f"{FEEDFORWARD}.norm.weight": f"{THEIRS}.post_attention_layernorm.weight",
    **{
        f"{FEEDFORWARD}.inner.in_proj.{kind}": joined(*(f"{THEIRS}.mlp.{name}_proj.{kind}" for name in ("gate", "up")))
        for kind in ("weight", "bias")
    },
    **{f"{FEEDFORWARD}.inner.out_proj.{kind}": f"{THEIRS}.mlp.down_proj.{kind}" for kind in ("weight", "bias")},
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}


def decoder(
    fields: Fields, *, bias: bool = False, out_bias: bool = False, mlp_bias: bool = False, window: int | None = None
) -> Settings:
    """The settings of a model of this kind with these biases, and a window if there is one."""
    fields.only(hidden_act=("silu", "swish"))
    width, heads = fields.whole("hidden_size"), fields.whole("num_attention_heads")
    d_head, d_hidden = fields.whole("head_dim", width // heads), fields.whole("intermediate_size")
    attention = part(
        "seqlab.models.mixers.Attention",
        n_heads=heads,
        n_kv_heads=fields.whole("num_key_value_heads", heads),
        d_inner=heads * d_head,
        **rotary(fields, d_head),
        bias=bias,
        out_bias=out_bias,
        window=window,
    )
    return sequence_model(
        d_model=width,
        n_layers=fields.whole("num_hidden_layers"),
        mixer=("attention", attention),
        feedforward=part(
            "seqlab.models.feedforward.SwiGLU", d_ff=-(-3 * d_hidden // 2), d_hidden=d_hidden, bias=mlp_bias
        ),
        norm=rms_norm(fields.number("rms_norm_eps", 1e-6)),
        tied=fields.flag("tie_word_embeddings", default=False),
    )


def llama(fields: Fields) -> Settings:
    """The settings of a model of Llama."""
    width, heads = fields.whole("hidden_size"), fields.whole("num_attention_heads")
    if width % heads:
        fields.refuse("num_attention_heads", heads, f"a divisor of hidden_size={width}")
    bias = fields.flag("attention_bias", default=False)
    return decoder(fields, bias=bias, out_bias=bias, mlp_bias=fields.flag("mlp_bias", default=False))


def qwen2(fields: Fields) -> Settings:
    """The settings of a model of Qwen2."""
    fields.only(use_sliding_window=False)
    return decoder(fields, bias=True)


def mistral(fields: Fields) -> Settings:
    """The settings of a model of Mistral; its window is 4,096 where it is missing, and none where it is null."""
    window = fields.whole("sliding_window", None) if "sliding_window" in fields.values else 4096
    return decoder(fields, window=window)


def decoder_fields(model: SequenceModel, model_type: str) -> Values | None:
    """The fields of a model of this kind but for its biases and its window."""
    attention, feedforward = halves(model)
    if not (isinstance(attention, Attention) and isinstance(feedforward, SwiGLU)):
        return None
    return {
        "model_type": model_type,
        "hidden_size": model.head.in_features,
        "num_hidden_layers": len(model.layers),
        "num_attention_heads": attention.n_heads,
        "num_key_value_heads": attention.n_kv_heads,
        "head_dim": attention.d_head,
        "intermediate_size": feedforward.out_proj.in_features,
        "hidden_act": "silu",
        "max_position_embeddings": model.max_length,
        "rms_norm_eps": eps_of(model),
        "rope_parameters": rotary_fields(attention, model.max_length),
        "rope_theta": attention.rotary_base,  # where versions before 5 look for it
    }


def llama_fields(model: SequenceModel) -> Values | None:
    """The fields of a model of Llama."""
    if (fields := decoder_fields(model, "llama")) is None:
        return None
    attention_bias, mlp_bias = (half.in_proj.bias is not None for half in halves(model))
    return fields | {"attention_bias": attention_bias, "mlp_bias": mlp_bias}


def qwen2_fields(model: SequenceModel) -> Values | None:
    """The fields of a model of Qwen2; without biases it is one of Llama."""
    fields = decoder_fields(model, "qwen2")
    return fields if fields and halves(model)[0].in_proj.bias is not None else None


def mistral_fields(model: SequenceModel) -> Values | None:
    """The fields of a model of Mistral; without a window it is one of Llama."""
    fields = decoder_fields(model, "mistral")
    return fields | {"sliding_window": window} if fields and (window := halves(model)[0].window) else None


FREQUENCIES = r".*\.rotary_emb\.inv_freq"
LLAMA = Family(llama, SOURCES, "model", llama_fields, constant=FREQUENCIES)
QWEN2 = Family(qwen2, SOURCES, "model", qwen2_fields, constant=FREQUENCIES, own_tokenizer=True)
MISTRAL = Family(mistral, SOURCES, "model", mistral_fields, constant=FREQUENCIES)
