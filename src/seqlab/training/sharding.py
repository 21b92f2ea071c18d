"""Weights of which each process holds a part, by torch's ``fully_shard`` (FSDP2), and the way back to whole ones.

torch.distributed is imported where it is needed: a process that trains alone need not wait for it.
"""

import copy
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer


def shard(model: nn.Module, size: int, offload: bool) -> nn.Module:
    """Leave this process of ``size`` its part of each parameter, in place; layers are gathered one at a time.

    With ``offload`` parts and their gradients lie in the CPU's memory, and a layer on the device while it computes.
    The attributes of parameters, by which optimizers group them, stay.

    Returns:
        A copy of the model as it was, on the ``meta`` device.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard, register_fsdp_forward_method

    before = copy.deepcopy(model).to("meta")
    warnings.filterwarnings("ignore", "FSDP2-wrapped module")  # of what is written in place, which nothing here is
    marks = {name: vars(p).copy() for name, p in model.named_parameters()}
    kind = next(model.parameters()).device.type
    mesh = init_device_mesh(kind, (size,))
    policy = CPUOffloadPolicy(pin_memory=kind == "cuda") if offload else OffloadPolicy()
    never_backward = not any(p.requires_grad for p in model.parameters())  # which would let go of what stays gathered
    for layer in getattr(model, "layers", ()):
        fully_shard(layer, mesh=mesh, offload_policy=policy)
        register_fsdp_forward_method(layer, "advance")
    fully_shard(model, mesh=mesh, offload_policy=policy, reshard_after_forward=never_backward or None)
    register_fsdp_forward_method(model, "prefill")
    for name, p in model.named_parameters():
        vars(p).update(marks[name])
    return before


def whole(value: Any) -> Any:
    """A tensor, or all tensors in dictionaries, lists and tuples, put together from their parts.

    All processes that have parts call it together.
    """
    return value.full_tensor() if is_part(value) else _each(value, lambda _, item: whole(item))


def parts_in(value: Any, at: str = "") -> dict[str, Tensor]:
    """The parts of tensors in dictionaries, lists and tuples, by where they are: ``0.state.12.exp_avg``; any shapes."""
    if is_part(value):
        return {at: value}
    return {name: part for key, item in _items(value) for name, part in parts_in(item, _under(at, key)).items()}


def without_parts(value: Any) -> Any:
    """The same with None in the places of parts."""
    return None if is_part(value) else _each(value, lambda _, item: without_parts(item))


def with_parts(value: Any, parts: dict[str, Tensor], at: str = "") -> Any:
    """The inverse: with tensors of any shapes, by where they are, in their places."""
    return (
        parts.get(at, value)
        if value is None
        else _each(value, lambda key, item: with_parts(item, parts, _under(at, key)))
    )


def _under(at: str, key: Any) -> str:
    return f"{at}.{key}" if at else str(key)


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, list | tuple) else ()


def _each(value: Any, change: Callable[[Any, Any], Any]) -> Any:
    """A dictionary, list or tuple with each item changed, given its key; anything else as it is."""
    if isinstance(value, dict):
        return {key: change(key, item) for key, item in value.items()}
    if not isinstance(value, list | tuple):
        return value
    changed = [change(key, item) for key, item in enumerate(value)]
    return type(value)(*changed) if hasattr(value, "_fields") else type(value)(changed)  # of a named tuple


def is_part(value: Any) -> bool:
    """Whether this is a tensor of which the process holds a part (torch's ``DTensor``)."""
    return hasattr(value, "full_tensor")


def own(value: Tensor) -> Tensor:
    """What this process holds of a tensor of any shape, in the same memory, without a gradient if it is a part."""
    return value.detach().to_local() if is_part(value) else value


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor that all of them have, if ``like``, of its shape, is one of parts.

    A part stays as it is.
    """
    if not is_part(like) or is_part(value) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    device = like.to_local().device
    return distribute_tensor(value.to(device), like.device_mesh, like.placements, src_data_rank=None)


def parts_of_state(saved: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer's state with whole tensors or parts, as that of an optimizer whose parameters may be parts."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        number: {name: part_of(value, parameters[number]) for name, value in of_one.items()}
        for number, of_one in saved["state"].items()
    }
    return saved | {"state": state}
