"""The protocols of a model's parts: what the model, training, counting and generation need of them.

Symbols: B batch, L length, D model width.

A part of a model is any ``nn.Module``. A mixer must satisfy ``Mixer``; the other protocols, of one method each, are
optional. ``parts`` finds the modules that satisfy one.
"""

import inspect
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from seqlab.errors import UserError
from seqlab.ops.context import ContextGroup

Factory = Callable[[int], nn.Module]
"""Builds a part, given the model's width D."""


@runtime_checkable
class Mixer(Protocol):
    """Maps (B, L, D) to (B, L, D) causally, at once or position by position. It is built as ``Mixer(d_model, ...)``.

    A state may be of any type and of constant size (Mamba, a GRU) or growing (attention, up to its window). Each state
    is used once, so that a step may change it in place.

    A projection into the residual stream is called ``out_proj``, so that the model can rescale it. FLOPs and states are
    counted on the ``meta`` device, so a mixer must run there too.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The whole sequence: (B, L, D) to (B, L, D) of x's dtype."""

    def initial_state(self, batch_size: int) -> Any:
        """The state of ``batch_size`` sequences before the first position."""

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One position, (B, D) to (B, D), and the state after it; equal to ``forward`` there within rounding."""


class Packs(Protocol):
    """A mixer that can take sequences packed one after another, and lets nothing flow from one to the next."""

    def forward(self, x: Tensor, seq_idx: Tensor | None = None) -> Tensor:
        """As ``Mixer.forward``; a sequence begins where the integers ``seq_idx`` (B, L) change."""


def packs(mixer: nn.Module) -> bool:
    """Whether a mixer satisfies ``Packs``, by the name of its argument."""
    return "seq_idx" in inspect.signature(mixer.forward).parameters


@runtime_checkable
class Prefills(Protocol):
    """A mixer that can advance its state by many positions at once."""

    def prefill(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """L positions, (B, L, D) to (B, L, D), and the state after them: what as many calls of ``step`` give."""


@runtime_checkable
class Carries(Prefills, Protocol):
    """A mixer that can be trained on from the state that the window of a text before left: ``prefill`` differentiates.

    It goes on from a state of another kind than ``initial_state``'s, if that grows.
    """

    def carried_state(self, batch_size: int, length: int) -> Any:
        """The state of ``batch_size`` texts before the first of their windows of ``length`` positions.

        Tensors with a row for each text, in memory of their own, in tuples or lists; windows change no shape.
        """


def constant_state(mixer: Mixer, batch_size: int, length: int) -> Any:
    """``carried_state`` of a mixer whose state is of constant size."""
    return mixer.initial_state(batch_size)


@runtime_checkable
class SharesPositions(Protocol):
    """A mixer, or a model, that several processes can train together, each with a slice of the positions."""

    def share_positions(self, context: ContextGroup) -> None:
        """From now on ``forward`` gets, in training mode, this process's slice, and passes on what the next needs.

        Raises:
            UserError: settings do not allow it.
        """


@runtime_checkable
class StepsInResidual(Protocol):
    """A mixer with kernels for a position's whole half layer: norm, mixer and residual connection."""

    def step_in_residual(self, x: Tensor, norm: nn.Module, state: Any) -> tuple[Tensor, Any] | None:
        """x + mixer(norm(x)) of one position x (B, D), and the next state, written over the one given.

        None without kernels for this norm, device or dtype.
        """


@runtime_checkable
class StepsAlike(Protocol):
    """A mixer whose steps are the same kernels over the same memory at every position, as a CUDA graph needs."""

    steps_alike: bool


@runtime_checkable
class CountsFlops(Protocol):
    """A part with FLOPs that torch's counter does not see."""

    def uncounted_flops(self, batch_size: int, length: int) -> int:
        """Forward FLOPs that torch's counter does not see, of ``batch_size`` sequences of ``length`` positions."""


@runtime_checkable
class CountsInactive(Protocol):
    """A part of which a token uses only some parameters."""

    def inactive_parameters(self) -> int:
        """Number of parameters that a token does not use."""


@runtime_checkable
class WaitsForDevice(Protocol):
    """A part that may wait for the device in a training step."""

    def why_not_captured(self, device: torch.device) -> str | None:
        """Why a CUDA graph cannot capture it on ``device``: it waits, or may. ``None`` if one can."""


@runtime_checkable
class Scans(Protocol):
    """A mixer whose scan has several backends."""

    scan_backend: str

    def resolve_backend(self, backend: str, device: torch.device, dtype: torch.dtype) -> str:
        """The backend that a name, which may be ``auto``, resolves to on ``device``.

        Raises:
            ValueError: it cannot run there.
        """


def share_positions(model: nn.Module, context: ContextGroup) -> None:
    """Let processes train a model together, each with a slice of the positions (``SharesPositions``).

    Raises:
        UserError: it cannot be trained so.
    """
    if not isinstance(model, SharesPositions):
        rule = f"{type(model).__name__} does not pass its state from process to process"
        remedy = "Set context_parallel=1, or choose a model of mamba and mamba2 alone"
        raise UserError("context_parallel", context.size, rule, remedy)
    model.share_positions(context)


Kind = TypeVar("Kind")


def parts(model: nn.Module, kind: type[Kind]) -> list[Kind]:
    """The modules of a model, itself included, that are instances of a class or satisfy a protocol."""
    return [module for module in model.modules() if isinstance(module, kind)]
