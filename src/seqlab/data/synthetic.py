"""Sequence-to-sequence regression that needs memory, generated from a seed.

Symbols: B batch, n samples of a split, L length.
"""

import hashlib
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor
from typing_extensions import override

from seqlab.data.protocol import Batch, DataSet
from seqlab.data.streams import epoch_items, uniform
from seqlab.errors import UserError

AtLeastTwo = Annotated[int, Field(ge=2)]


class Regression(DataSet):
    """Outputs that depend on the values at the last marked position, a variable distance back.

    Each position carries a marker and ``d_input - 1`` values, uniform on [-1, 1). With r the last marked position up
    to t (the first is always marked) and bend(u) = u (2 - |u|), output k is bend(v_k at r) * v_(k+1 at t) + noise,
    with k + 1 modulo the number of values. One example with ``d_input`` 3, ``d_output`` 1 and no noise::

        t         0     1     2     3     4     5
        marker    1     0     0     1     0     0
        v_0     0.5   0.3  -0.9  -0.5   0.7   0.1     bend(0.5) = 0.75, bend(-0.5) = -0.75
        v_1     0.8  -0.4   0.2   0.4   0.8  -1.0
        y       0.6  -0.3  0.15  -0.3  -0.6  0.75     = bend(v_0 at r) * v_1

    A model that sees one position at a time cannot solve it: away from the markers bend(v_k at r) is independent of
    the position's own features and 0 on average, so the best such prediction there is 0, and its R^2 over all
    positions is the marked share of them (``per_position_r2``), where y = bend(v_k) * v_(k+1) is of one position.

    Everything is computed with exactly rounded arithmetic, so that a seed gives the same bytes on every machine.

    Args:
        length: positions in a sample.
        d_input: width of the features, the marker among them.
        d_output: width of the outputs, at most ``d_input - 1``.
        n_train: samples to train on.
        n_validation: samples for model selection.
        n_test: samples for the final metrics.
        marker_probability: that a position after the first is marked; the mean distance of markers is its inverse.
        noise: standard deviation of the uniform noise on the outputs.
        seed: of the data; the order of batches depends on the run's seed.
        metrics: what to measure besides the loss, by name.

    Raises:
        UserError: ``d_output`` is not below ``d_input``.
    """

    tokens = False
    items = "samples"

    def __init__(
        self,
        *,
        length: PositiveInt,
        d_input: Annotated[int, Field(ge=3)],
        d_output: PositiveInt,
        n_train: AtLeastTwo,
        n_validation: AtLeastTwo,
        n_test: AtLeastTwo,
        marker_probability: Annotated[float, Field(ge=0, le=1)],
        noise: NonNegativeFloat,
        seed: int,
        metrics: dict[str, Any] | None = None,
    ):
        self.length, self.d_input, self.d_output = length, d_input, d_output
        self.marker_probability, self.noise, self.seed = marker_probability, noise, seed
        self.metrics = metrics or {}
        self.train_size = n_train
        if d_output >= d_input:
            rule = f"must be at most d_input - 1 = {d_input - 1}, for each output has a value of its own"
            raise UserError("d_output", d_output, rule, f"Set d_output={d_input - 1} or less")
        sizes = {"train": n_train, "validation": n_validation, "test": n_test}
        self._splits = {split: self._generate(split, size) for split, size in sizes.items()}

    def _generate(self, split: str, size: int) -> Batch:
        """The samples of a split: (n, L, d_input) and (n, L, d_output)."""

        def draw(what: str, width: int) -> np.ndarray:
            return uniform(self.seed, f"regression {split} {what}", 0, (size, self.length, width))

        marked = draw("markers", 1) < self.marker_probability  # (n, L, 1)
        marked[:, 0] = True
        values = (2 * draw("values", self.d_input - 1) - 1).astype(np.float32).astype(np.float64)  # (n, L, d_input - 1)
        positions = np.arange(self.length)[:, None]  # (L, 1)
        last = np.maximum.accumulate(np.where(marked, positions, 0), axis=1)  # (n, L, 1)
        held = np.take_along_axis(values, last, axis=1)[..., : self.d_output]  # (n, L, d_output)
        partner = np.roll(values, -1, axis=2)[..., : self.d_output]  # (n, L, d_output)
        noise = self.noise * math.sqrt(3) * (2 * draw("noise", self.d_output) - 1)  # (n, L, d_output)
        targets = held * (2 - np.abs(held)) * partner + noise
        inputs = np.concatenate([marked, values], axis=2)  # (n, L, d_input)
        return Batch(torch.from_numpy(inputs.astype(np.float32)), torch.from_numpy(targets.astype(np.float32)))

    @property
    def best_r2(self) -> float:
        """The expected R^2 of the noiseless function, whose outputs have variance 8/15 * 1/3."""
        return 1 / (1 + self.noise**2 * 45 / 8)

    @property
    def per_position_r2(self) -> float:
        """The expected R^2 of the best model that sees one position at a time."""
        marked = (1 + (self.length - 1) * self.marker_probability) / self.length
        return marked * self.best_r2

    @property
    def fingerprint(self) -> str:
        """A hash of the samples of all splits."""
        digest = hashlib.sha256()
        for split in self._splits.values():
            for tensor in split:
                digest.update(tensor.numpy())
        return digest.hexdigest()[:12]

    @property
    @override
    def description(self) -> str:
        sizes = " + ".join(f"{len(inputs):,}" for inputs, _ in self._splits.values())
        widths = f"{self.d_input} features to {self.d_output} outputs"
        return f"regression: {sizes} samples of {self.length:,} positions, {widths}, seed {self.seed}"

    def train_batch(self, index: int, batch_size: int, seed: int) -> Batch:
        """Batch number ``index`` of the endless training stream: (B, L, d_input) and (B, L, d_output)."""
        self.check_batch_size(batch_size)
        _, items = epoch_items(index, batch_size, seed, self.train_size)
        inputs, targets = self._splits["train"]
        chosen = torch.from_numpy(items)  # (B,)
        return Batch(inputs[chosen], targets[chosen])

    @override
    def evaluation_batches(self, split: Literal["validation", "test"], batch_size: int) -> Iterator[Batch]:
        inputs, targets = self._splits[split]
        yield from map(Batch, inputs.split(batch_size), targets.split(batch_size))

    @override
    def evaluation_size(self, split: Literal["validation", "test"], batch_size: int) -> int:
        return -(-len(self._splits[split].inputs) // batch_size)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Squared error, averaged over the outputs: (B, L, d_output) and (B, L, d_output) to (B, L) float32."""
        return (outputs.float() - targets).square().mean(dim=-1)

    def mask(self, targets: Tensor) -> Tensor:
        """All positions, (B, L) bool, of targets (B, L, d_output)."""
        return torch.ones(targets.shape[:-1], dtype=torch.bool, device=targets.device)
