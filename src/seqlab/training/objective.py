"""The loss of a part of a batch as a module, which is what several processes wrap."""

import torch
from torch import Tensor, nn

from seqlab.data import DataSet
from seqlab.models.counting import tensors_of
from seqlab.models.head_loss import head_loss, skips_logits
from seqlab.models.sequence_model import ModelState
from seqlab.ops.cross_entropy import smoothing_excess
from seqlab.training.precision import Precision, autocast
from seqlab.training.sharding import is_part


class Objective(nn.Module):
    """The sum of a model's losses on some rows, divided by a number.

    Args:
        model: what is trained.
        data: has the loss.
        device: where to compute.
        precision: of the model's computations.
        label_smoothing: share of each target that goes to all words alike; for a loss that ``is_cross_entropy``.

    Symbols: B batch, L length.
    """

    def __init__(
        self,
        model: nn.Module,
        data: DataSet,
        device: torch.device,
        precision: Precision,
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        self.model, self.data, self.device, self.precision = model, data, device, precision
        self.label_smoothing = label_smoothing
        self.cache = not any(map(is_part, model.parameters()))  # which would gather the weights of all layers

    def forward(
        self, inputs: Tensor, targets: Tensor, count: Tensor, state: ModelState | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Inputs (B, L) or (B, L, d_input) and their targets to the loss, a scalar; so is ``count``.

        And the tensors of the state after the inputs, if one before them is given.
        """
        after, carried = [], state is not None
        with autocast(self.device, self.precision, cache=self.cache):
            skips = self.skips_logits(inputs)
            if carried:
                hidden, state = self.model.carry(inputs, state)
                after = tensors_of(state)
            elif skips:
                hidden = self.model.hidden(inputs)
            if skips:
                scale = count.reciprocal().expand(targets.shape)
                return head_loss(self.model.head, hidden, targets, scale, self.label_smoothing), after
            outputs = self.model.head(hidden) if carried else self.model(inputs)
        loss = self.data.loss(outputs, targets).sum()
        if self.label_smoothing:
            loss = loss + self.label_smoothing * smoothing_excess(outputs, targets).sum()
        return loss / count, after

    def skips_logits(self, inputs: Tensor) -> bool:
        """Whether the loss of inputs (B, L) is computed without holding all logits (``head_loss``)."""
        return getattr(self.data.loss, "is_cross_entropy", False) and skips_logits(
            self.model, inputs, self.label_smoothing
        )
