"""Layers that keep their inputs alone for the backward pass, and compute the rest again when it comes to them.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost" (arXiv 1604.06174), section 4.1, by torch's
``checkpoint``. Dropout draws the same masks again, so that gradients are bit for bit those without it.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]
"""Around a forward pass, and around the same computed again."""


def recomputed(layer: nn.Module, forward: Callable[..., Any], *inputs: Any) -> Any:
    """``forward(*inputs)``, a layer's, of which only the inputs are kept."""
    if torch.compiler.is_compiling():  # which takes no contexts
        return checkpoint(forward, *inputs, use_reentrant=False)
    how: dict[str, Any] = {}
    captured = inputs[0].is_cuda and torch.cuda.is_current_stream_capturing()
    stores = any(hasattr(part, "auxiliary_loss") for part in layer.modules())
    if captured or stores:
        how["context_fn"] = lambda: contexts(layer if stores else None, masks=captured)
    return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=not captured, **how)


def contexts(layer: nn.Module | None, *, masks: bool) -> Contexts:
    """What else a layer needs: with ``masks``, that they be kept, as in a capture nobody can ask for a random state."""
    first, again = nullcontext(), nullcontext()
    if masks:
        kept: list[Tensor] = []
        first, again = KeepMasks(kept), UseMasks(kept)
    return first, again if layer is None else _leaves_no_losses(layer, again)


@contextmanager
def _leaves_no_losses(layer: nn.Module, within: AbstractContextManager[Any]) -> Iterator[None]:
    """Drop the losses that parts store a second time, which would hold on to all that was computed again."""
    try:
        with within:
            yield
    finally:
        for part in layer.modules():
            for name in vars(part).keys() & {"auxiliary_loss", "loss_by_share"}:
                setattr(part, name, None)


class KeepMasks(TorchDispatchMode):
    """Adds the masks of a GPU's dropout to a list, a byte for each element."""

    def __init__(self, masks: list[Tensor]):
        super().__init__()
        self.masks = masks

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.native_dropout.default:
            self.masks.append(found[1])
        return found


class UseMasks(TorchDispatchMode):
    """Gives them to the same calls made again, in their order."""

    def __init__(self, masks: list[Tensor]):
        super().__init__()
        self.masks = masks

    @override
    def __enter__(self) -> "UseMasks":
        self.left = iter(self.masks)
        return super().__enter__()

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is not torch.ops.aten.native_dropout.default:
            return func(*args, **(kwargs or {}))
        x, p, mask = *args[:2], next(self.left)
        kept = 1 - p if x.dtype == torch.float64 else ctypes.c_float(1 - p).value  # as the kernel rounds it
        return torch.ops.aten.native_dropout_backward(x, mask, 1 / kept), mask
