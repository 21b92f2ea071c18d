#!/usr/bin/env bash
# torch 2.13.0: torch.distributed.checkpoint with HuggingFaceStorageWriter saves a state that holds one number beside its
# tensors without a word, and no reader opens the file: it is called .safetensors and begins with a pickle.
#
# Values that are no tensors, as the learning rate of optimizer.state_dict(), are written by torch.save at the head of the
# file, one after the other; the safetensors part follows. The format has no room for that: its first 8 bytes are the
# length of the header, and a zip archive's give a length that is refused. The index names the number as if it were a
# tensor, with a total_size that counts it. The tensors can be got by cutting the file where their part begins. The default
# writer takes the same state, and the number comes back.
#
# Seen on 2026-11-30, Python 3.11, safetensors 0.8.0:
#   {weight}: saved, file starts as safetensors, read by torch, read by safetensors
#   {weight, step: 3}: saved, file starts as a zip archive, torch: header too large, safetensors: header too large
#   the index has: step, weight
#   cut at the safetensors part: weight
#   {weight, step: 3} with the default writer: weight and step 3 come back
#
# Tensors of no dimension are fine, so a step that is a tensor, as AdamW's own, is saved.
set -euo pipefail
script=$(realpath "$0")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv venv
venv/bin/pip install -q --no-compile torch==2.13.0 safetensors==0.8.0 numpy==2.4.6
cat > write.py <<'PYTHON'
import json
import logging
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

logging.disable(logging.CRITICAL)
weight = torch.arange(4.0)


def empty(state: dict) -> dict:
    return {name: torch.zeros(4) if isinstance(value, torch.Tensor) else 0 for name, value in state.items()}


def same(state: dict, other: dict) -> bool:
    return torch.equal(state["weight"], other["weight"]) and state.get("step") == other.get("step")


def refusal(error: BaseException) -> str:
    return "header too large" if "header too large" in str(error) else str(error)


STATES = {"weight": {"weight": weight}, "weight, step: 3": {"weight": weight, "step": 3}}
for number, (name, state) in enumerate(STATES.items()):
    folder = Path(f"saved{number}")
    dcp.save(state, storage_writer=HuggingFaceStorageWriter(path=str(folder)), no_dist=True)
    (file,) = folder.glob("*.safetensors")
    content = file.read_bytes()
    start = "a zip archive" if content.startswith(b"PK\x03\x04") else "safetensors" if content[8:9] == b"{" else "?"
    target = empty(state)
    try:
        dcp.load(target, storage_reader=HuggingFaceStorageReader(path=str(folder)), no_dist=True)
        by_torch = "read by torch" if same(target, state) else "other values"
    except dcp.CheckpointException as error:
        by_torch = f"torch: {refusal(error)}"
    try:
        by_safetensors = "read by safetensors" if same(load_file(file), state) else "other values"
    except SafetensorError as error:
        by_safetensors = f"safetensors: {refusal(error)}"
    print(f"{{{name}}}: saved, file starts as {start}, {by_torch}, {by_safetensors}")

index = json.loads((folder / "model.safetensors.index.json").read_text())
print(f"the index has: {', '.join(sorted(index['weight_map']))}")
found = load(content[content.index(b'{"__metadata__"') - 8 :])
assert torch.equal(found["weight"], weight)
print(f"cut at the safetensors part: {', '.join(found)}")
dcp.save(state, checkpoint_id="default", no_dist=True)
target = empty(state)
dcp.load(target, checkpoint_id="default", no_dist=True)
assert torch.equal(target["weight"], weight)
print(f"{{{name}}} with the default writer: weight and step {target['step']} come back")
PYTHON
sed -n '/^# Seen on/,/^#$/s/^#   //p' "$script" > expected
OMP_NUM_THREADS=1 venv/bin/python -W ignore write.py | tee seen
diff expected seen
