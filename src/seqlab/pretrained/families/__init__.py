"""Families of checkpoints: for each, what its ``config.json`` stands for and what its tensors are.

A new one is a file beside these with a ``Family``, and its classes' names in ``FAMILIES``.
"""

from seqlab.pretrained.families import bamba, falcon_h1, gpt2, granite_hybrid, jamba, llama, mamba, mamba2
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
    "JambaForCausalLM": jamba.JAMBA,
    "BambaForCausalLM": bamba.BAMBA,
    "GraniteMoeHybridForCausalLM": granite_hybrid.GRANITE,
    "FalconH1ForCausalLM": falcon_h1.FALCON_H1,
}
"""By the name of the class of ``transformers``, which ``config.json`` has under ``architectures``."""
