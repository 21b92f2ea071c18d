"""Whether somebody looks on as modules are called.

Kernels that compute what several modules do call none of them, and so pass by everyone who has registered a hook.
"""

from torch import nn


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has a hook for its calls or their gradients, other than those of FSDP2.

    These gather the module's weights, and whoever needs them calls the module.
    """
    forward = *module._forward_hooks.values(), *module._forward_pre_hooks.values()
    looks_on = any(not getattr(hook, "__module__", "").startswith("torch.distributed.fsdp") for hook in forward)
    return bool(looks_on or module._backward_hooks or module._backward_pre_hooks)
