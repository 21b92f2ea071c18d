"""A start without what it does not need.

torchmetrics imports matplotlib and transformers where they are installed, 1.5 s of the 3.2 s that all imports take
together at every start, for plots and for metrics of texts and pictures that no data set here could use. torch imports
its compiler, 2 s of processor time, to keep it away from its optimizers and from tensors without memory.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

try:
    from lightning_utilities.core.imports import RequirementCache
except ImportError:  # torchmetrics' own affair; it then starts as slowly as it does by itself
    RequirementCache = None

COMPILER = "torch._dynamo"


@contextmanager
def as_if_not_installed(*packages: str) -> Iterator[None]:
    """torchmetrics, first imported in here, takes ``packages`` for not installed, and says so if asked for them."""
    if RequirementCache is None:
        yield
        return
    is_met = RequirementCache.__bool__

    def is_met_without(self: RequirementCache) -> bool:
        if (self.requirement or "").startswith(packages):
            self.available, self.message = False, f"{self.requirement} is not imported, to start sooner"
        return is_met(self)

    RequirementCache.__bool__ = is_met_without
    try:
        yield
    finally:
        RequirementCache.__bool__ = is_met


@contextmanager
def compiler_if_needed() -> Iterator[None]:
    """torch's compiler is not imported in here before something is to be compiled, or asks for a part of it."""
    if COMPILER in sys.modules:
        yield
        return
    stand_in = StandIn()
    try:
        yield
    finally:
        stand_in.withdraw()


class StandIn(ModuleType):
    """``torch._dynamo`` while nothing is asked of it but to stay away; whatever else is asked imports the real one.

    What torch keeps out of the compiler, it keeps as this module gave it. That is forgotten when it is withdrawn, so
    that the compiler finds everything as if it had been imported at first.
    """

    __path__: list[str] = []  # of a package, whose parts are looked for

    def __init__(self) -> None:
        super().__init__(COMPILER)
        self.kept_out: list[Callable] = []
        self.parts = Parts(self.withdraw)
        sys.modules[COMPILER] = self
        sys.meta_path.insert(0, self.parts)

    def withdraw(self) -> None:
        if sys.modules.get(COMPILER) is self:
            del sys.modules[COMPILER]
            sys.meta_path.remove(self.parts)
        while self.kept_out:
            with suppress(AttributeError):
                delattr(self.kept_out.pop(), "__dynamo_disable")

    def disable(self, fn: Callable | None = None, recursive: bool = True, **more: Any) -> Callable:
        """``fn`` itself, where torch's own ``_disable_dynamo`` asks: there is nothing to keep it out of."""
        if more != {"wrapping": False} or sys.modules.get(COMPILER) is not self:
            return self.__getattr__("disable")(fn, recursive, **more)
        self.kept_out.append(fn)
        return fn

    def graph_break(self, msg: str = "") -> None:
        """Between two graphs of the compiler's: there are none."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what is asked of any module
            raise AttributeError(name)
        self.withdraw()
        return getattr(import_module(COMPILER), name)


class Parts:
    """Finds parts of the compiler. Whoever imports one needs the real one, with which it is loaded when it is found."""

    def __init__(self, withdraw: Callable[[], None]):
        self.withdraw = withdraw

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith(f"{COMPILER}."):
            return None
        self.withdraw()
        self.module = import_module(name)
        self.spec = self.module.__spec__
        return ModuleSpec(name, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec
