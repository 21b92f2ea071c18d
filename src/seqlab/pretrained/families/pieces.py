"""The parts that hybrids are made of: their settings, and which tensors are which parameters.

``ours`` is the part's name in a ``SequenceModel``, ``theirs`` the one in ``transformers``.
"""

import math

import torch

from seqlab.models import SequenceModel
from seqlab.models.mixers import Attention, Mamba2
from seqlab.models.mixture_of_experts import MixtureOfExperts
from seqlab.pretrained.families.family import Settings, eps_of, part
from seqlab.pretrained.families.llama import FREQUENCIES, HEADS
from seqlab.pretrained.families.rope import rotary_fields
from seqlab.pretrained.fields import Fields
from seqlab.pretrained.sources import Source, Table, Values, depthwise, joined, scaled

__all__ = ["FREQUENCIES"]

WEIGHT, BIAS = "weight", "bias"

Factors = float | torch.Tensor
"""On all of a matrix, or on each of its rows."""


def outer(fields: Fields, norm: str, embedding: float = 1.0, logits: float = 1.0) -> Table:
    """Embedding, last norm and head; a tied head has the embedding's factor too, which the norm takes back.

    Args:
        fields: of the checkpoint.
        norm: the last norm's name.
        embedding: factor on what is looked up.
        logits: factor on the logits, which the norm has.
    """
    tied = fields.flag("tie_word_embeddings", default=False)
    return {
        "embed.weight": scaled("model.embed_tokens.weight", embedding),
        "norm.weight": scaled(f"{norm}.weight", logits / embedding if tied else logits),
        "head.weight": "lm_head.weight",
    }


def norms(layer: int | str, mixer: str, feedforward: str) -> Table:
    """The norms of a layer, before its mixer and its feed-forward."""
    names = {"mixer": mixer, "feedforward": feedforward}
    return {f"layers.{layer}.{half}.norm.weight": f"model.layers.{layer}.{name}.weight" for half, name in names.items()}


def mamba(ours: str, theirs: str) -> Table:
    """A mixer of Mamba-1."""
    same = ("in_proj.weight", "x_proj.weight", "dt_proj.weight", "dt_proj.bias", "A_log", "D", "out_proj.weight")
    return {f"{ours}.{name}": f"{theirs}.{name}" for name in same} | convolution(ours, theirs)


def mamba2(ours: str, theirs: str, out: float = 1.0) -> Table:
    """A mixer of Mamba-2; ``out`` is a factor on its output."""
    same = ("in_proj.weight", "dt_bias", "A_log", "D", "norm.weight")
    return {
        **{f"{ours}.{name}": f"{theirs}.{name}" for name in same},
        **convolution(ours, theirs),
        f"{ours}.out_proj.weight": scaled(f"{theirs}.out_proj.weight", out),
    }


def convolution(ours: str, theirs: str) -> Table:
    """The causal convolution of either."""
    return {f"{ours}.conv_weight": depthwise(f"{theirs}.conv1d.weight"), f"{ours}.conv_bias": f"{theirs}.conv1d.bias"}


def attention(ours: str, theirs: str, rows: Factors = 1.0, out: float = 1.0) -> Table:
    """Attention; ``rows`` are factors on queries, keys and values, ``out`` is one on the output."""
    return {
        f"{ours}.{name}.{kind}": scaled(source, factor)
        for kind in (WEIGHT, BIAS)
        for name, source, factor in (
            ("in_proj", joined(*(f"{theirs}.{one}_proj.{kind}" for one in "qkv"), shares=HEADS), rows),
            ("out_proj", f"{theirs}.o_proj.{kind}", out),
        )
    }


def swiglu(ours: str, theirs: str, gate: Factors = 1.0, out: float = 1.0) -> Table:
    """A gated feed-forward; ``gate`` are factors on the rows of gate and value, ``out`` is one on the output."""
    return {
        f"{ours}.{name}.{kind}": scaled(source, factor)
        for kind in (WEIGHT, BIAS)
        for name, source, factor in (
            ("in_proj", joined(*(f"{theirs}.{one}_proj.{kind}" for one in ("gate", "up"))), gate),
            ("out_proj", f"{theirs}.down_proj.{kind}", out),
        )
    }


def listed_experts(ours: str, theirs: str, n_experts: int) -> Table:
    """Experts that are stored one by one, and their router."""

    def of_each(*names: str) -> Source:
        def change(*matrices: torch.Tensor) -> torch.Tensor:
            each = zip(*[iter(matrices)] * len(names), strict=True)
            return torch.stack([torch.cat(some).mT for some in each])  # (E, D_in, D_out)

        def undo(parameter: torch.Tensor, _: Values) -> tuple[torch.Tensor, ...]:
            return tuple(one for maps in parameter for one in maps.mT.chunk(len(names)))

        return Source(tuple(f"{theirs}.experts.{e}.{name}" for e in range(n_experts) for name in names), change, undo)

    return {
        f"{ours}.router.weight": f"{theirs}.router.weight",
        f"{ours}.in_proj.weight": of_each("gate_proj.weight", "up_proj.weight"),
        f"{ours}.out_proj.weight": of_each("down_proj.weight"),
    }


def rows(*parts: tuple[float, int]) -> torch.Tensor:
    """Factors on a matrix's rows, (n,) float32, from each factor and its number of rows."""
    return torch.cat([torch.full((count,), factor) for factor, count in parts])


def attention_settings(fields: Fields, *, bias: bool, positions: Settings) -> Settings:
    """Attention; ``positions`` as ``rope.rotary`` gives them."""
    heads = fields.whole("num_attention_heads")
    return part(
        "seqlab.models.mixers.Attention",
        n_heads=heads,
        n_kv_heads=fields.whole("num_key_value_heads", heads),
        d_inner=heads * head_width(fields),
        bias=bias,
        **positions,
    )


def head_width(fields: Fields) -> int:
    """Width of a head of attention."""
    return fields.whole("head_dim", fields.whole("hidden_size") // fields.whole("num_attention_heads"))


def mamba2_settings(fields: Fields, d_inner: int, **more: bool) -> Settings:
    """A mixer of Mamba-2 of inner width ``d_inner`` by the fields that Bamba has for it; ``more`` of its settings."""
    fields.only(mamba_conv_bias=True, mamba_proj_bias=False, time_step_limit=([0.0, math.inf],))
    heads = fields.whole("mamba_n_heads", 128)
    d_head = d_inner // heads if fields.values.get("mamba_d_head") in (None, "auto") else fields.whole("mamba_d_head")
    if heads * d_head != d_inner:
        fields.refuse("mamba_d_head", d_head, f"{d_inner} channels / mamba_n_heads={heads}")
    return part(
        "seqlab.models.mixers.Mamba2",
        n_heads=heads,
        d_state=fields.whole("mamba_d_state", 256),
        d_conv=fields.whole("mamba_d_conv", 4),
        d_inner=d_inner,
        n_groups=fields.whole("mamba_n_groups", 1),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        **more,
    )


def swiglu_settings(d_hidden: int, *, bias: bool = False) -> Settings:
    """A gated feed-forward of hidden width ``d_hidden``."""
    return part("seqlab.models.feedforward.SwiGLU", d_ff=-(-3 * d_hidden // 2), d_hidden=d_hidden, bias=bias)


def experts_settings(fields: Fields, n_experts: int, *, renormalise: bool, d_shared: int | None = None) -> Settings:
    """A mixture of experts; as with transformers, training has no loss of its own for it unless a run sets one."""
    d_hidden = fields.whole("intermediate_size")
    return part(
        "seqlab.models.mixture_of_experts.MixtureOfExperts",
        d_ff=-(-3 * d_hidden // 2),
        d_hidden=d_hidden,
        d_shared=d_shared,
        n_experts=n_experts,
        top_k=fields.whole("num_experts_per_tok", 2),
        renormalise=renormalise,
        balance_weight=0.0,
        dropout=0.0,
    )


def outer_fields(model: SequenceModel, model_type: str, n_layers: int) -> Values:
    """The fields that all of these architectures have besides those of their layers."""
    return {
        "model_type": model_type,
        "hidden_size": model.head.in_features,
        "num_hidden_layers": n_layers,
        "hidden_act": "silu",
        "max_position_embeddings": model.max_length,
        "rms_norm_eps": eps_of(model),
    }


def attention_fields(attention: Attention | None, length: int) -> Values:
    """The fields of attention; of a model without any, of one head."""
    if attention is None:
        return {"num_attention_heads": 1, "num_key_value_heads": 1}
    heads = {"num_attention_heads": attention.n_heads, "num_key_value_heads": attention.n_kv_heads}
    positions = {"rope_parameters": rotary_fields(attention, length)} if attention.rotary else {}
    bias = {"attention_bias": attention.in_proj.bias is not None}
    return heads | bias | positions | {"head_dim": attention.d_head}


def mamba2_fields(mixer: Mamba2, width: int) -> Values:
    """The fields of a mixer of Mamba-2."""
    return {
        "mamba_n_heads": mixer.n_heads,
        "mamba_d_head": mixer.d_inner // mixer.n_heads,
        "mamba_n_groups": mixer.n_groups,
        "mamba_d_state": mixer.d_state,
        "mamba_d_conv": mixer.conv_weight.shape[1],
        "mamba_expand": max(1, mixer.d_inner // width),
        "mamba_conv_bias": True,
        "mamba_proj_bias": False,
    }


def experts_fields(experts: MixtureOfExperts) -> Values:
    """The fields of a mixture of experts but for their number."""
    return {"num_experts_per_tok": experts.top_k, "intermediate_size": experts.out_proj.weight.shape[1]}
