"""Loss and accuracy by difficulty: how far back an answer lies, how many pairs there are, how long the sequence is."""

from collections import defaultdict

import torch
from torch import Tensor

SliceTable = dict[str, dict[str, dict[str, float]]]


class Slices:
    """Sums over the answers of each difficulty's values. The device is waited for once, in ``compute``."""

    def __init__(self) -> None:
        self.parts: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)

    def update(self, difficulty: dict[str, Tensor], *, preds: Tensor, target: Tensor, loss: Tensor) -> None:
        """Add a batch's answers.

        Args:
            difficulty: by name, values (P,) int64 on the CPU.
            preds, target, loss: logits (P, V), ids (P,) and losses (P,) of the same answers, on the device.
        """
        if not difficulty:
            return
        measured = torch.stack((loss.double(), (preds.argmax(dim=-1) == target).double()), dim=1)  # (P, 2)
        for name, values in difficulty.items():
            found, place, count = values.unique(return_inverse=True, return_counts=True)
            sums = torch.zeros(len(found), 2, dtype=torch.float64, device=loss.device)
            sums.index_add_(0, place.to(loss.device, non_blocking=True), measured)
            self.parts[name].append((found, count, sums))

    def compute(self) -> SliceTable:
        """For each difficulty and each of its values, as text in ascending order: mean loss, accuracy, answers."""
        return {name: table_of(*map(torch.cat, zip(*parts, strict=True))) for name, parts in self.parts.items()}


def table_of(values: Tensor, counts: Tensor, sums: Tensor) -> dict[str, dict[str, float]]:
    """The means over everything with one value: values (S,), counts (S,), sums of loss and hits (S, 2)."""
    found, place = values.unique(return_inverse=True)
    count = torch.zeros(len(found), dtype=torch.int64).index_add_(0, place, counts)
    loss, accuracy = torch.zeros(len(found), 2, dtype=torch.float64).index_add_(0, place, sums.cpu()).T / count
    rows = zip(found.tolist(), loss.tolist(), accuracy.tolist(), count.tolist(), strict=True)
    return {str(value): {"loss": a, "accuracy": b, "count": c} for value, a, b, c in rows}
