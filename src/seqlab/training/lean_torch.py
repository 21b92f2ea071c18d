"""torch without its compiler, which a third of a start goes into, until something needs it.

torch imports the compiler to keep it away from its optimizers and from tensors without memory, on which FLOPs are
counted, and with it symbolic shapes, to look at shapes that are plain numbers. As long as none of them has been
imported there is nothing to keep away from and no shape is symbolic, so a stand-in can answer.
"""

import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import reduce
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"


@contextmanager
def compiler_if_needed() -> Iterator[None]:
    """torch's compiler is not imported in here before something is to be compiled, or asks for a part of it."""
    if COMPILER in sys.modules:
        yield
        return
    stand_ins = StandIns()
    try:
        yield
    finally:
        stand_ins.withdraw()


class StandIn(ModuleType):
    """A module that gives the answers that it has, and for anything else the real module's."""

    def __init__(self, name: str, answers: dict[str, Any], withdraw: Callable[[], None]):
        super().__init__(name)
        vars(self).update(answers)
        self.__path__ = []  # a package's, whose parts are looked for
        self.__withdraw__ = withdraw

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__all__", "__version__"):  # what is asked of every module there is
            raise AttributeError(name)
        self.__withdraw__()
        return getattr(import_module(self.__name__), name)


class StandIns:
    """Stand in for the compiler and for what looks at symbolic shapes, all of them or none.

    What torch keeps out of the compiler, it keeps as it was given here. That is forgotten in the end, so that the
    compiler finds everything as if it had been imported at first.
    """

    def __init__(self) -> None:
        self.kept_out: list[Callable] = []
        compiler = {COMPILER: {"disable": self.disable, "graph_break": lambda msg="": None}}
        answers = {name: given for name, given in (compiler | OF_PLAIN_NUMBERS).items() if name not in sys.modules}
        self.modules = {name: StandIn(name, given, self.withdraw) for name, given in answers.items()}
        for name, module in self.modules.items():
            parent, _, child = name.rpartition(".")
            sys.modules[name] = module
            if parent:
                setattr(import_module(parent), child, module)
        sys.meta_path.insert(0, self)

    def withdraw(self) -> None:
        """Leave the place to the real modules."""
        for name, module in self.modules.items():
            if sys.modules.get(name) is module:
                parent, _, child = name.rpartition(".")
                del sys.modules[name]
                if parent:
                    delattr(sys.modules[parent], child)
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        while self.kept_out:
            with suppress(AttributeError):
                delattr(self.kept_out.pop(), "__dynamo_disable")

    def disable(self, fn: Callable | None = None, recursive: bool = True, **more: Any) -> Callable:
        """``fn`` itself where torch's own ``_disable_dynamo`` asks, which alone says this."""
        if more != {"wrapping": False} or self not in sys.meta_path:
            self.withdraw()
            return import_module(COMPILER).disable(fn, recursive, **more)
        self.kept_out.append(fn)
        return fn

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Whoever imports a part of a module needs the real one, and finds the part loaded."""
        if not name.startswith(tuple(f"{module}." for module in self.modules)):
            return None
        self.withdraw()
        self.part = import_module(name)
        self.spec, self.part.__spec__ = self.part.__spec__, None  # by which the import would load it once more
        return ModuleSpec(name, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.part

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec


def same(value: bool | int, skip: int = 0) -> bool | int:
    """A plain number, or a condition on such, is what it is."""
    return value


def equal(one: int | Sequence[int], other: int | Sequence[int]) -> bool:
    """Whether two sizes are equal, or two shapes, whichever sequences hold them."""
    return (one if isinstance(one, int) else tuple(one)) == (other if isinstance(other, int) else tuple(other))


OF_PLAIN_NUMBERS: dict[str, dict[str, Any]] = {
    "torch.fx.experimental.symbolic_shapes": {
        **dict.fromkeys(("expect_true", "guard_or_false", "guard_or_true", "guard_size_oblivious"), same),
        **dict.fromkeys(("guarding_hint_or_throw", "statically_known_true"), same),
        "has_guarding_hint": lambda size: True,
        "is_nested_int": lambda size: False,
        "free_unbacked_symbols": lambda sizes: set(),
        "sym_and": lambda *conditions: reduce(operator.and_, conditions),
        "sym_or": lambda *conditions: reduce(operator.or_, conditions),
        "sym_eq": equal,
    },
    "sympy": {"Basic": type("Basic", (), {"__doc__": "An expression: nothing is one."})},
}
"""What torch asks about shapes while it counts FLOPs, by module, with the answers that these have for plain numbers."""
