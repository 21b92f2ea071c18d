#!/usr/bin/env bash
# torch 2.13.0: torch.optim.Muon makes the update of a float32 or float64 matrix in bfloat16. Each number of it is one of
# bfloat16, whatever ns_steps and ns_coefficients are; no setting changes that, and the reference page does not say so.
#
# The momentum is kept in the parameter's dtype; the iteration that makes the update casts it down first and the result is
# only added to a wider parameter. More steps of an iteration that converges to an orthogonal matrix therefore end 1e-2
# away from one, where float64 ends at 1e-15. Two gradients that differ by 1e-6 of their size give one and the same update,
# and gradients that are the same but for their scale give two, unless the scale is a power of two.
#
# Seen on 2026-11-30, Python 3.11, float64 parameters of 16 by 16 (distances: of Frobenius):
#   every number of the update is one of bfloat16: True
#   gradient changed by 1e-6 of itself: update differs by 0
#   gradient times 2: update differs by 0
#   gradient times 3: update differs by 1e-3 or more
#   gradient transposed: update differs by 1e-3 or more
#   40 convergent steps: Muon 1e-3 or more from orthogonal, the same steps in float64 less than 1e-13
#
# A test of an own Muon against torch's in float64 has to round as torch does, or allow for 1e-2.
set -euo pipefail
script=$(realpath "$0")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv venv
venv/bin/pip install -q --no-compile torch==2.13.0 numpy==2.4.6
cat > muon.py <<'PYTHON'
import torch

CONVERGENT = (15 / 8, -10 / 8, 3 / 8)


def update(gradient: torch.Tensor, **settings) -> torch.Tensor:
    parameter = torch.nn.Parameter(torch.zeros_like(gradient))
    parameter.grad = gradient.clone()
    torch.optim.Muon([parameter], lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False, **settings).step()
    assert parameter.dtype == torch.float64
    return -parameter.detach()


def iterated(matrix: torch.Tensor, steps: int) -> torch.Tensor:
    a, b, c = CONVERGENT
    matrix = matrix / matrix.norm()
    for _ in range(steps):
        square = matrix @ matrix.T
        matrix = a * matrix + (b * square + c * square @ square) @ matrix
    return matrix


def size(distance: torch.Tensor) -> str:
    return "0" if distance == 0 else "1e-3 or more" if distance > 1e-3 else f"{distance:.0e}"


def from_orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    return torch.dist(matrix @ matrix.T, torch.eye(len(matrix), dtype=matrix.dtype))


generator = torch.Generator().manual_seed(0)
gradient = torch.randn(16, 16, dtype=torch.float64, generator=generator)
plain = update(gradient)
print(f"every number of the update is one of bfloat16: {torch.equal(plain, plain.bfloat16().double())}")
OTHERS = {
    "changed by 1e-6 of itself": update(gradient * (1 + 1e-6)),
    "times 2": update(gradient * 2),
    "times 3": update(gradient * 3),
    "transposed": update(gradient.T.contiguous()).T,
}
for name, other in OTHERS.items():
    print(f"gradient {name}: update differs by {size(torch.dist(plain, other))}")
far = from_orthogonal(update(gradient, ns_steps=40, ns_coefficients=CONVERGENT))
near = from_orthogonal(iterated(gradient, 40))
assert near < 1e-13
print(f"40 convergent steps: Muon {size(far)} from orthogonal, the same steps in float64 less than 1e-13")
PYTHON
sed -n '/^# Seen on/,/^#$/s/^#   //p' "$script" > expected
OMP_NUM_THREADS=1 venv/bin/python -W ignore muon.py | tee seen
diff expected seen
