"""Muon for the weights of experts, which are stacks of matrices: torch's Muon takes only single matrices.

Symbols: n matrices in a stack.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

COEFFICIENTS, ITERATIONS, TINY = (3.4445, -4.7750, 2.0315), 5, 1e-7
"""Constants of the Newton-Schulz iteration (Jordan et al. 2024), those of ``torch.optim.Muon``."""


def orthogonalised(stack: Tensor) -> Tensor:
    """Each matrix of a stack with its singular values brought near 1: (n, rows, columns) to the same in bfloat16."""
    a, b, c = COEFFICIENTS
    tall = stack.shape[1] > stack.shape[2]
    x = stack.bfloat16()
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=TINY)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)  # a x + (b g + c g g) x
    return x.mT if tall else x


class MuonOfStacks(Optimizer):
    """``torch.optim.Muon`` with Nesterov momentum and AdamW's update size, for each matrix of a stack.

    Muon is of Jordan et al. 2024, the scale of its update of Liu et al. 2025 (section 2.2).

    Args:
        params: stacks of matrices, (n, rows, columns) each.
        lr, momentum, weight_decay: as in ``torch.optim.Muon``.
    """

    def __init__(self, params: Iterable[nn.Parameter], *, lr: float, momentum: float, weight_decay: float):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update every stack that has a gradient."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                mean = state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
                update = orthogonalised(p.grad.lerp(mean, momentum))
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(update.to(p.dtype), alpha=-lr * 0.2 * max(p.shape[1:]) ** 0.5)
