"""A layer: a mixer, then a feed-forward if there is one, each behind a norm and a residual connection.

Symbols: B batch, L length, D model width.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from seqlab.errors import UserError
from seqlab.models.dropouts import WeightDropout
from seqlab.models.norms import RMSNorm, add_norm
from seqlab.models.protocols import Mixer, StepsInResidual, parts
from seqlab.models.recomputation import recomputed

Read = Callable[[Mixer, Tensor, Any], tuple[Tensor, Any]]
"""How a mixer is advanced from a state: ``step_mixer`` or ``prefill_mixer``."""


def step_mixer(mixer: Mixer, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """A mixer's output (B, D) for one position x (B, D), and the state after it."""
    return mixer.step(x, state)


def prefill_mixer(mixer: Mixer, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """A mixer's outputs (B, L, D) for x (B, L, D) and the state after it; step by step if it has no ``prefill``."""
    if hasattr(mixer, "prefill"):  # what ``Prefills`` says; to ask for a protocol takes as long as to launch a kernel
        return mixer.prefill(x, state)
    outputs = []
    for position in x.unbind(dim=1):
        y, state = mixer.step(position, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


def rounds_input(part: nn.Module) -> bool:
    """Whether a part says that linear maps alone read its input, which autocast rounds.

    The part itself or its class; what is inherited does not count, since a subclass may do otherwise.
    """
    return bool((vars(type(part)) | vars(part)).get("rounds_input", False))


class Branch(nn.Module):
    """Half a layer: x + dropout(inner(norm(x))), or without a residual connection dropout(inner(norm(x))).

    Over whole sequences the sum is left to the next norm, which adds in the kernel that reads it.
    """

    def __init__(self, inner: nn.Module, norm: nn.Module, *, residual: bool, dropout: float):
        super().__init__()
        self.norm, self.inner, self.residual = norm, inner, residual
        self.dropout = nn.Dropout(dropout)
        self.weight_dropout: WeightDropout | None = None  # of ``inner``'s: ``seqlab.training.regularisation``
        if isinstance(norm, RMSNorm):
            norm.rounds = rounds_input(inner)

    def _weights(self) -> AbstractContextManager[None]:
        """Within, ``inner`` has the weights that it computes with."""
        return nullcontext() if self.weight_dropout is None else self.weight_dropout.of(self.inner)

    def _join(self, x: Tensor, y: Tensor) -> Tensor:
        if self.training:
            y = self.dropout(y)
        return x + y if self.residual else y

    def forward(
        self, x: Tensor, update: Tensor | None = None, seq_idx: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """From x and what is still to be added to it, (B, L, D) each, to the same after this half layer.

        ``seq_idx`` (B, L) is for a mixer (``protocols.Packs``).
        """
        x, normal = add_norm(self.norm, x, update)
        with self._weights():
            y = self.inner(normal) if seq_idx is None else self.inner(normal, seq_idx=seq_idx)
        return self._left(x, y)

    def _left(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        y = self.dropout(y)
        return (x, y) if self.residual else (y, None)

    def carry(self, x: Tensor, update: Tensor | None, state: Any) -> tuple[Tensor, Tensor | None, Any]:
        """As ``forward``, (B, L, D) each, with the mixer's state before and after (``protocols.Carries``)."""
        x, normal = add_norm(self.norm, x, update)
        with self._weights():
            y, state = self.inner.prefill(normal, state)
        return *self._left(x, y), state

    def at_once(self, x: Tensor) -> Tensor:
        """x (B, L, D), or (B, D) for a feed-forward, to the same shape."""
        normal = self.norm(x)
        with self._weights():
            y = self.inner(normal)
        return self._join(x, y)

    def advance(self, x: Tensor, state: Any, read: Read) -> tuple[Tensor, Any]:
        """Advance the mixer's state by x (B, D) or (B, L, D): the output in x's shape and the next state."""
        if read is step_mixer and self.residual and not self.training and isinstance(self.inner, StepsInResidual):
            fused = self.inner.step_in_residual(x, self.norm, state)
            if fused is not None:
                return fused
        normal = self.norm(x)
        with self._weights():
            y, state = read(self.inner, normal, state)
        return self._join(x, y), state


class Layer(nn.Module):
    """A mixer, then a feed-forward if there is one.

    Attributes:
        recomputed: whether ``forward``, or ``carry``, keeps its inputs alone for the backward pass, and computes the
            rest again there.
    """

    recomputed = False

    def __init__(self, mixer: Branch, feedforward: Branch | None):
        super().__init__()
        self.mixer, self.feedforward = mixer, feedforward

    def forward(
        self, x: Tensor, update: Tensor | None = None, seq_idx: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """From x and what is still to be added to it, (B, L, D) each, to the same after the layer."""
        if self.recomputed and torch.is_grad_enabled():
            return recomputed(self, self._halves, x, update, seq_idx)
        return self._halves(x, update, seq_idx)

    def _halves(self, x: Tensor, update: Tensor | None, seq_idx: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x, update = self.mixer(x, update, seq_idx)
        return (x, update) if self.feedforward is None else self.feedforward(x, update)

    def carry(self, x: Tensor, update: Tensor | None, state: Any) -> tuple[Tensor, Tensor | None, Any]:
        """As ``forward``, (B, L, D) each, with the mixer's state before and after (``protocols.Carries``)."""
        if self.recomputed and torch.is_grad_enabled():
            return recomputed(self, self._carried, x, update, state)
        return self._carried(x, update, state)

    def _carried(self, x: Tensor, update: Tensor | None, state: Any) -> tuple[Tensor, Tensor | None, Any]:
        x, update, state = self.mixer.carry(x, update, state)
        return *((x, update) if self.feedforward is None else self.feedforward(x, update)), state

    def advance(self, x: Tensor, state: Any, read: Read) -> tuple[Tensor, Any]:
        """Advance the mixer's state by x (B, D) or (B, L, D): the output in x's shape and the next state."""
        x, state = self.mixer.advance(x, state, read)
        return x if self.feedforward is None else self.feedforward.at_once(x), state


def recompute(model: nn.Module, every: int) -> None:
    """Let every so many-th layer of a model keep its inputs alone for the backward pass, from the first; 0 is none.

    Raises:
        UserError: the model has no layers.
    """
    layers = parts(model, Layer)
    if every and not layers:
        rule = f"{type(model).__name__} has no layers whose activations could be computed again"
        raise UserError("checkpoint_layers", True, rule, "Leave it out")
    for number, layer in enumerate(layers):
        layer.recomputed = bool(every) and number % every == 0
