#!/usr/bin/env bash
# torch 2.14.1: the gradient of clamp is 0 where its input equals a bound; in torch 2.13.0 it is 1 there.
#
# So a piecewise function that is put together of clamps, and is smooth where its pieces meet, loses its derivative at
# that point with an update of torch: v.clamp(min=0) + 1 / (1 + relu(-v)) has slope 1 at 0 in 2.13.0 and 0 in 2.14.1.
# relu (0 at 0) and maximum (one half of each) are as before.
#
# Seen on 2026-11-29, Python 3.11, CPU:
#   2.13.0: clamp(min=0) 1.0, clamp(0, 1) 1.0, relu 0.0, maximum 0.5
#   2.14.1: clamp(min=0) 0.0, clamp(0, 1) 0.0, relu 0.0, maximum 0.5
#
# seqlab's rational activation of Mamba-3 takes torch.where for its two pieces.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cat > slopes.py <<'PYTHON'
import torch

functions = {
    "clamp(min=0)": lambda v: v.clamp(min=0),
    "clamp(0, 1)": lambda v: v.clamp(0, 1),
    "relu": torch.relu,
    "maximum": lambda v: torch.maximum(v, torch.zeros_like(v)),
}
slopes = []
for name, function in functions.items():
    v = torch.zeros(1, requires_grad=True)
    function(v).sum().backward()
    slopes.append(f"{name} {v.grad.item()}")
print(", ".join(slopes))
PYTHON
for version in 2.13.0 2.14.1; do
  python3 -m venv "$version"
  "$version/bin/pip" install -q --no-compile "torch==$version" numpy
  "$version/bin/python" slopes.py | sed "s/^/$version: /" | tee "$version.txt"
done
[ "$(cat 2.13.0.txt)" = "2.13.0: clamp(min=0) 1.0, clamp(0, 1) 1.0, relu 0.0, maximum 0.5" ]
[ "$(cat 2.14.1.txt)" = "2.14.1: clamp(min=0) 0.0, clamp(0, 1) 0.0, relu 0.0, maximum 0.5" ]
echo "as described"
