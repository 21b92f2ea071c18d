"""Generating on a GPU: a token's whole step, with the draw of the next one, as one CUDA graph.

The kernels of a step take less time than Python does to ask for them one by one. A graph holds them with the memory
that they read and write: the token, the state and the number that decides the draw. So it fits models whose steps are
the same at every position; attention, whose cache grows, and positions that are counted go the ordinary way.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from seqlab.inference.sampling import Sampling
from seqlab.models.counting import tensors_of
from seqlab.models.protocols import StepsAlike, WaitsForDevice, parts
from seqlab.models.sequence_model import ModelState

MOST_GRAPHS = 4
"""Of a model, by batch size and sampling: each has its own copy of the state."""

Step = Callable[[Tensor], Tensor]
"""From the numbers (B,) that decide a draw to the tokens (B,) drawn, on the device."""

_steps: WeakKeyDictionary[nn.Module, OrderedDict[tuple, "CapturedStep"]] = WeakKeyDictionary()


def why_not_captured(model: nn.Module) -> str | None:
    """Why no CUDA graph can hold a step of a ``SequenceModel``; None if one can."""
    device = model.embed.weight.device
    if device.type != "cuda":
        return "CUDA graphs need a CUDA device"
    if model.positions is not None:
        return "positions are counted in Python"
    if any(not isinstance(layer.mixer.inner, StepsAlike) for layer in model.layers):
        return "a mixer's steps differ from position to position"
    return next(filter(None, (part.why_not_captured(device) for part in parts(model, WaitsForDevice))), None)


def captured_step(model: nn.Module, sampling: Sampling, token: Tensor, state: ModelState) -> Step:
    """The step of a model after ``token`` (B,) and the state before it, captured once for a batch size, a sampling and
    the model's memory."""
    memory = tuple(parameter.data_ptr() for parameter in model.parameters())
    key = len(token), sampling, memory
    known = _steps.setdefault(model, OrderedDict())
    if key not in known:
        known[key] = CapturedStep(model, sampling, token, state)
        if len(known) > MOST_GRAPHS:
            known.popitem(last=False)
    known[key].begin(token, state)
    return known[key]


class CapturedStep:
    """One step after another of a model, replayed; ``begin`` says from where."""

    def __init__(self, model: nn.Module, sampling: Sampling, token: Tensor, state: ModelState):
        self.token = token.clone()  # (B,)
        self.uniforms = torch.zeros(len(token), dtype=torch.float64, device=token.device)  # (B,)
        self.state = [tensor.clone() for tensor in tensors_of(state)]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._step(model, sampling, state)  # kernels are compiled and libraries set up
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"):
            self._step(model, sampling, state)

    def begin(self, token: Tensor, state: ModelState) -> None:
        """Continue from a token (B,) and the state before it."""
        self.token.copy_(token)
        for mine, given in zip(self.state, tensors_of(state), strict=True):
            mine.copy_(given)

    def __call__(self, uniforms: Tensor) -> Tensor:
        """Read the last token and draw the next by ``uniforms`` (B,) float64: (B,), which the next call overwrites."""
        self.uniforms.copy_(uniforms)
        self.graph.replay()
        return self.token

    def _step(self, model: nn.Module, sampling: Sampling, layout: ModelState) -> None:
        token = self.token.clamp(max=model.embed.num_embeddings - 1)  # V where there was nothing to draw from
        logits, after = model.step(token, filled(layout, iter(self.state)))
        for mine, new in zip(self.state, tensors_of(after), strict=True):
            if mine.data_ptr() != new.data_ptr():  # some mixers write into their state themselves
                mine.copy_(new)
        self.token.copy_(sampling.choose(logits, self.uniforms))


def filled(layout: object, tensors: Iterator[Tensor]) -> object:
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


def in_step_behind(first: Tensor, following: Iterable[Tensor]) -> Iterator[Tensor]:
    """Tokens (B,) on the CPU, each once the step after it has been given to the device, which so never waits for us."""
    waiting = copied(first)
    for token in following:
        ahead = copied(token)
        yield arrived(waiting)
        waiting = ahead
    yield arrived(waiting)


def copied(token: Tensor) -> tuple[Tensor, torch.cuda.Event]:
    """A copy of a token (B,) on its way to the CPU, and the event of its arrival."""
    there = torch.empty(token.shape, dtype=token.dtype, pin_memory=True)
    there.copy_(token, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return there, event


def arrived(copy: tuple[Tensor, torch.cuda.Event]) -> Tensor:
    """The token (B,) once it is on the CPU."""
    copy[1].synchronize()
    return copy[0]
