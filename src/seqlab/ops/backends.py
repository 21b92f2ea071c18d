"""Choosing among the implementations of one operation.

A backend is a module inside the operation's package; its file name is its name. It holds the operation itself and
``why_unavailable(device, dtype) -> str | None``: the reason it cannot run there, or None. It can be imported on every
machine.
"""

import sys
from importlib import import_module
from types import ModuleType

import torch


def load(package: str, name: str) -> ModuleType:
    """The backend ``name`` of the operation in ``package``.

    Loaded modules are looked up first, which torch.compile can trace, unlike an import.
    """
    return sys.modules.get(f"{package}.{name}") or import_module(f"{package}.{name}")


def resolve(package: str, order: tuple[str, ...], backend: str, device: torch.device | str, dtype: torch.dtype) -> str:
    """The name of the backend that runs: ``backend`` itself, or for "auto" the first of ``order`` that can.

    "auto" skips "triton" without a GPU, where only Triton's interpreter could run it, which is for tests.

    Raises:
        ValueError: there is no backend of that name, or it cannot run on this device with this dtype. A backend
            asked for by name is never replaced by another.
    """
    operation = package.rpartition(".")[2]
    if backend != "auto" and backend not in order:
        choices = ", ".join(("auto", *order))
        raise ValueError(f"{operation} has no backend {backend!r}; choose one of {choices}")
    device = torch.device(device)
    reasons = {}
    if backend != "auto":
        order = (backend,)
    elif device.type != "cuda":
        order = tuple(name for name in order if name != "triton")
    for name in order:
        reasons[name] = load(package, name).why_unavailable(device, dtype)
        if reasons[name] is None:
            return name
    why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise ValueError(f"{operation} backend={backend!r} cannot run on {device} with {dtype} ({why})")


# What torch.compiler.assume_constant_result sets; calling it imports the whole compiler, a second of every start.
resolve._dynamo_marked_constant = True
