#!/usr/bin/env bash
# torch 2.13.0: optimizers that load the same state count their steps together. load_state_dict keeps the given tensors, so
# each step of one raises the count, and moves the moments, of the others and of the loaded state.
#
# A state from a file is new at each torch.load; one that was read once and given to the members of an ensemble, or held as
# the best so far, is not. What is shared depends on the parameters: a moment is converted to the parameter's dtype and
# device, which makes a copy only where they differ. With moments of float32 and parameters of bfloat16 the moments come
# apart, rounded, and the count, which is not converted, stays common. Module.load_state_dict copies.
#
# Seen on 2026-11-30, Python 3.11: a state after 3 steps, loaded by two AdamW which then take 2 steps each:
#   float32: counts 7 and 7 and in the state 7, moments shared with the state
#   bfloat16: counts 7 and 7 and in the state 7, moments apart in torch.bfloat16
#   float32, a deep copy each: counts 5 and 5 and in the state 3, moments apart in torch.float32
#
# pytorch's issues 196083 and 147288 are open; its pull request 106082 made the copy a shallow one.
set -euo pipefail
script=$(realpath "$0")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv venv
venv/bin/pip install -q --no-compile torch==2.13.0 numpy==2.4.6
cat > share.py <<'PYTHON'
import copy

import torch


def trained(dtype: torch.dtype, steps: int, state: dict | None = None) -> torch.optim.Optimizer:
    parameter = torch.nn.Parameter(torch.ones(2, dtype=dtype))
    parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.AdamW([parameter])
    if state is not None:
        optimizer.load_state_dict(state)
    for _ in range(steps):
        optimizer.step()
    return optimizer


def given(state: dict) -> dict:
    return state


for dtype, name, copied in (
    (torch.float32, "float32", given),
    (torch.bfloat16, "bfloat16", given),
    (torch.float32, "float32, a deep copy each", copy.deepcopy),
):
    state = copy.deepcopy(trained(torch.float32, 3).state_dict())
    optimizers = [trained(dtype, 2, copied(state)) for _ in range(2)]
    own = [next(iter(optimizer.state.values())) for optimizer in optimizers]
    loaded = state["state"][0]
    counts = " and ".join(str(int(values["step"])) for values in own)
    moments = [values[key] for values in own for key in ("exp_avg", "exp_avg_sq")]
    shared = {moment.data_ptr() for moment in moments} == {loaded[key].data_ptr() for key in ("exp_avg", "exp_avg_sq")}
    apart = len({moment.data_ptr() for moment in moments}) == 4 and not shared
    assert shared != apart
    what = "shared with the state" if shared else f"apart in {moments[0].dtype}"
    print(f"{name}: counts {counts} and in the state {int(loaded['step'])}, moments {what}")
PYTHON
sed -n '/^# Seen on/,/^#$/s/^#   //p' "$script" > expected
OMP_NUM_THREADS=1 venv/bin/python -W ignore share.py | tee seen
diff expected seen
