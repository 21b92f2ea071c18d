"""Whether somebody looks on as modules are called.

Kernels that compute what several modules do call none of them, and so pass by everyone who has registered a hook.
"""

from torch import nn


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has a hook for its calls or their gradients."""
    forward = module._forward_hooks or module._forward_pre_hooks
    return bool(forward or module._backward_hooks or module._backward_pre_hooks)
