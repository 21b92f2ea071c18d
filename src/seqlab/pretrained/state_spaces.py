"""Checkpoints of ``mamba_ssm``, state-spaces' own: their fields and names are brought to those of ``transformers``."""

from pathlib import Path
from typing import Any

from seqlab.pretrained.fields import Fields

LAYERS = {"Mamba1": "MambaForCausalLM", "Mamba2": "Mamba2ForCausalLM"}
"""The class of ``transformers`` that computes what a layer of ``mamba_ssm`` does."""

FIELDS = {"d_state": "state_size", "d_conv": "conv_kernel", "bias": "use_bias", "conv_bias": "use_conv_bias"}
FIELDS |= {"expand": "expand", "dt_rank": "time_step_rank", "headdim": "head_dim", "ngroups": "n_groups"}
FIELDS |= {"dt_limit": "time_step_limit", "layer": "layer"}

OF_TRAINING = {"dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "A_init_range", "conv_init"}
OF_TRAINING |= {"use_fast_path", "use_mem_eff_path", "chunk_size"}
"""Settings of a layer that do not change what trained weights compute."""

ORDINARY = {"d_ssm": None, "D_has_hdim": False, "rmsnorm": True, "norm_before_gate": False}
"""Settings of a layer that can only be as they usually are."""


def is_state_spaces(values: dict[str, Any]) -> bool:
    """Whether a ``config.json`` is of ``mamba_ssm``."""
    return isinstance(values.get("ssm_cfg"), dict) and "model_type" not in values


def as_transformers(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The fields that ``transformers`` would have for the same model.

    Args:
        values: of ``config.json``.
        folder: the checkpoint's.

    Raises:
        UserError: one of them cannot be expressed.
    """
    fields = Fields(values, "mamba_ssm's MambaConfig", folder)
    fields.only(rms_norm=True, d_intermediate=0, attn_layer_idx=([],))
    layer = Fields(values["ssm_cfg"], "a layer of mamba_ssm", folder)
    layer.only(layer=tuple(LAYERS), **ORDINARY)
    for name in sorted(layer.values.keys() - FIELDS.keys() - ORDINARY.keys() - OF_TRAINING):
        layer.refuse(name, layer.values[name], f"one of {', '.join(FIELDS)}")
    width, multiple = fields.whole("d_model"), fields.whole("pad_vocab_size_multiple", 8)
    vocabulary = -(-fields.whole("vocab_size", 50277) // multiple) * multiple
    outer = {"hidden_size": width, "num_hidden_layers": fields.whole("n_layer"), "vocab_size": vocabulary}
    outer |= {"tie_word_embeddings": fields.flag("tie_embeddings", default=True)}
    architecture = LAYERS[layer.values.get("layer", "Mamba1")]
    if architecture == "Mamba2ForCausalLM":
        heads = int(layer.number("expand", 2) * width) // layer.whole("headdim", 64)
        outer |= {"n_groups": 1, "num_heads": heads}
    return (
        outer
        | {FIELDS[key]: value for key, value in layer.values.items() if key in FIELDS}
        | {"architectures": [architecture]}
    )


def renamed(tensor: str) -> str:
    """The name that ``transformers`` has for a tensor."""
    return tensor.replace("backbone.embedding.", "backbone.embeddings.")
