#!/usr/bin/env bash
# torch 2.13.0: FlopCounterMode counts the gradient of a grouped convolution's weights as if it had one group. The
# backward pass of a depthwise convolution of C channels is so counted as C + 1 forward passes; it takes two.
#
# The forward pass and the gradient of the input are counted rightly. What is counted is a formula of the shapes, so all
# devices agree. In a block such as Mamba's (a gated linear map, a depthwise convolution of width 4, a linear map) the
# convolution has 1 in 385 of the forward FLOPs, and the backward pass is counted as 4.7 forward passes instead of 2.
# Who compares models by FLOPs of training charges those with a short convolution nearly twice what they take.
#
# Seen on 2026-11-30, Python 3.11, CPU, and the same with torch 2.14.1 (backward FLOPs over forward FLOPs):
#   convolution of 64 channels: 1 group 2.0, 8 groups 9.0, 64 groups 65.0
#   block of 512 channels: convolution 1025.0, all 4.66
#
# seqlab.models.counting has a formula of its own for aten.convolution_backward.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv venv
venv/bin/pip install -q --no-compile torch==2.13.0
cat > count.py <<'PYTHON'
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


class Transposed(nn.Module):
    def forward(self, x):
        return x.mT


def backward_over_forward(model: nn.Module, x: torch.Tensor) -> dict[str, float]:
    """Of each operation of the forward pass, and of all."""
    with FlopCounterMode(display=False) as forward:
        y = model(x)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    once, back = (counter.get_flop_counts()["Global"] for counter in (forward, backward))
    convolution = back[torch.ops.aten.convolution_backward] / once[torch.ops.aten.convolution]
    return {"convolution": convolution, "all": sum(back.values()) / sum(once.values())}


x = torch.randn(2, 64, 32, requires_grad=True)
ratios = {n: backward_over_forward(nn.Conv1d(64, 64, 3, padding=1, groups=n), x)["all"] for n in (1, 8, 64)}
print("convolution of 64 channels:", ", ".join(f"{n} group{'s' * (n > 1)} {ratio}" for n, ratio in ratios.items()))

width = 512
convolution = nn.Conv1d(2 * width, 2 * width, 4, padding="same", groups=2 * width)
block = nn.Sequential(
    *(nn.Linear(width, 4 * width), nn.GLU()),
    *(Transposed(), convolution, Transposed()),
    nn.Linear(2 * width, width),
)
ratios = backward_over_forward(block, torch.randn(1, 64, width, requires_grad=True))
print(f"block of {width} channels: convolution {ratios['convolution']}, all {ratios['all']:.2f}")
PYTHON
cat > expected <<'TEXT'
convolution of 64 channels: 1 group 2.0, 8 groups 9.0, 64 groups 65.0
block of 512 channels: convolution 1025.0, all 4.66
TEXT
venv/bin/python -W ignore count.py | tee seen
diff expected seen
