"""seqlab: compare sequence architectures on the same data with the same budget.

    run = seqlab.train(model="mamba", data="tiny_shakespeare")     # as the command line trains
    run = seqlab.load("outputs/<run folder>")                      # one that has been trained
    seqlab.compare("outputs")                                      # tables and pictures of many

Each name is imported when it is first used, so that ``import seqlab`` takes milliseconds and no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seqlab.api.comparison import Comparison, compare
    from seqlab.api.run import Run, load
    from seqlab.api.train import train
    from seqlab.errors import UserError

__version__: str
__all__ = ["Comparison", "Run", "UserError", "__version__", "compare", "load", "train"]

HOMES = {
    "Comparison": "seqlab.api.comparison",
    "Run": "seqlab.api.run",
    "UserError": "seqlab.errors",
    "compare": "seqlab.api.comparison",
    "load": "seqlab.api.run",
    "train": "seqlab.api.train",
}
"""The module of each name."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = _version()
    elif name in HOMES:
        value = getattr(import_module(HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # takes longer than all else here

    try:
        return version("seqlab")
    except PackageNotFoundError:  # imported from a source tree that was never installed
        return "0+source"
