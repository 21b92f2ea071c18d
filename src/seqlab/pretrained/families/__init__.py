"""Families of checkpoints: for each, what its ``config.json`` stands for and what its tensors are.

A new one is a file beside these with a ``Family``, and its classes' names in ``FAMILIES``.
"""

from seqlab.pretrained.families import gpt2, llama, mamba, mamba2
from seqlab.pretrained.families.family import Family

__all__ = ["FAMILIES", "Family"]

FAMILIES: dict[str, Family] = {
    "MambaForCausalLM": mamba.MAMBA,
    "FalconMambaForCausalLM": mamba.FALCON,
    "Mamba2ForCausalLM": mamba2.MAMBA2,
    "GPT2LMHeadModel": gpt2.GPT2,
    "LlamaForCausalLM": llama.LLAMA,
    "Qwen2ForCausalLM": llama.QWEN2,
    "MistralForCausalLM": llama.MISTRAL,
}
"""By the name of the class of ``transformers``, which ``config.json`` has under ``architectures``."""
