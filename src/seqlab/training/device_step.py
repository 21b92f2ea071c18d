"""The optimizers' step where the device decides whether it is taken, so that Python need not wait for the gradient.

torch's fused optimizers read a flag, ``found_inf``, and the learning rate from the device's memory. Where the flag is 1
their kernels change neither weights nor moments, and the count of steps stays. So a step can be launched, or captured
in a CUDA graph, before anyone knows whether its gradient is finite, and at a rate that is written before each replay.

The rate is a float32 there. torch's Adam rounds a rate that is a Python number to float32 itself, so that both ways
give the same bits; its SGD does not (``fused_adam_utils.cuh``, ``FusedSgdKernel.cu``).
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from seqlab.training.lean_optimizers import torch_class


def can_step(optimizer: Optimizer) -> bool:
    """Whether an optimizer has such kernels: fused Adam and AdamW; SGD, whose fused form has the same state.

    Not if somebody's Python goes with each step, as a hook or around ``step``: a replayed step would leave it out.
    """
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks or "step" in vars(optimizer):
        return False
    kind = torch_class(optimizer)
    if kind is SGD:
        return not any(group["dampening"] or group["differentiable"] for group in optimizer.param_groups)
    return kind in (Adam, AdamW) and all(group["fused"] for group in optimizer.param_groups)


class DeviceStep:
    """Steps optimizers, all of which ``can_step``, with flag and rates in the device's memory.

    Their ``param_groups`` stay as they are, with plain numbers as rates, and so do the checkpoints.
    """

    def __init__(self, optimizers: Iterable[Optimizer], device: torch.device):
        self.optimizers = list(optimizers)
        self.rates = [
            [torch.zeros((), dtype=torch.float32, device=device) for _ in o.param_groups] for o in self.optimizers
        ]

    def set_rates(self) -> None:
        """Write the groups' learning rates to the device, for the steps launched from now on."""
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                rate.fill_(group["lr"])  # an argument of the kernel: no memory here that must outlive the launch

    def __call__(self, values: Tensor) -> Tensor:
        """Step if the values, (n,), are all finite, without waiting for them; remove the gradients.

        Returns:
            1 if they are not, and 0 if they are: a float32 scalar on the device.
        """
        unsound = (~values.isfinite().all()).float()
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            groups = optimizer.param_groups
            own = {"fused": True, "foreach": False, "capturable": True}
            optimizer.param_groups = [group | own | {"lr": rate} for group, rate in zip(groups, rates, strict=True)]
            optimizer.found_inf = unsound
            if isinstance(optimizer, SGD):
                begin_momentum(optimizer)
            optimizer.step()
            del optimizer.found_inf
            optimizer.param_groups = groups
            optimizer.zero_grad(set_to_none=True)
        return unsound


def begin_momentum(optimizer: SGD) -> None:
    """Set momenta that are missing to zero, since torch leaves them unwritten if the first step is not taken."""
    for group in optimizer.param_groups:
        for p in group["params"] if group["momentum"] else ():
            if p.grad is not None and optimizer.state[p].get("momentum_buffer") is None:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
