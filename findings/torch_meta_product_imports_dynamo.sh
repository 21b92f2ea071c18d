#!/usr/bin/env bash
# torch 2.13.0: the first product of two meta tensors imports torch._dynamo, some 340 modules and 1.3 s of CPU.
#
# FLOPs of a model are counted on the meta device because nothing is computed there. torch.nn.functional.linear brings
# nothing new, but x * x on a meta tensor is answered by a reference that is written in Python, whose call imports the
# compiler; the same product on the CPU does not. Counting the FLOPs of a small model may so cost more than building it.
# Seen on Linux, Python 3.11: "cpu False False 0 0.00 s" and "meta False True 337 1.27 s" (imported after linear, after
# the product, modules that came with the product, CPU time).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.2.6
cd "$folder"
cat >product.py <<'PYTHON'
import sys
import time

import torch


def compiler_is_imported() -> bool:
    return "torch._dynamo" in sys.modules


x = torch.ones(2, 2, device=sys.argv[1])
torch.nn.functional.linear(x, x)
after_linear, modules = compiler_is_imported(), len(sys.modules)
start = time.process_time()
x * x
seconds = time.process_time() - start
print(sys.argv[1], after_linear, compiler_is_imported(), len(sys.modules) - modules, f"{seconds:.2f} s")
PYTHON
"$folder/venv/bin/python" product.py cpu | tee cpu.txt
"$folder/venv/bin/python" product.py meta | tee meta.txt
grep -q '^cpu False False 0 ' cpu.txt
grep -Eq '^meta False True [0-9]{3,} ' meta.txt
echo "torch 2.13.0: a product of meta tensors imports torch._dynamo; linear, and the same product on the CPU, do not"
