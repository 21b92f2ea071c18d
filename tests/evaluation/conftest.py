"""Checkpoints of ``transformers`` with random weights and a tokenizer of their own."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

from support import LINES

START = "<|begin|>"
SIZES = {
    "GPT2": {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 64},
    "Mamba": {"hidden_size": 24, "state_size": 5, "num_hidden_layers": 2, "conv_kernel": 3},
}


def write_tokenizer(folder: Path) -> int:
    """A tokenizer by bytes and their pairs, as GPT-2's; returns the size of its vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=270, special_tokens=[START], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([LINES], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": START, "eos_token": START, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    return tokenizer.get_vocab_size()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[[str], tuple[nn.Module, Path]]:
    """A model of ``transformers``, in evaluation mode, and the folder of its checkpoint."""

    def made(kind: str) -> tuple[nn.Module, Path]:
        folder = tmp_path / kind
        folder.mkdir()
        tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
        config = getattr(transformers, f"{kind}Config")(vocab_size=write_tokenizer(folder), **SIZES[kind], **tokens)
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        transformers.utils.logging.disable_progress_bar()
        model.save_pretrained(folder)
        return model, folder

    return made
