"""The gradient of a batch as a CUDA graph: the device is given a whole step's kernels at once.

A small model's step is hundreds of kernels of a few microseconds each, and Python takes longer to ask for one than the
device to run it. A graph is recorded once and asked for with one call; its kernels and their results are the same.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from seqlab.errors import UserError

EAGER = 3
"""Updates before the recording, in which libraries set themselves up and kernels are compiled."""

Gradient = Callable[[Tensor, Tensor], Tensor]
"""Given inputs and targets on the device, leaves the gradient in the parameters and returns what is to be told."""


def captures(setting: Literal["auto"] | bool, device: torch.device, *, precision: str, compile: bool) -> bool:
    """Whether to record; ``auto`` does so wherever it can be done, and what cannot be done is refused if asked for."""
    obstacle = None
    if device.type != "cuda":
        obstacle = "CUDA graphs need a CUDA device"
    elif precision == "fp16":
        obstacle = "fp16's loss scale is decided in Python in the midst of a step"
    elif compile:
        obstacle = "torch.compile makes its own kernels and records them itself if asked to"
    if setting is True and obstacle:
        raise UserError("trainer.cuda_graph", True, obstacle, "Use trainer.cuda_graph=auto")
    return setting is not False and obstacle is None


class CapturedGradient:
    """Computes what ``gradient`` does, from its ``EAGER``-th batch on by replaying the kernels that it launched then.

    A batch of another shape than the first goes the ordinary way. The gradients' memory is the graph's own, and is
    given to the parameters again after each replay, so that whoever used them may set them to ``None``.
    """

    def __init__(self, gradient: Gradient, parameters: list[nn.Parameter]):
        self.gradient, self.parameters = gradient, parameters
        self.stream = torch.cuda.Stream()  # recording needs another than the default one, in the steps before it too
        self.eager_left = EAGER
        self.shapes: tuple[torch.Size, torch.Size] | None = None
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        shapes = inputs.shape, targets.shape
        self.shapes = self.shapes or shapes
        if shapes != self.shapes or self.eager_left:
            self.eager_left = max(0, self.eager_left - 1)
            return self._eagerly(inputs, targets)
        if self.graph is None:
            self._capture(inputs, targets)
        self.inputs.copy_(inputs)
        self.targets.copy_(targets)
        self.graph.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return self.found

    def _eagerly(self, inputs: Tensor, targets: Tensor) -> Tensor:
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            found = self.gradient(inputs, targets)
        current.wait_stream(self.stream)
        return found

    def _capture(self, inputs: Tensor, targets: Tensor) -> None:
        """Record; nothing is computed yet. Other threads, such as that which makes batches, go on meanwhile."""
        self.inputs, self.targets = inputs.clone(), targets.clone()
        for parameter in self.parameters:
            parameter.grad = None
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):
            self.found = self.gradient(self.inputs, self.targets)
        self.gradients = [parameter.grad for parameter in self.parameters]
