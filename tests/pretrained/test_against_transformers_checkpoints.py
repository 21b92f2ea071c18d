"""Checkpoints that ``transformers`` writes, with random weights: the same logits, gradients and greedy tokens here."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from seqlab import pretrained
from seqlab.errors import UserError
from seqlab.models import SequenceModel
from seqlab.pretrained.families import FAMILIES
from seqlab.pretrained.sources import translated

VOCABULARY, LENGTH, NEW = 37, 11, 6

MAMBA = {"hidden_size": 24, "state_size": 5, "num_hidden_layers": 2, "conv_kernel": 3, "layer_norm_epsilon": 1e-3}
MAMBA2 = MAMBA | {"num_heads": 6, "head_dim": 12, "expand": 3}
GPT2 = {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 19, "layer_norm_epsilon": 1e-3}
LLAMA = {"hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 6}
LLAMA |= {"rms_norm_eps": 1e-3}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("Mamba", MAMBA | {"time_step_rank": 3}),
    "mamba_untied": ("Mamba", MAMBA | {"tie_word_embeddings": False, "expand": 3}),
    "falcon_mamba": ("FalconMamba", MAMBA | {"mixer_rms_eps": 1e-2}),
    "mamba2_one_group": ("Mamba2", MAMBA2 | {"n_groups": 1, "tie_word_embeddings": True}),
    "mamba2_groups": ("Mamba2", MAMBA2 | {"n_groups": 3}),
    "gpt2": ("GPT2", GPT2),
    "gpt2_untied": ("GPT2", GPT2 | {"n_inner": 35, "activation_function": "gelu", "tie_word_embeddings": False}),
    "llama": ("Llama", LLAMA | {"attention_bias": True, "mlp_bias": True, "rope_theta": 1e3}),
    "llama_groups": ("Llama", LLAMA | {"num_key_value_heads": 2, "head_dim": 10, "tie_word_embeddings": True}),
    "mistral": ("Mistral", LLAMA | {"num_key_value_heads": 2, "sliding_window": 4}),
    "qwen2": (
        "Qwen2",
        LLAMA | {"num_key_value_heads": 3, "rope_parameters": {"rope_type": "default", "rope_theta": 5e4}},
    ),
}
HEADS = {"GPT2": "GPT2LMHeadModel"}


def theirs(case: str, **changes: Any) -> nn.Module:
    """A model of ``transformers`` with weights of which none is 0, 1 or alike."""
    name, settings = CASES[case]
    none = {f"{token}_token_id": None for token in ("bos", "eos", "pad")}
    config = getattr(transformers, f"{name}Config")(**({"vocab_size": VOCABULARY} | settings | changes | none))
    torch.manual_seed(0)
    model = getattr(transformers, HEADS.get(name, f"{name}ForCausalLM"))(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


def saved(model: nn.Module, folder: Path, **how: Any) -> Path:
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder, **how)
    return folder


def tokens(length: int = LENGTH) -> torch.Tensor:
    return torch.randint(VOCABULARY, (2, length), generator=torch.Generator().manual_seed(1))


def assert_close(ours: torch.Tensor, other: torch.Tensor) -> None:
    assert ours.shape == other.shape
    assert (ours - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_computes_the_same(case, tmp_path):
    other = theirs(case)
    sharded = {"max_shard_size": "10KB"} if case.endswith(("groups", "untied")) else {}
    folder = saved(other, tmp_path / "model", **sharded)
    assert (folder / "model.safetensors.index.json").exists() == bool(sharded)
    model = pretrained.load(folder)
    assert isinstance(model, SequenceModel) and not model.training
    logits, expected = model(tokens()), other(tokens(), use_cache=False).logits
    assert_close(logits, expected)

    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    (logits * direction).sum().backward()
    (expected * direction).sum().backward()
    gradients = {name: p.grad for name, p in other.named_parameters()}
    parameters = dict(model.named_parameters())
    table = FAMILIES[type(other).__name__].sources
    for name, gradient in translated(parameters, table, gradients).items():
        assert_close(parameters[name].grad, gradient)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_greedy_tokens_are_the_same(case, tmp_path):
    other = theirs(case)
    model = pretrained.load(saved(other, tmp_path))
    sequence = tokens()
    logits, state = model.prefill(sequence, model.initial_state(len(sequence)))
    for _ in range(NEW):
        expected = other(sequence, use_cache=False).logits[:, -1]
        assert_close(logits, expected)
        token = logits.argmax(dim=-1)
        assert torch.equal(token, expected.argmax(dim=-1))
        sequence = torch.cat((sequence, token[:, None]), dim=1)
        logits, state = model.step(token, state)


STATE_SPACES = {
    "mamba": {"expand": 2, "d_state": 5, "d_conv": 3, "dt_rank": 3, "use_fast_path": True},
    "mamba2_one_group": {"layer": "Mamba2", "expand": 3, "d_state": 5, "d_conv": 3, "headdim": 12},
}


@pytest.mark.parametrize("case", STATE_SPACES)
@torch.no_grad()
def test_a_checkpoint_of_state_spaces(case, tmp_path):
    """Their names differ from those of transformers in one, and the vocabulary of 37 is padded to 40."""
    other = theirs(case, vocab_size=40, layer_norm_epsilon=1e-5)
    tensors = {name.replace("embeddings", "embedding"): value for name, value in other.state_dict().items()}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    config = {"d_model": 24, "n_layer": 2, "vocab_size": 37, "rms_norm": True, "ssm_cfg": STATE_SPACES[case]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_close(pretrained.load(tmp_path)(tokens()), other(tokens(), use_cache=False).logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ssm_cfg": {"layer": "Mamba3"}}, "layer=Mamba3: .* here is Mamba1 or Mamba2"),
        ({"ssm_cfg": {"rmsnorm": False}}, "rmsnorm=False"),
        ({"ssm_cfg": {"d_statt": 3}}, "d_statt=3"),
        ({"attn_layer_idx": [1]}, r"attn_layer_idx=\[1\]"),
        ({}, r"pytorch_model\.bin: holds no tensors that can be read"),
    ],
)
def test_a_checkpoint_of_state_spaces_that_cannot_be_used(changes, message, tmp_path):
    config = {"d_model": 24, "n_layer": 2, "vocab_size": 37, "rms_norm": True, "ssm_cfg": {}} | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "pytorch_model.bin").write_bytes(b"no pickle")
    with pytest.raises(UserError, match=message) as refused:
        pretrained.load(tmp_path)
    assert len(str(refused.value).splitlines()) == 2
