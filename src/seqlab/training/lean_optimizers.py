"""torch's optimizers without its compiler, whose import takes a second.

torch wraps these methods so that the compiler leaves them alone, and imports it for that at the first call. Nothing
compiles an optimizer here.
"""

from inspect import unwrap

import torch
from torch.optim import Optimizer

METHODS = "add_param_group", "state_dict", "load_state_dict", "zero_grad", "step"


def lean(kind: type[Optimizer]) -> type[Optimizer]:
    """One of torch's optimizers whose methods are the functions within those wrappers."""
    methods = {name: unwrap(getattr(kind, name)) for name in METHODS}
    return type(kind.__name__, (kind,), methods | {"step": torch.no_grad()(methods["step"])})


LEAN = AdamW, Adam, SGD, Muon = tuple(
    map(lean, (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD, torch.optim.Muon))
)


def torch_class(optimizer: Optimizer) -> type[Optimizer]:
    """The class, of one of ``LEAN`` torch's own."""
    kind = type(optimizer)
    return kind.__base__ if kind in LEAN else kind
