"""What the parts of a model are to one another and to what trains, counts and generates: the contract of its modules.

Symbols: B batch, L length, D model width.

A part of a model is any ``nn.Module``. A mixer must do what ``Mixer`` says; what else a part can say of itself is a
protocol of one method or two, which it has or has not. ``parts`` finds those that have it.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

Factory = Callable[[int], nn.Module]
"""Builds a part, given the model's width D."""


@runtime_checkable
class Mixer(Protocol):
    """Maps (B, L, D) to (B, L, D) causally, at once or position by position. It is built as ``Mixer(d_model, ...)``.

    A state may be of any kind: one size at every length (Mamba, a GRU), growing (attention), growing up to a window. It
    is continued once, so that a step may write into it.

    A projection that writes into the residual stream is called ``out_proj``, so that the model can rescale it. FLOPs
    and states are counted on the ``meta`` device, so a mixer gives shapes there too.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The whole sequence: (B, L, D) to (B, L, D) of x's dtype."""

    def initial_state(self, batch_size: int) -> Any:
        """What is remembered before the first position, of ``batch_size`` sequences."""

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One position, (B, D) to (B, D), and the state after it; equal to ``forward`` there within rounding."""


@runtime_checkable
class Prefills(Protocol):
    def prefill(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """L positions, (B, L, D) to (B, L, D), and the state after them: what as many calls of ``step`` give."""


@runtime_checkable
class CountsFlops(Protocol):
    def uncounted_flops(self, batch_size: int, length: int) -> int:
        """Forward FLOPs that torch's counter does not see, of ``batch_size`` sequences of ``length`` positions."""


@runtime_checkable
class CountsInactive(Protocol):
    def inactive_parameters(self) -> int:
        """How many of its parameters a token does not meet."""


@runtime_checkable
class WaitsForDevice(Protocol):
    def why_not_captured(self, device: torch.device) -> str | None:
        """Why no CUDA graph can hold it there: it waits for the device in a step, or may. ``None`` if one can."""


@runtime_checkable
class Scans(Protocol):
    scan_backend: str

    def resolve_backend(self, backend: str, device: torch.device, dtype: torch.dtype) -> str:
        """What a backend's name, ``auto`` among them, comes to on a device; ValueError for one that cannot run."""


Kind = TypeVar("Kind")


def parts(model: nn.Module, kind: type[Kind]) -> list[Kind]:
    """The modules of a model, itself among them, that are of a class or protocol."""
    return [module for module in model.modules() if isinstance(module, kind)]
