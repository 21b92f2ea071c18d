"""The loss of a part of a batch as a module, which is what several processes wrap."""

import torch
from torch import Tensor, nn

from seqlab.data import DataSet
from seqlab.models.head_loss import head_loss, skips_logits
from seqlab.training.precision import Precision, autocast
from seqlab.training.sharding import is_part


class Objective(nn.Module):
    """The sum of a model's losses on some rows, divided by a number.

    Args:
        model: what is trained.
        data: has the loss.
        device: where to compute.
        precision: of the model's computations.

    Symbols: B batch, L length.
    """

    def __init__(self, model: nn.Module, data: DataSet, device: torch.device, precision: Precision):
        super().__init__()
        self.model, self.data, self.device, self.precision = model, data, device, precision
        self.cache = not any(map(is_part, model.parameters()))  # which would gather the weights of all layers

    def forward(self, inputs: Tensor, targets: Tensor, count: Tensor) -> Tensor:
        """Inputs (B, L) or (B, L, d_input) and their targets to the loss, a scalar; so is ``count``."""
        with autocast(self.device, self.precision, cache=self.cache):
            if self.skips_logits(inputs):
                return head_loss(self.model, inputs, targets, count.reciprocal().expand(targets.shape))
            outputs = self.model(inputs)
        return self.data.loss(outputs, targets).sum() / count

    def skips_logits(self, inputs: Tensor) -> bool:
        """Whether the loss of inputs (B, L) is computed without holding all logits (``head_loss``)."""
        return getattr(self.data.loss, "is_cross_entropy", False) and skips_logits(self.model, inputs)
