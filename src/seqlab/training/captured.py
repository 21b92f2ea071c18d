"""The gradient of a batch, and the step, as a CUDA graph: one call launches all kernels.

A small model's step is hundreds of kernels of a few microseconds each, and Python takes longer to launch one than the
device to run it. A graph is captured once and replayed with one call; its kernels and their results are the same.

Symbols: B batch, L length.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from seqlab.errors import UserError
from seqlab.models.mixture_of_experts import balances
from seqlab.models.protocols import WaitsForDevice, parts
from seqlab.ops.cuda_graph import capture, on_side_stream
from seqlab.training.optim import trainable
from seqlab.training.parallel import ALONE, World
from seqlab.training.settings import TrainerConfig

EAGER = 3
"""Updates before the capture, in which libraries initialise and kernels are compiled."""

EAGER_TOGETHER = 11
"""That of several processes: torch's DDP times its first ten backward passes, and waits for the device to do so."""

Gradient = Callable[[Tensor, Tensor], Tensor]
"""From inputs and targets, sets the parameters' gradients and returns the values to log, (2,) or (3,), on the device.

It may also step the optimizers and leave no gradient.
"""

REMEDY = "Use trainer.cuda_graph=false"


def captures(config: TrainerConfig, model: nn.Module, device: torch.device, world: World = ALONE) -> bool:
    """Whether to capture; ``auto`` does so wherever it is possible for one process, several are to be told.

    Raises:
        UserError: ``cuda_graph`` is true where it is not possible.
    """
    if device.type != "cuda":
        obstacle = "CUDA graphs need a CUDA device"
    elif world.size > 1 and config.parallel == "fsdp":
        obstacle = "the processes gather weights within a step"
    elif config.context_parallel > 1:
        obstacle = "the processes exchange states within a step"
    elif config.precision == "fp16":
        obstacle = "fp16's loss scale is decided in Python within a step"
    elif config.compile:
        obstacle = "torch.compile makes its own kernels and captures them itself if asked to"
    elif config.accumulate > 1 and balances(model):
        obstacle = "the visits of experts are counted before, in a pass whose random numbers are then drawn again"
    else:
        asked = [part.why_not_captured for part in parts(model, WaitsForDevice)]
        formerly = [part for part in model.modules() if hasattr(part, "why_not_recorded")]  # its former name
        asked += [part.why_not_recorded for part in formerly]
        obstacle = next(filter(None, (why(device) for why in asked)), None)
    if config.cuda_graph is True and obstacle:
        raise UserError("cuda_graph", True, obstacle, "Use cuda_graph=auto")
    asked = config.cuda_graph is True or (config.cuda_graph == "auto" and world.size == 1)
    return asked and obstacle is None


class CapturedGradient:
    """Computes ``gradient``; after ``eager`` batches by replaying the kernels that it launched in one capture.

    A batch of another shape than the first is computed eagerly. The gradients are in memory of the graph and assigned
    to the parameters after each replay, so that the caller may set them to ``None``. Batches may be on the CPU; they
    are then copied while the device computes if they are in pinned memory.

    Python code between the kernels runs only once, in the capture: a module may write into its buffers in a forward
    pass, but not replace them or count calls.
    """

    def __init__(self, gradient: Gradient, model: nn.Module, eager: int = EAGER):
        self.gradient, self.model = gradient, model
        self.parameters = trainable(model)
        self.eager = self.eager_left = eager
        self.shapes: tuple[torch.Size, torch.Size] | None = None
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """As ``gradient``: inputs and targets (B, L) or (B, L, ...) to the values to log, (2,) or (3,)."""
        shapes = inputs.shape, targets.shape
        self.shapes = self.shapes or shapes
        if shapes != self.shapes or self.eager_left:
            self.eager_left = max(0, self.eager_left - 1)
            return self._eagerly(inputs, targets)
        if self.graph is None:
            self._capture(inputs, targets)
        self.inputs.copy_(inputs, non_blocking=True)
        self.targets.copy_(targets, non_blocking=True)
        self.graph.replay()
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        return self.values

    def _eagerly(self, inputs: Tensor, targets: Tensor) -> Tensor:
        with on_side_stream():
            return self.gradient(inputs, targets)

    def _capture(self, inputs: Tensor, targets: Tensor) -> None:
        """Capture without computing; other threads, such as the one that makes batches, may use the device meanwhile.

        Raises:
            UserError: an operation cannot be captured, or the forward pass replaces a buffer.
            torch.OutOfMemoryError: from the step itself.
        """
        self.inputs, self.targets = (torch.empty_like(part, device="cuda") for part in (inputs, targets))
        for parameter in self.parameters:
            parameter.grad = None
        buffers = dict(self.model.named_buffers())
        graph = torch.cuda.CUDAGraph()
        try:
            with capture(graph):
                self.values = self.gradient(self.inputs, self.targets)
        except RuntimeError as error:
            cause = error.__context__ or error  # ending the failed capture raises another error
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from None
            why = (str(cause).splitlines() or [type(cause).__name__])[0]
            raise UserError("trainer.cuda_graph", "auto", f"a step cannot be captured ({why})", REMEDY) from cause
        for name, buffer in self.model.named_buffers():
            if buffer is not buffers[name]:
                rule = f"the forward pass puts another tensor in the place of {name}"
                raise UserError("trainer.cuda_graph", "auto", rule, REMEDY)
        self.gradients = [(p, p.grad) for p in self.parameters if p.grad is not None]
        self.graph = graph
