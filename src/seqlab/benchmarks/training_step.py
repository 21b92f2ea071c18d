"""A training step of a model on random tokens, made as ``train.py`` makes it.

Symbols: B sequences of L tokens, V words in the vocabulary.
"""

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor, nn

from seqlab.data import Batch, of_cross_entropy
from seqlab.ops import cross_entropy
from seqlab.training import TrainerConfig
from seqlab.training.captured import captures
from seqlab.training.optim import adamw
from seqlab.training.precision import Precision
from seqlab.training.schedule import constant
from seqlab.training.update import Update


class RandomTokens:
    """The methods of a data set that an ``Update`` calls."""

    carries = False

    def mask(self, targets: Tensor) -> Tensor:
        """Every position counts: (B, L) to (B, L), bool."""
        return torch.ones_like(targets, dtype=torch.bool)

    @of_cross_entropy
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats of outputs (B, L, V) at targets (B, L): (B, L), float32."""
        return cross_entropy(outputs, targets)


def training_step(
    model: nn.Module, vocabulary: int, batch: int, length: int, *, precision: Precision, device: torch.device
) -> Callable[[], None]:
    """A function that makes one update of a model on its device, replayed as a CUDA graph where that can be.

    Where outcomes come late, each is read after the next update is launched, as ``ahead.updates`` does.

    Args:
        model: of tokens, in training mode.
        vocabulary: V, of which the tokens are random ones.
        batch, length: B and L.
        precision: of the forward and the backward pass.
        device: where the model is.
    """
    config = TrainerConfig(optimizer=adamw, schedule=constant, batch_size=1, steps=1, precision=precision)
    captured = captures(config, model, device)
    update = Update(config, model, RandomTokens(), device=device, cuda_graph=captured)
    inputs, targets = torch.randint(vocabulary, (2, batch, length))
    given = Batch(inputs.pin_memory(), targets.pin_memory()) if device.type == "cuda" else Batch(inputs, targets)
    launched = deque()

    def step() -> None:
        launched.append(update.launch(given, 1.0))
        if len(launched) > update.late:
            launched.popleft()()

    return step
