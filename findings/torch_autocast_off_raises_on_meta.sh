#!/usr/bin/env bash
# torch 2.13.0: torch.autocast("meta", enabled=False) raises RuntimeError("unsupported scalarType"), although it has
# nothing to do; for "cuda", on a machine without one, and for "mps" and "xpu" it does nothing, as asked.
#
# autocast's docstring takes its device_type from Tensor.device.type. A module that so switches autocast off around an
# operation that needs float32 runs on every device, but its shapes or FLOPs cannot be worked out on the meta device,
# and the message names neither autocast nor meta. The class has a message that does, but asks before it for the
# device's default dtype, which is what fails; with a dtype given, that message is read, and it raises all the same.
#
# Seen on 2026-11-30, Python 3.11, CPU, and the same with torch 2.14.1:
#   cpu: nothing, cuda: nothing, mps: nothing, xpu: nothing
#   meta: RuntimeError: unsupported scalarType
#   meta, dtype=torch.bfloat16: RuntimeError: User specified an unsupported autocast device_type 'meta'
#
# torch.amp.is_autocast_available(device_type) says beforehand whether the context may be entered.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv venv
venv/bin/pip install -q --no-compile torch==2.13.0
cat > off.py <<'PYTHON'
import torch


def switched_off(device: str, **dtype) -> str:
    try:
        with torch.autocast(torch.device(device).type, enabled=False, **dtype):
            return "nothing"
    except RuntimeError as error:
        return f"RuntimeError: {error}"


print(", ".join(f"{device}: {switched_off(device)}" for device in ("cpu", "cuda", "mps", "xpu")))
print("meta:", switched_off("meta"))
print("meta, dtype=torch.bfloat16:", switched_off("meta", dtype=torch.bfloat16))
assert torch.amp.is_autocast_available("cuda") and not torch.amp.is_autocast_available("meta")
PYTHON
cat > expected <<'TEXT'
cpu: nothing, cuda: nothing, mps: nothing, xpu: nothing
meta: RuntimeError: unsupported scalarType
meta, dtype=torch.bfloat16: RuntimeError: User specified an unsupported autocast device_type 'meta'
TEXT
venv/bin/python -W ignore off.py | tee seen
diff expected seen
