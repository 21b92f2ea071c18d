#!/usr/bin/env bash
# triton 3.9.0: the time to compile a kernel grows with the number of its loads times the number of its operations,
# whatever the operations are: the pass TritonGPUCoalesce walks the whole kernel once for each load and store.
#
# The kernel below has unrolled loads and, after them, unrolled arithmetic that has nothing to do with them. It is
# compiled for compute capability 9.0, for which no GPU is needed; MLIR_ENABLE_TIMING prints what each pass takes.
#
# Seen on 2026-11-29, Python 3.11, x86-64, on a busy machine:
#   1 load, 800 operations: 0.7 to 1.5 s
#   32 loads, 1 operation: 0.1 to 0.4 s
#   32 loads, 800 operations: 6.2 to 6.5 s, of which TritonGPUCoalesce 5.2 to 5.9
#
# A loop that is unrolled so that each element has a load of its own, as scans over small tiles do, pays for it; loads
# written as inline assembly are no loads to that pass, and seqlab's selective scan has most of them written so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q triton==3.9.0 numpy

cat > kernel.py <<'PYTHON'
import sys
import time

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def kernel(x, y, LOADS: tl.constexpr, OPERATIONS: tl.constexpr):
    lane = tl.arange(0, 128)
    total = tl.zeros([128], tl.float32)
    for i in tl.static_range(LOADS):
        total += tl.load(x + lane * LOADS + i)
    for i in tl.static_range(OPERATIONS):
        total = total * 1.5 + i
    tl.store(y + lane, total)


loads, operations = map(int, sys.argv[1:])
types = {"x": "*fp32", "y": "*fp32", "LOADS": "constexpr", "OPERATIONS": "constexpr"}
source = ASTSource(kernel, types, {(2,): loads, (3,): operations})
begin = time.perf_counter()
triton.compile(source, target=GPUTarget("cuda", 90, 32))
print(f"seconds {time.perf_counter() - begin:.2f}")
PYTHON

compile() {  # loads, operations: the seconds, and those of the slowest run of the pass
  TRITON_CACHE_DIR="$folder/cache" TRITON_DEFAULT_FP_FUSION=1 MLIR_ENABLE_TIMING=1 venv/bin/python kernel.py "$@" > out 2>&1
  printf '%s loads, %s operations: %s s, TritonGPUCoalesce %s s\n' "$@" "$(awk '/^seconds/ {print $2}' out)" \
    "$(awk '/TritonGPUCoalesce$/ && $1 > most {most = $1} END {print most + 0}' out)"
}
compile 1 800 | tee operations
compile 32 1 | tee loads
compile 32 800 | tee both

seconds() { sed 's/.*operations: \([0-9.]*\) s.*/\1/' "$1"; }
pass() { sed 's/.*Coalesce \([0-9.]*\) s/\1/' "$1"; }
awk -v a="$(seconds operations)" -v b="$(seconds loads)" -v both="$(seconds both)" -v pass="$(pass both)" \
  'BEGIN { exit !(both > 2 * (a + b) && pass > both / 2) }' || { echo "The product of both no longer decides."; exit 1; }
echo "as described"
