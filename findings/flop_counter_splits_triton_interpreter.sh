#!/usr/bin/env bash
# torch 2.13.0 with triton 3.9.0: importing torch.utils.flop_counter imports triton, after which TRITON_INTERPRET=1
# reaches a program's own kernels but not triton's library functions, such as tl.sum.
#
# Those are decorated when triton is imported, as functions to compile. A kernel decorated later is interpreted, without
# a complaint, and fails in its first tl.sum with an error that names neither the variable nor the import.
#
# Seen on 2026-11-29, Python 3.11, CPU:
#   variable set, then flop_counter imported: tensor([7.])
#   flop_counter imported, then variable set: interpreting: True
#   InterpreterError: RuntimeError("Cannot call @triton.jit'd outside of the scope of a kernel")
#
# seqlab's tests set the variable in tests/conftest.py before anything imports torch's counter.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 triton==3.9.0 numpy

cat > kernel.py <<'PYTHON'
import torch
import triton
import triton.language as tl


@triton.jit
def total_kernel(x, out):
    tl.store(out, tl.sum(tl.load(x + tl.arange(0, 4)), axis=0))


def total():
    out = torch.zeros(1)
    total_kernel[(1,)](torch.tensor([1.0, 2.0, 3.0, 1.0]), out)
    return out
PYTHON
cat > before.py <<'PYTHON'
import os

os.environ["TRITON_INTERPRET"] = "1"
import torch.utils.flop_counter
from kernel import total

print("variable set, then flop_counter imported:", total())
PYTHON
cat > after.py <<'PYTHON'
import os

import torch.utils.flop_counter

os.environ["TRITON_INTERPRET"] = "1"
import triton
from kernel import total

print("flop_counter imported, then variable set: interpreting:", triton.knobs.runtime.interpret)
try:
    print(total())
except Exception as error:
    print(f"{type(error).__name__}: {error}")
PYTHON
cat > expected <<'TEXT'
variable set, then flop_counter imported: tensor([7.])
flop_counter imported, then variable set: interpreting: True
InterpreterError: RuntimeError("Cannot call @triton.jit'd outside of the scope of a kernel")
TEXT
{ venv/bin/python before.py; venv/bin/python after.py; } | tee seen
diff expected seen
