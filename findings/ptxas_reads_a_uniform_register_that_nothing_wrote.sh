#!/usr/bin/env bash
# triton 3.6.0 for compute capability 9.0: its ptxas, 12.8.93, makes code in which a uniform register is read that no
# instruction writes. There it is part of the shared-memory address of an operand of wgmma, Hopper's matrix product, so
# that results are wrong, others from run to run, or an access is illegal; the PTX is right.
#
# Seen where a loop holds a product of 64 rows and two products after it share their left operand, in registers, with
# tiles of 16 columns: the addresses of operands no longer fit into the 63 uniform registers. The kernel below is compiled
# and assembled, for which no GPU is needed, and the machine code is searched in the order of its instructions.
#
# Seen on 2026-11-30, Python 3.11, x86-64:
#   ptxas 12.8.93: UR13 at 0180, UR15 at 01d0
#   ptxas 12.9.86, which the same wheel brings for Blackwell: none
# Triton 3.7.0 brings 12.8.93 for Hopper, too; 3.8.0 and 3.9.0 bring 12.9.86.
#
# Kernels of seqlab with this fault, executed instruction by instruction on a CPU from both machine codes, give the
# results that an H200 gave: wrong by factors with 12.8.93, right to rounding with 13.4.59 (docs/lab_log.md).
# TRITON_PTXAS_PATH names another ptxas to Triton. Products of 32 rows, or of two warps, are not wgmma.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q triton==3.6.0 numpy

cat > kernel.py <<'PYTHON'
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def kernel(k_ptr, v_ptr, W_ptr, U_ptr, T: tl.constexpr, K: tl.constexpr):
    t, c = tl.arange(0, T), tl.arange(0, K)
    tile = t[:, None] * K + c[None, :]
    k = tl.load(k_ptr + tile)
    A = tl.dot(k, tl.trans(k))
    X = tl.where(t[:, None] == t[None, :], 1.0, 0.0)
    for level in range(1, 6):
        X -= tl.dot(X, tl.where(t[:, None] > t[None, :] + level, A, 0.0))
    X = X.to(tl.bfloat16)
    tl.store(W_ptr + tile, tl.dot(X, k))
    tl.store(U_ptr + tile, tl.dot(X, tl.load(v_ptr + tile)))


pointers = ["k_ptr", "v_ptr", "W_ptr", "U_ptr"]
types = dict.fromkeys(pointers, "*bf16") | {"T": "constexpr", "K": "constexpr"}
aligned = {(i,): [["tt.divisibility", 16]] for i in range(4)}
source = ASTSource(kernel, types, {(4,): 64, (5,): 16}, aligned)
options = {"num_warps": 4, "num_stages": 1}
print(triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"])
PYTHON

cat > unwritten.py <<'PYTHON'
"""Uniform registers that a disassembly, from standard input, reads before any instruction above wrote them."""

import re
import sys

INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)\s*(.*?);")
WRITERS = ("U", "S2UR", "R2UR", "REDUX", "VOTEU")

written, found = set(), {}
for at, name, operands in INSTRUCTION.findall(sys.stdin.read()):
    read = [operand.strip() for operand in operands.split(",")]
    first = next((n for n, operand in enumerate(read) if not re.match(r"!?U?P", operand)), 0)
    target = re.fullmatch(r"UR(\d+)", read[first])
    results = []
    if target and name.startswith(WRITERS):
        wide = ".64" in name or "WIDE" in name
        results = range(int(target[1]), int(target[1]) + 1 + wide)
        del read[first]
    for operand in read:
        for register in map(int, re.findall(r"UR(\d+)", operand)):
            # Of the four registers at a wgmma's descriptors the last two are used in every form
            needed = (register + 2, register + 3) if "gdesc" in operand else (register,)
            for each in needed:
                if each not in written:
                    found.setdefault(each, at)
    written.update(results)
print(", ".join(f"UR{register} at {at}" for register, at in found.items()) or "none")
PYTHON

export TRITON_CACHE_DIR="$folder/cache"
venv/bin/python kernel.py > kernel.ptx
tools=$(echo venv/lib/python*/site-packages/triton/backends/nvidia/bin)
search() { # an assembler: the registers
  "$tools/$1" -arch=sm_90a kernel.ptx -o kernel.cubin
  "$tools/nvdisasm" -c kernel.cubin | venv/bin/python unwritten.py
}
for assembler in ptxas ptxas-blackwell; do
  printf '%s %s: ' ptxas "$("$tools/$assembler" --version | sed -n 's/.*, V//p')"
  search "$assembler" | tee "$assembler"
done
grep -q UR ptxas && grep -qx none ptxas-blackwell || { echo "No longer so."; exit 1; }
echo "as described"
