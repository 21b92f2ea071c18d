"""The gradient of a batch as a CUDA graph: the device is given a whole step's kernels at once.

A small model's step is hundreds of kernels of a few microseconds each, and Python takes longer to ask for one than the
device to run it. A graph is captured once and replayed with one call; its kernels and their results are the same.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from seqlab.errors import UserError
from seqlab.models.mixture_of_experts import balances
from seqlab.models.protocols import WaitsForDevice, parts
from seqlab.training.settings import TrainerConfig

EAGER = 3
"""Updates before the capture, in which libraries set themselves up and kernels are compiled."""

Gradient = Callable[[Tensor, Tensor], Tensor]
"""Given inputs and targets on the device, leaves the gradient in the parameters and returns the values to log."""


def captures(config: TrainerConfig, model: nn.Module, device: torch.device) -> bool:
    """Whether to capture; ``auto`` does so wherever it can be done, and what cannot be done is refused if asked for."""
    if device.type != "cuda":
        obstacle = "CUDA graphs need a CUDA device"
    elif config.precision == "fp16":
        obstacle = "fp16's loss scale is decided in Python in the midst of a step"
    elif config.compile:
        obstacle = "torch.compile makes its own kernels and captures them itself if asked to"
    elif config.accumulate > 1 and balances(model):
        obstacle = "the visits of experts are counted before a batch's parts, whose random numbers are then drawn again"
    else:
        asked = [part.why_not_captured for part in parts(model, WaitsForDevice)]
        formerly = [part for part in model.modules() if hasattr(part, "why_not_recorded")]  # what users' parts may have
        asked += [part.why_not_recorded for part in formerly]
        obstacle = next(filter(None, (why(device) for why in asked)), None)
    if config.cuda_graph is True and obstacle:
        raise UserError("cuda_graph", True, obstacle, "Use cuda_graph=auto")
    return config.cuda_graph is not False and obstacle is None


class CapturedGradient:
    """Computes what ``gradient`` does, from its ``EAGER``-th batch on by replaying the kernels that it launched then.

    A batch of another shape than the first goes the ordinary way. The gradients' memory is the graph's own, and is
    given to the parameters again after each replay, so that whoever used them may set them to ``None``.

    What Python does between the kernels is done once, in the capture: a part of the model may write into its buffers in
    a forward pass, but not put others in their place, nor count calls.
    """

    def __init__(self, gradient: Gradient, model: nn.Module):
        self.gradient, self.model = gradient, model
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.stream = torch.cuda.Stream()  # a capture needs another than the default one, in the steps before it too
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
        return self.values

    def _eagerly(self, inputs: Tensor, targets: Tensor) -> Tensor:
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            values = self.gradient(inputs, targets)
        current.wait_stream(self.stream)
        return values

    def _capture(self, inputs: Tensor, targets: Tensor) -> None:
        """Capture; nothing is computed yet. Other threads, such as that which makes batches, go on meanwhile."""
        self.inputs, self.targets = inputs.clone(), targets.clone()
        for parameter in self.parameters:
            parameter.grad = None
        buffers = dict(self.model.named_buffers())
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self.values = self.gradient(self.inputs, self.targets)
        except RuntimeError as error:
            cause = error.__context__ or error  # which the end of the capture hides behind its own failure
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from None
            why = (str(cause).splitlines() or [type(cause).__name__])[0]
            raise refusal(f"a step cannot be captured ({why})") from cause
        for name, buffer in self.model.named_buffers():
            if buffer is not buffers[name]:
                raise refusal(f"the forward pass puts another tensor in the place of {name}")
        self.gradients = [parameter.grad for parameter in self.parameters]
        self.graph = graph


def refusal(rule: str) -> UserError:
    return UserError("trainer.cuda_graph", "auto", rule, "Use trainer.cuda_graph=false")
