"""Counting on the ``meta`` device without torch's compiler.

There torch computes shapes in Python functions. Each asks the compiler at its first call to leave it alone, and imports
it for that: a fifth of the start of a run in which nothing is compiled.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import nn

NAME = "torch._dynamo"

KNOWN = ("seqlab", "torch")
"""Packages whose parts import nothing from within the compiler when they are called."""


@contextmanager
def without_compiler(*parts: nn.Module) -> Iterator[None]:
    """Agree to that in place of the compiler, unless it is imported already; anything else that is asked imports it.

    The functions ask again when they are called after this.

    Args:
        parts: of the model that will be called. Where one is somebody else's, the compiler is left to be imported:
            ``torch.compile`` in it, for one, imports modules of the compiler by name, and only the compiler has these.
    """
    if NAME in sys.modules or not all(type(part).__module__.partition(".")[0] in KNOWN for part in parts):
        yield
        return
    alone: list[Callable[..., Any]] = []
    compiler = ModuleType(NAME)

    def disable(function: Callable[..., Any], *_: Any, **__: Any) -> Callable[..., Any]:
        alone.append(function)
        return function

    def imported(name: str) -> Any:
        if name.startswith("__"):  # Python's own questions about a module
            raise AttributeError(name)
        withdraw()
        return getattr(import_module(NAME), name)

    def withdraw() -> None:
        if sys.modules.get(NAME) is compiler:
            del sys.modules[NAME], torch._dynamo
        while alone:
            vars(alone.pop()).pop("__dynamo_disable", None)  # where torch keeps the answer

    vars(compiler).update(disable=disable, __getattr__=imported)
    sys.modules[NAME] = torch._dynamo = compiler
    try:
        yield
    finally:
        withdraw()
