#!/usr/bin/env bash
# torch 2.13.0: a module under fully_shard that runs forward again without a backward pass in between computes with
# old weights at its root, without a word, if its sharded parameters have changed since. The outermost module's own
# parameters stay gathered after a forward pass, also under no_grad and where none requires a gradient, and are not
# gathered again.
#
# So an averaged copy of a model, sharded like it, evaluates the layers of today between the embedding and head of its
# first evaluation; and a model that is evaluated with other weights and given back its own takes its next training
# step with the others at the root. What lets go of them besides a backward pass: reshard(),
# reshard_after_forward=True and, by a hook, state_dict() and load_state_dict(), so a checkpoint cures it. The change
# must go through the DTensors, taken before the forward pass as an optimizer holds them. parameters() meanwhile has
# the root's whole tensors: they do not mix with DTensors, and what is changed in them the next forward pass sees and
# state_dict() throws away.
#
# Seen on 2026-11-30, Python 3.11; root and layer go from 1 to 2 and 3, and the output is their product:
#   as is: gathered root, output 3 for 6, after state_dict() 6
#   as is, no requires_grad: gathered root, output 3 for 6, after state_dict() 6
#   only the root is sharded: gathered root and layer, output 1 for 6, after state_dict() 6
#   a backward pass between: gathered nothing, output 6 for 6, after state_dict() 6
#   reshard() between: gathered nothing, output 6 for 6, after state_dict() 6
#   reshard_after_forward=True: gathered nothing, output 6 for 6, after state_dict() 6
#   parameters() read again: gathered root, output 6 for 6, after state_dict() 3
#   parameters() read again, lerp_ to a sharded model's: RuntimeError: got mixed torch.Tensor and DTensor
#
# The documentation says that the root stays gathered, and to call reshard() for a change between forward and
# backward; of two forward passes it says nothing. pytorch's issues 131965 and 144289, closed, call the first
# intended; 117742 reports an average whose outputs do not change in FSDP1. seqlab.training.sharding passes
# reshard_after_forward=True where nothing requires a gradient.
set -euo pipefail
script=$(realpath "$0")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv venv
venv/bin/pip install -q --no-compile torch==2.13.0 numpy==2.4.6
cat > stale.py <<'PYTHON'
import datetime
import os

import torch
import torch.distributed as dist
from torch import multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

NEWEST = {"root": 2.0, "layer.weight": 3.0}
CASES = {
    "as is": {},
    "as is, no requires_grad": {"trained": False},
    "only the root is sharded": {"layers": False},
    "a backward pass between": {"between": "backward"},
    "reshard() between": {"between": "reshard"},
    "reshard_after_forward=True": {"reshard": True},
    "parameters() read again": {"again": True},
}


class Model(nn.Module):
    def __init__(self, root=1.0, layer=1.0):
        super().__init__()
        self.root = nn.Parameter(root * torch.eye(4))
        self.layer = nn.Linear(4, 4, bias=False)
        nn.init.eye_(self.layer.weight).data.mul_(layer)

    def forward(self, x):
        return self.layer(x @ self.root)


def sharded(model, mesh, reshard=None, layers=True):
    if layers:
        fully_shard(model.layer, mesh=mesh)
    return fully_shard(model, mesh=mesh, reshard_after_forward=reshard)


def seen(mesh, trained=True, between="nothing", again=False, **how):
    model = sharded(Model().requires_grad_(trained), mesh, **how)
    held = dict(model.named_parameters())
    x = torch.ones(2, 4)

    with torch.set_grad_enabled(between == "backward"):
        y = model(x)
    assert y[0, 0].item() == 1
    if between == "backward":
        y.sum().backward()
    if between == "reshard":
        model.reshard()
    now = dict(model.named_parameters())
    gathered = [name.removesuffix(".weight") for name, p in now.items() if not isinstance(p, DTensor)]
    with torch.no_grad():
        for name, p in (now if again else held).items():
            p.mul_(NEWEST[name])
        weights = [p.full_tensor()[0, 0].item() for p in held.values()]
        assert again or weights == list(NEWEST.values()), weights
    first = model(x)[0, 0].item()
    model.state_dict()
    cured = model(x)[0, 0].item()
    return f"gathered {' and '.join(gathered) or 'nothing'}, output {first:g} for 6, after state_dict() {cured:g}"


def mixed(mesh):
    average, model = sharded(Model().requires_grad_(False), mesh), sharded(Model(2.0, 3.0), mesh)
    with torch.no_grad():
        for average_p, p in zip(average.parameters(), model.parameters()):
            average_p.lerp_(p, 0.5)  # before a forward pass
        average(torch.ones(2, 4))
        try:
            for average_p, p in zip(average.parameters(), model.parameters()):
                average_p.lerp_(p, 0.5)
        except RuntimeError as error:
            known = "got mixed torch.Tensor and DTensor"
            return f"RuntimeError: {known if known in str(error) else error}"
    return "runs"


def work(rank, store):
    torch.set_num_threads(1)
    patience = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=patience)
    mesh = init_device_mesh("cpu", (2,))
    lines = [f"{name}: {seen(mesh, **case)}" for name, case in CASES.items()]
    lines.append(f"parameters() read again, lerp_ to a sharded model's: {mixed(mesh)}")
    if rank == 0:
        print(*lines, sep="\n", flush=True)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # a thread of gloo may abort the interpreter's own end


if __name__ == "__main__":
    multiprocessing.spawn(work, (os.path.abspath("store"),), nprocs=2)
PYTHON
sed -n '/^# Seen on/,/^[^#]/s/^#   //p' "$script" > expected
OMP_NUM_THREADS=1 timeout --kill-after=10 180 venv/bin/python -W ignore stale.py | tee seen
diff expected seen
echo "as described"
