#!/usr/bin/env bash
# torch 2.13.0: torchrun --max-restarts starts the processes again with the TCPStore of before, in which init_process_group
# with gloo finds the addresses of those that have died.
#
# torch.distributed.rendezvous says "We create a new TCPStore for every retry so no need to add prefix for each attempt", and
# the rendezvous of the agent keeps one server and its address for all rounds. A process that comes before another of this
# start reads where that was, tries it, and gives up after three refusals, or waits for good.
# Seen on Linux, Python 3.11: "start 0" of both ranks joins; of the next three starts none, one or two do.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.2.6
cd "$folder"
cat >restart.py <<'PYTHON'
import os
import signal
import time

import torch

rank, start = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
if rank == 0 and start:
    time.sleep(4)
torch.distributed.init_process_group("gloo")
print(f"start {start}, rank {rank}: joined", flush=True)
torch.distributed.all_reduce(torch.ones(1))
if rank == 1 and start < 3:
    os.kill(os.getpid(), signal.SIGKILL)
torch.distributed.all_reduce(torch.ones(1))
os._exit(0)
PYTHON
launch=("$folder/venv/bin/python" -m torch.distributed.run --standalone --nproc-per-node=2 --max-restarts=3)
timeout 120 "${launch[@]}" restart.py >log 2>&1 || true
grep -Eo "start ., rank .: joined|connectFullMesh failed" log
[ "$(grep -o joined log | wc -l)" -lt 8 ]
echo "torch 2.13.0: processes that torchrun starts again try the addresses of dead ones"
