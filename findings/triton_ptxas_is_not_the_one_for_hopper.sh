#!/usr/bin/env bash
# triton 3.9.0: from compute capability 9.0 on, the program that assembles is ptxas-blackwell, not the ptxas beside it,
# which refuses what the same wheel's compiler writes for a Hopper GPU. TRITON_PTXAS_PATH is then not read either.
#
# Who takes the wheel's ptxas to look at the registers of a kernel gets "Unsupported .version", as if the installation
# were broken. Who sets TRITON_PTXAS_PATH to a ptxas of another toolkit, to get round a fault of one, changes nothing on
# Hopper since 3.9.0, without a word; in 3.8.0 it worked there, and the other program began with 10.0. The variable that
# counts is TRITON_PTXAS_BLACKWELL_PATH. No GPU is needed to compile.
#
# Seen on 2026-11-30, Python 3.11, x86-64:
#   triton 3.8.0, 9.0: PTX 8.8, ptxas takes it, ptxas-blackwell takes it, TRITON_PTXAS_PATH is called
#   triton 3.9.0, 8.9: PTX 8.8, ptxas takes it, ptxas-blackwell takes it, TRITON_PTXAS_PATH is called
#   triton 3.9.0, 9.0: PTX 9.4, ptxas refuses it, ptxas-blackwell takes it, TRITON_PTXAS_PATH is not called
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cat > assemble.py <<'PYTHON'
import re
import subprocess
import sys
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def kernel(x):
    tl.store(x + tl.arange(0, 32), 1.0)


capability, log = int(sys.argv[1]), Path("called")
log.unlink(missing_ok=True)
ptx = triton.compile(ASTSource(kernel, {"x": "*fp32"}, {}), target=GPUTarget("cuda", capability, 32)).asm["ptx"]
Path("kernel.ptx").write_text(ptx)
said = [re.search(rf"^\.{word} (\S+)", ptx, re.MULTILINE)[1] for word in ("version", "target")]
for name in ("ptxas", "ptxas-blackwell"):
    program = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    done = subprocess.run([program, "-arch", said[1], "kernel.ptx", "-o", "kernel.bin"], capture_output=True, text=True)
    assert done.returncode == 0 or "Unsupported .version" in done.stderr + done.stdout, done
    said.append(f"{name} {'refuses' if done.returncode else 'takes'} it")
version, _, *taken = said
called = "is called" if log.exists() else "is not called"
print(f"triton {triton.__version__}, {capability / 10}: PTX {version}, {', '.join(taken)}, TRITON_PTXAS_PATH {called}")
PYTHON

for version in 3.8.0 3.9.0; do
  python3 -m venv "$version"
  "$version/bin/pip" install -q --no-compile "triton==$version" numpy
  ptxas=$(echo "$folder/$version"/lib/python3*/site-packages/triton/backends/nvidia/bin/ptxas)
  cat > "$version-ptxas" <<SHELL
#!/bin/sh
touch "$folder/called"
exec "$ptxas" "\$@"
SHELL
  chmod +x "$version-ptxas"
done
assemble() { # version of triton, compute capability times ten
  TRITON_CACHE_DIR="$folder/cache" TRITON_PTXAS_PATH="$folder/$1-ptxas" "$1/bin/python" -W ignore assemble.py "$2"
}
cat > expected <<'TEXT'
triton 3.8.0, 9.0: PTX 8.8, ptxas takes it, ptxas-blackwell takes it, TRITON_PTXAS_PATH is called
triton 3.9.0, 8.9: PTX 8.8, ptxas takes it, ptxas-blackwell takes it, TRITON_PTXAS_PATH is called
triton 3.9.0, 9.0: PTX 9.4, ptxas refuses it, ptxas-blackwell takes it, TRITON_PTXAS_PATH is not called
TEXT
{ assemble 3.8.0 90; assemble 3.9.0 89; assemble 3.9.0 90; } | tee seen
diff expected seen
