"""Training FLOPs, counted on the model as it is built.

Matrix products, convolutions and attention are counted by torch as one forward and one backward pass run through
its dispatcher, on the ``meta`` device: shapes alone, no memory and no arithmetic. A recurrence is elementwise work
which torch's counter does not see, so a mixer states its own (``uncounted_flops``), backward as twice forward.
Norms, activations and the loss are left out, as in the published counts; attention counts the whole square of
positions although half of it is masked (Chowdhery et al. 2022, appendix B).
"""

import copy
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

Shape = tuple[int, ...]


def convolution_backward_flops(
    grad_out: Shape, x: Shape, weight: Shape, *settings: Any, out_shape: tuple[Shape | None, ...]
) -> int:
    """Each gradient of a convolution costs what the convolution costs (torch's own count forgets the groups)."""
    gradients = sum(shape is not None for shape in out_shape[:2])  # by the input, by the weight
    return gradients * 2 * prod(grad_out) * prod(weight[1:])


FORMULAS = {torch.ops.aten.convolution_backward: convolution_backward_flops}


def training_flops(model: nn.Module, data: Any) -> int:
    """FLOPs of one forward and backward pass over one window of ``data.length`` positions."""
    model = copy.deepcopy(model).to("meta").train()
    inputs, targets = (part.to("meta") for part in data.train_batch(0, 1, seed=0))
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        data.loss(model(inputs), targets).sum().backward()
    hidden = sum(m.uncounted_flops(1, data.length) for m in model.modules() if hasattr(m, "uncounted_flops"))
    return counter.get_total_flops() + 3 * hidden
