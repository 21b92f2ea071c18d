"""The loss of a part of a batch as a module, which is what several processes wrap."""

from functools import partial

import torch
from torch import Tensor, nn

from seqlab.data import DataSet
from seqlab.data.protocol import IGNORED
from seqlab.models.counting import tensors_of
from seqlab.models.head_loss import head_loss, reads_hidden, skips_logits
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
            places = None if carried else self.places(targets)
            if places is not None:
                targets = targets.flatten()[places]  # (B, most)
            head = self.model.head if carried else None  # None is the model's own
            if skips := self.skips_logits(inputs, targets.numel()):
                scale = count.to(self.model.head.weight.dtype).reciprocal().expand(targets.shape)
                how = {"targets": targets, "scale": scale, "label_smoothing": self.label_smoothing}
                head = partial(head_loss, self.model.head, **how)
            if carried:
                hidden, state = self.model.carry(inputs, state)
                outputs, after = head(hidden), tensors_of(state)
            elif skips or places is not None:
                outputs = self.model(inputs, places, head)
            else:
                outputs = self.model(inputs)  # which need not be a ``SequenceModel``
            if skips:
                return outputs, after
        loss = self.data.loss(outputs, targets).sum()
        if self.label_smoothing:
            loss = loss + self.label_smoothing * smoothing_excess(outputs, targets).sum()
        return loss / count, after

    @property
    def of_logits(self) -> bool:
        """Whether the loss is the cross-entropy of each position's logits."""
        return getattr(self.data.loss, "is_cross_entropy", False)

    def places(self, targets: Tensor) -> Tensor | None:
        """Where the targets (B, L) are labels, if few positions of a window can be: (B, most), in the flat batch.

        They are as many for each row as its data have at most, known beforehand, so that the host need not wait for the
        device to count them; the others are positions without a label.
        """
        rows, length = targets.shape[:2]
        most = getattr(self.data, "most_labels", None)
        if most is None or 2 * most > length or not (self.of_logits and reads_hidden(self.model)):
            return None
        if self.model.last_output is not None:  # it regularises what the head reads at all positions
            return None
        here = (targets != IGNORED).to(torch.uint8).topk(most, dim=1, sorted=False).indices  # (B, most)
        return here + length * torch.arange(rows, device=targets.device)[:, None]

    def skips_logits(self, inputs: Tensor, positions: int) -> bool:
        """Whether the loss of inputs (B, L) at so many positions does without holding all logits (``head_loss``)."""
        return self.of_logits and skips_logits(self.model, inputs, positions, self.label_smoothing)
