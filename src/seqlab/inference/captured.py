"""Generating on a GPU without launching kernels one by one: what a model does again and again, as CUDA graphs.

The kernels of a step, or of a short prompt, take less time than Python does to ask for them one by one. A graph holds
them with the memory that they read and write. So it fits models whose steps are the same at every position; attention,
whose cache grows, and positions that are counted go the ordinary way.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from seqlab.models.counting import tensors_of
from seqlab.models.protocols import StepsAlike, WaitsForDevice, parts
from seqlab.ops.cuda_graph import capture, on_side_stream
from seqlab.ops.recent import Recent

MOST_GRAPHS = 8
"""Of a model, steps and prompts together; the least recently used one goes first."""

_graphs: WeakKeyDictionary[nn.Module, tuple[tuple[int, ...], Recent | None]] = WeakKeyDictionary()


def why_not_captured(model: nn.Module) -> str | None:
    """Why no CUDA graph can hold a step or a prompt of a ``SequenceModel``; None if one can."""
    device = model.embed.weight.device
    if device.type != "cuda":
        return "CUDA graphs need a CUDA device"
    if model.positions is not None:
        return "positions are counted in Python"
    if any(not isinstance(layer.mixer.inner, StepsAlike) for layer in model.layers):
        return "a mixer's steps differ from position to position"
    return next(filter(None, (part.why_not_captured(device) for part in parts(model, WaitsForDevice))), None)


def graphs_of(model: nn.Module) -> Recent | None:
    """The graphs of a model, by what they compute; None where none can be captured.

    They are of the model's parameters where these are in memory now: once one has moved, a new set begins. Whoever uses
    a graph takes it and keeps it again afterwards, so that nobody else writes into its memory meanwhile. None too under
    autocast, whose copies of the weights would become the graph's.
    """
    memory = tuple(parameter.data_ptr() for parameter in model.parameters())
    known, graphs = _graphs.get(model, (None, None))
    if known != memory:
        graphs = Recent(MOST_GRAPHS) if why_not_captured(model) is None else None
        _graphs[model] = memory, graphs
    return None if torch.is_autocast_enabled(model.embed.weight.device.type) else graphs


class Captured:
    """A function as a CUDA graph: ``replay`` computes ``outputs`` again from what ``inputs`` hold then.

    Args:
        function: launches kernels on the inputs' device and never waits for it. It may write into its inputs, and is
            not kept: replays know the memory that it read and wrote, not the objects.
        inputs: tensors of any shapes, which are copied.
    """

    def __init__(self, function: Callable[..., Any], *inputs: Tensor):
        with torch.inference_mode(False), torch.no_grad():  # tensors of that mode cannot be written into outside of it
            self.inputs = [tensor.clone() for tensor in inputs]
            self.replay, self.outputs = recorded(function, self.inputs)


def recorded(function: Callable[..., Any], inputs: list[Tensor]) -> tuple[Callable[[], None], Any]:
    """What replays a function of inputs of any shapes, and what it returns, which every replay overwrites."""
    with torch.cuda.device_of(inputs[0]):
        with on_side_stream():
            function(*inputs)  # kernels are compiled and libraries set up
        graph = torch.cuda.CUDAGraph()
        with capture(graph):
            outputs = function(*inputs)
    return graph.replay, outputs


def copy_into(mine: Iterable[Tensor], given: Iterable[Tensor]) -> None:
    """Overwrite tensors with others of the same shapes, leaving out those that are the same memory."""
    for old, new in zip(mine, given, strict=True):
        if old.data_ptr() != new.data_ptr():
            old.copy_(new)


def copied(nested: Any) -> Any:
    """The same in memory of its own: tensors of any shapes in nested lists, tuples and dictionaries."""
    return filled(nested, (tensor.clone() for tensor in tensors_of(nested)))


def filled(layout: Any, tensors: Iterator[Tensor]) -> Any:
    """A state nested like ``layout`` with other tensors of the same shapes, in the order of ``tensors_of``."""
    if isinstance(layout, Tensor):
        return next(tensors)
    if isinstance(layout, dict):
        return {key: filled(value, tensors) for key, value in layout.items()}
    if isinstance(layout, tuple) and hasattr(layout, "_fields"):
        return type(layout)(*(filled(value, tensors) for value in layout))
    if isinstance(layout, list | tuple):
        return type(layout)(filled(value, tensors) for value in layout)
    return layout
