"""Checkpoints that ``transformers`` writes, with random weights: the same logits, gradients and greedy tokens here."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers.core_model_loading import revert_weight_conversion

from seqlab import pretrained
from seqlab.errors import UserError
from seqlab.models import SequenceModel
from seqlab.pretrained.checkpoint import Checkpoint
from seqlab.pretrained.counterpart import counterpart
from seqlab.pretrained.export import write_model
from seqlab.pretrained.files import tensors_in
from seqlab.pretrained.sources import scaled, source_of

VOCABULARY, LENGTH, NEW = 37, 11, 6

MAMBA = {"hidden_size": 24, "state_size": 5, "num_hidden_layers": 2, "conv_kernel": 3, "layer_norm_epsilon": 1e-3}
MAMBA2 = MAMBA | {"num_heads": 6, "head_dim": 12, "expand": 3}
GPT2 = {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 19, "layer_norm_epsilon": 1e-3}
LLAMA = {"hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 6}
LLAMA |= {"rms_norm_eps": 1e-3}
HYBRID = LLAMA | {"num_key_value_heads": 2, "num_hidden_layers": 3}
HYBRID_MAMBA2 = HYBRID | {"mamba_n_heads": 6, "mamba_d_state": 5, "mamba_d_conv": 3}
EXTENDED = {"original_max_position_embeddings": 7, "rope_theta": 1e3, "factor": 3.5}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("Mamba", MAMBA | {"time_step_rank": 3}),
    "mamba_untied": ("Mamba", MAMBA | {"tie_word_embeddings": False, "expand": 3}),
    "falcon_mamba": ("FalconMamba", MAMBA | {"mixer_rms_eps": 1e-2}),
    "mamba2_one_group": ("Mamba2", MAMBA2 | {"n_groups": 1, "tie_word_embeddings": True}),
    "mamba2_groups": ("Mamba2", MAMBA2 | {"n_groups": 3, "norm_before_gate": True}),  # as Codestral's says, unused
    "gpt2": ("GPT2", GPT2),
    "gpt2_untied": ("GPT2", GPT2 | {"n_inner": 35, "activation_function": "gelu", "tie_word_embeddings": False}),
    "llama": ("Llama", LLAMA | {"attention_bias": True, "mlp_bias": True, "rope_theta": 1e3}),
    "llama_groups": ("Llama", LLAMA | {"num_key_value_heads": 2, "head_dim": 10, "tie_word_embeddings": True}),
    "mistral": ("Mistral", LLAMA | {"num_key_value_heads": 2, "sliding_window": 4}),
    "qwen2": (
        "Qwen2",
        LLAMA | {"num_key_value_heads": 3, "rope_parameters": {"rope_type": "default", "rope_theta": 5e4}},
    ),
    **{
        f"rope_{kind}": ("Llama", LLAMA | {"head_dim": 10, "rope_parameters": {"rope_type": kind} | EXTENDED | more})
        for kind, more in {
            "linear": {},
            "llama3": {"low_freq_factor": 0.1, "high_freq_factor": 1.0},
            "yarn": {"beta_fast": 2.0, "beta_slow": 0.1},
            "longrope": {"long_factor": [1.0, 1.5, 2, 2.5, 3.5], "short_factor": [1.0, 1.5, 2, 2.5, 3.5]},
        }.items()
    },
    "jamba": (
        "Jamba",
        HYBRID
        | {"num_experts": 4, "attn_layer_period": 3, "attn_layer_offset": 1, "mamba_d_state": 5, "mamba_dt_rank": 3},
    ),
    "bamba_groups": (
        "Bamba",
        HYBRID_MAMBA2 | {"hidden_size": 48, "attn_layer_indices": [1], "attention_bias": True, "mamba_n_groups": 3},
    ),
    "granite_hybrid": (
        "GraniteMoeHybrid",
        HYBRID_MAMBA2
        | {"layer_types": ["linear_attention", "full_attention", "linear_attention"], "num_local_experts": 4}
        | {
            "embedding_multiplier": 12,
            "logits_scaling": 3.0,
            "residual_multiplier": 0.22,
            "shared_intermediate_size": 19,
        }
        | {"attention_multiplier": 0.15},
    ),
    "granite_hybrid_dense": (
        "GraniteMoeHybrid",
        HYBRID_MAMBA2
        | {
            "layer_types": ["attention", "mamba", "attention"],
            "num_local_experts": 0,
            "position_embedding_type": "rope",
        }
        | {"embedding_multiplier": 12, "logits_scaling": 3.0, "tie_word_embeddings": True, "attention_bias": True},
    ),
    **{
        f"falcon_h1{name}": (
            "FalconH1",
            HYBRID_MAMBA2
            | {
                "num_hidden_layers": 2,
                "mamba_d_ssm": 36,
                "mamba_n_groups": 3,
                "ssm_multipliers": [0.5, 2.0, 0.7, 1.5, 0.9],
            }
            | {"mlp_multipliers": [0.8, 1.7], "key_multiplier": 0.3, "ssm_in_multiplier": 1.3}
            | {"ssm_out_multiplier": 0.6, "attention_in_multiplier": 1.2, "attention_out_multiplier": 0.7}
            | {"lm_head_multiplier": 0.4, "embedding_multiplier": 5.0}
            | more,
        )
        for name, more in {
            "": {},
            "_gated_norm": {"mamba_rms_norm": True, "mamba_norm_before_gate": False, "tie_word_embeddings": True},
            "_norm_first": {"mamba_rms_norm": True},
        }.items()
    },
}
HEADS = {"GPT2": "GPT2LMHeadModel"}


def theirs(case: str, **changes: Any) -> nn.Module:
    """A model of ``transformers`` with weights of which none is 0, 1 or alike."""
    name, settings = CASES[case]
    none = {f"{token}_token_id": None for token in ("bos", "eos", "pad")}
    config = getattr(transformers, f"{name}Config")(**({"vocab_size": VOCABULARY} | settings | changes | none))
    config._experts_implementation = "eager"  # torch's product of groups takes no widths that are odd
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


def carried_back(folder: Path, model: SequenceModel) -> dict[str, torch.Tensor]:
    """The gradients of a checkpoint's tensors, by their names, from those of the parameters that are made of them."""
    table = Checkpoint.read(str(folder)).table
    with tensors_in(folder) as found:
        tensors = {name: read().requires_grad_() for name, read in found.items()}
    for name, p in model.named_parameters():
        source = source_of(name, table)
        source.change(*(tensors[one] for one in source.names)).backward(p.grad)
    return {name: tensor.grad for name, tensor in tensors.items()}


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
    ours = carried_back(folder, model)
    for name, gradient in revert_weight_conversion(other, gradients).items():
        assert_close(ours[name], gradient)


def test_a_multiplier_is_not_rounded_as_the_weights_are():
    stored = torch.randn(5, 3).to(torch.bfloat16)
    for factor in (0.22, torch.tensor([0.3, 1, 1, 1, 7.7])):
        expected = stored.float() * (factor if isinstance(factor, float) else factor[:, None])
        assert torch.equal(scaled("weight", factor).change(stored), expected)
    assert scaled("weight", torch.ones(5)).change(stored) is stored


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_what_is_read_is_written_again(case, tmp_path):
    """To the bit here; multipliers are then in the weights, and any scaled frequencies those of longrope."""
    other = theirs(case)
    model = pretrained.load(saved(other, tmp_path / "theirs"))
    folder = tmp_path / "ours"
    folder.mkdir()
    write_model(model, found := counterpart(model), folder)
    assert found.architecture == type(other).__name__
    again, before = pretrained.load(folder).state_dict(), model.state_dict()
    assert again.keys() == before.keys() and all(torch.equal(again[name], before[name]) for name in again)
    read = type(other).from_pretrained(folder, experts_implementation="eager")
    assert_close(read(tokens(), use_cache=False).logits, other(tokens(), use_cache=False).logits)


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
