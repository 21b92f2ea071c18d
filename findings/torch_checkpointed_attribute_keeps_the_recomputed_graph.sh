#!/usr/bin/env bash
# torch 2.13.0: a tensor that a module keeps in an attribute, such as an auxiliary loss, holds activations of a checkpointed
# forward pass (use_reentrant=False) after backward: it has been replaced by the recomputation's, whose graph nobody runs.
#
# Without a checkpoint, backward frees what the graph had saved, whoever still holds its tensors. With one, the function
# runs again in backward and sets the attribute again, with a new graph; backward goes through the old one. What the new
# one saved up to the attribute stays, for every checkpointed block, through the optimizer's step and until the attribute
# is set or deleted. A second backward of the attribute, an error without a checkpoint, runs and adds to the
# gradients. use_reentrant=True, which runs the new graph, frees it. Attributes that are detached hold nothing.
#
# Seen on 2026-11-30, Python 3.11; an activation is 1 MiB, kept: what can be reached from the attribute's grad_fn:
#   no checkpoint: the attribute of the forward pass, 0 activations kept, second backward: RuntimeError
#   use_reentrant=False: another attribute, 3 activations kept, second backward: runs
#   use_reentrant=True: another attribute, 0 activations kept, second backward: RuntimeError
#
# seqlab.models.recomputation drops the losses that a recomputation stores.
set -euo pipefail
script=$(realpath "$0")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv venv
venv/bin/pip install -q --no-compile torch==2.13.0 numpy==2.4.6
cat > keep.py <<'PYTHON'
import torch
from torch.utils.checkpoint import checkpoint

ROWS, WIDTH = 4096, 64  # 1 MiB of float32


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        for _ in range(3):
            x = torch.tanh(self.layer(x))
        self.auxiliary = x.mean()
        return torch.tanh(self.layer(x))


def activations(node) -> int:
    """How many tensors of the size of an activation the graph from here on holds, the input apart."""
    seen, left, found = set(), [node], set()
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for name in dir(node):
            if not name.startswith("_saved_"):
                continue
            try:
                value = getattr(node, name)
            except RuntimeError:  # freed by backward
                continue
            if isinstance(value, torch.Tensor) and value.numel() == ROWS * WIDTH:
                found.add(value.data_ptr())
        left += [before for before, _ in node.next_functions]
    return len(found - {x.data_ptr()})


for reentrant in (None, False, True):
    block = Block()
    x = torch.ones(ROWS, WIDTH, requires_grad=True)
    y = block(x) if reentrant is None else checkpoint(block, x, use_reentrant=reentrant)
    first = block.auxiliary
    y.sum().backward()
    which = "the attribute of the forward pass" if block.auxiliary is first else "another attribute"
    kept = activations(block.auxiliary.grad_fn)
    before = block.layer.weight.grad.clone()
    try:
        block.auxiliary.backward()
        again = "runs"
        assert not torch.equal(block.layer.weight.grad, before)
    except RuntimeError as error:
        again = "RuntimeError"
        assert "second time" in str(error)
    name = "no checkpoint" if reentrant is None else f"use_reentrant={reentrant}"
    print(f"{name}: {which}, {kept} activations kept, second backward: {again}")
PYTHON
sed -n '/^# Seen on/,/^[^#]/s/^#   //p' "$script" > expected
OMP_NUM_THREADS=1 venv/bin/python -W ignore keep.py | tee seen
diff expected seen
