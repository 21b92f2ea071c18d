#!/usr/bin/env bash
# transformers 5.24.0: AutoTokenizer.from_pretrained gives another tokenizer than the folder's tokenizer.json where config.json
# has model_type qwen2, without a warning. PreTrainedTokenizerFast.from_pretrained gives the one that is there.
#
# Of a model_type in MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS that has a class of its own in TOKENIZER_MAPPING_NAMES, the
# tokenizer_class of tokenizer_config.json is not followed: Qwen2Tokenizer takes the vocabulary and merges of
# tokenizer.json, and puts its own normalizer, pre-tokenizer and decoder in the place of those there. A tokenizer by
# characters then drops white space and every letter that is not ASCII.
#
# Seen on 2026-11-30, Python 3.11:
#   llama: the ids of tokenizer.json by both; qwen2: other ids by AutoTokenizer
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv venv
venv/bin/pip install -q --no-compile transformers==5.24.0 tokenizers==0.23.3
cat > load.py <<'PYTHON'
import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

text, symbols = "to é", ["o", "q", " ", "t", "x", "é"]
tokenizer = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(symbols)}, unk_token="?"))
tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
expected = tokenizer.encode(text).ids
for kind in ("llama", "qwen2"):
    Path(kind).mkdir()
    tokenizer.save(f"{kind}/tokenizer.json")
    none = {f"{token}_token_id": None for token in ("bos", "eos", "pad")}
    Path(kind, "config.json").write_text(json.dumps({"model_type": kind, "vocab_size": len(symbols), **none}))
    Path(kind, "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    for name, loader in {"AutoTokenizer": AutoTokenizer, "PreTrainedTokenizerFast": PreTrainedTokenizerFast}.items():
        same = loader.from_pretrained(kind)(text)["input_ids"] == expected
        print(f"{kind} by {name}: {'the ids of tokenizer.json' if same else 'other ids'}")
PYTHON
venv/bin/python load.py | tee out.txt
diff out.txt - <<'EXPECTED'
llama by AutoTokenizer: the ids of tokenizer.json
llama by PreTrainedTokenizerFast: the ids of tokenizer.json
qwen2 by AutoTokenizer: other ids
qwen2 by PreTrainedTokenizerFast: the ids of tokenizer.json
EXPECTED
echo "as described"
