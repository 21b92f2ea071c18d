#!/usr/bin/env bash
# torch 2.13.0: AveragedModel.update_parameters reads the number of updates so far twice at each call, and that number is a
# tensor. On a GPU, where device= or to() has put it, the program waits for the device each time.
#
# An exponential moving average (get_ema_multi_avg_fn) needs no number of updates; it is one call of _foreach_lerp_.
# Without device= the number stays on the CPU, also where the model is elsewhere, and each update copies it to the device
# of the weights, for nothing. A call that reads a value from the device cannot be captured as a CUDA graph, nor be traced
# as one graph by torch.compile, so a step that is captured has its average outside. The meta device, which has no values
# to read, stands for a GPU below.
#
# Seen on 2026-11-30, Python 3.11, in the second and third update:
#   weights on cpu: number on cpu, read 2 times, copied to the weights' device 0 times
#   weights on meta: number on cpu, read 2 times, copied to the weights' device 1 times
#   weights on meta, device="meta": RuntimeError: Tensor.item() cannot be called on meta tensors
#   torch.compile(fullgraph=True): Could not guard on data-dependent expression
#
# seqlab.training.average has an average of its own. pytorch's pull requests 157705 and 175085 are on the waiting.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv venv
venv/bin/pip install -q --no-compile torch==2.13.0
cat > average.py <<'PYTHON'
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

READ, COPY = torch.ops.aten._local_scalar_dense.default, torch.ops.aten._to_copy.default


class Calls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.of = {READ: 0, COPY: 0}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in self.of:
            self.of[function] += 1
        return function(*args, **(kwargs or {}))


def averaged(model, **settings):
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999), **settings)


for device in ("cpu", "meta"):
    model = torch.nn.Linear(4, 4, device=device)
    average = averaged(model)
    average.update_parameters(model)
    for _ in range(2):
        with Calls() as calls:
            average.update_parameters(model)
        reads, copies = calls.of[READ], calls.of[COPY]
        where = f"weights on {device}: number on {average.n_averaged.device}"
        print(f"{where}, read {reads} times, copied to the weights' device {copies} times")

try:
    averaged(model, device="meta").update_parameters(model)
except RuntimeError as error:
    print(f'weights on meta, device="meta": RuntimeError: {error}')

model = torch.nn.Linear(4, 4)
try:
    torch.compile(averaged(model).update_parameters, backend="eager", fullgraph=True)(model)
except Exception as error:
    known = "Could not guard on data-dependent expression"
    print(f"torch.compile(fullgraph=True): {known if known in str(error) else error}")
PYTHON
cat > expected <<'TEXT'
weights on cpu: number on cpu, read 2 times, copied to the weights' device 0 times
weights on cpu: number on cpu, read 2 times, copied to the weights' device 0 times
weights on meta: number on cpu, read 2 times, copied to the weights' device 1 times
weights on meta: number on cpu, read 2 times, copied to the weights' device 1 times
weights on meta, device="meta": RuntimeError: Tensor.item() cannot be called on meta tensors
torch.compile(fullgraph=True): Could not guard on data-dependent expression
TEXT
venv/bin/python -W ignore average.py | tee seen
diff expected seen
