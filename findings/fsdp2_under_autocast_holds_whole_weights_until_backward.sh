#!/usr/bin/env bash
# torch 2.13.0: under autocast, fully_shard lets go of a layer's whole weights after its forward pass, and autograd
# holds their bfloat16 copies until backward: those of all layers, whole, in each process, however many there are.
#
# A layer in float32 saves the gathered parameter for backward, whose memory fully_shard frees and fills again; the copy
# that autocast makes is a tensor of its own, of which fully_shard knows nothing. Each of N processes has N / 2
# times the memory of its part of the weights in such copies, and gathers the layers for backward all the same.
# autocast's own cache has no share in it. MixedPrecisionPolicy casts the parameter itself, and a layer that is computed
# again in backward has saved nothing.
#
# Seen on 2026-11-30, Python 3.11; two processes, 8 layers, 128 MiB of float32, more in memory after a forward pass:
#   float32: 0 MiB
#   float32, reshard_after_forward=False: 128 MiB
#   autocast: 64 MiB
#   autocast, cache_enabled=False: 64 MiB
#   autocast, layers under checkpoint: 0 MiB
#   MixedPrecisionPolicy(bfloat16): 0 MiB
#
# The documentation of MixedPrecisionPolicy sets it against autocast by the dtype of activations, not by this. seqlab
# trains so with trainer.parallel=fsdp and trainer.precision=bf16.
set -euo pipefail
script=$(realpath "$0")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv venv
venv/bin/pip install -q --no-compile torch==2.13.0 numpy==2.4.6
cat > held.py <<'PYTHON'
import datetime
import gc
import os

import torch
import torch.distributed as dist
from torch import multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

LAYERS, WIDTH = 8, 2048  # a weight is 16 MiB of float32, 8 of bfloat16; activations are 16 KiB


class Recomputed(nn.Linear):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


CASES = {
    "float32": {"enabled": False},
    "float32, reshard_after_forward=False": {"enabled": False, "reshard": False},
    "autocast": {},
    "autocast, cache_enabled=False": {"cache_enabled": False},
    "autocast, layers under checkpoint": {"kind": Recomputed},
    "MixedPrecisionPolicy(bfloat16)": {"enabled": False, "dtype": torch.bfloat16},
}


def in_use():
    """MiB that this process has in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def held(mesh, kind=nn.Linear, dtype=None, reshard=True, **autocast):
    model = nn.Sequential(*(kind(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
    for layer in model:
        policy = MixedPrecisionPolicy(param_dtype=dtype)
        fully_shard(layer, mesh=mesh, reshard_after_forward=reshard, mp_policy=policy)
    fully_shard(model, mesh=mesh)
    x = torch.ones(2, WIDTH, requires_grad=True)
    for _ in range(2):  # what stays for good is there after the first
        gc.collect()
        before = in_use()
        with torch.autocast("cpu", torch.bfloat16, **autocast):
            y = model(x)
        more = in_use() - before
        y.sum().backward()
        model.zero_grad()
    return 8 * round(more / 8)


def work(rank, store):
    torch.set_num_threads(1)
    patience = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=patience)
    mesh = init_device_mesh("cpu", (2,))
    for name, case in CASES.items():
        more = held(mesh, **case)
        if rank == 0:
            print(f"{name}: {more} MiB", flush=True)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # a thread of gloo may abort the interpreter's own end


if __name__ == "__main__":
    multiprocessing.spawn(work, (os.path.abspath("store"),), nprocs=2)
PYTHON
sed -n '/^# Seen on/,/^[^#]/s/^#   //p' "$script" > expected
export MALLOC_MMAP_THRESHOLD_=1048576 OMP_NUM_THREADS=1  # what is freed goes back to the system at once
timeout --kill-after=10 180 venv/bin/python -W ignore held.py | tee seen
diff expected seen
echo "as described"
