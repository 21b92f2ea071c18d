"""Llama, and SmolLM, which is Llama by name; Qwen2, with biases on q, k and v; Mistral, with a sliding window."""

from seqlab.pretrained.families.family import Family, Settings, part, rms_norm, sequence_model
from seqlab.pretrained.fields import Fields
from seqlab.pretrained.sources import Table, joined

MIXER, FEEDFORWARD, THEIRS = "layers.*.mixer", "layers.*.feedforward", "model.layers.*"

SOURCES: Table = {
    "embed.weight": "model.embed_tokens.weight",
    f"{MIXER}.norm.weight": f"{THEIRS}.input_layernorm.weight",
    **{
        f"{MIXER}.inner.in_proj.{kind}": joined(*(f"{THEIRS}.self_attn.{name}_proj.{kind}" for name in "qkv"))
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


def rotary_base(fields: Fields) -> float:
    """The base of the rotary frequencies: of version 5 in ``rope_parameters``, of earlier ones ``rope_theta``.

    Raises:
        UserError: the frequencies are scaled, or turn a part of each head alone.
    """
    fields.only(rope_scaling=None)
    rope = fields.values.get("rope_parameters") or {}
    if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
        fields.refuse("rope_parameters", rope, "rope_type default")
    fields = Fields(fields.values | rope, fields.architecture, fields.folder)
    fields.only(partial_rotary_factor=1)
    return fields.number("rope_theta", 10_000.0)


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
        rotary=True,
        rotary_base=rotary_base(fields),
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


FREQUENCIES = r".*\.rotary_emb\.inv_freq"
LLAMA = Family(llama, SOURCES, "model", constant=FREQUENCIES)
QWEN2 = Family(qwen2, SOURCES, "model", constant=FREQUENCIES)
MISTRAL = Family(mistral, SOURCES, "model", constant=FREQUENCIES)
