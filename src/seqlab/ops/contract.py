"""Checks of every operation's tensors: shapes that agree, one device, supported dtypes.

A shape is written as axis names, for instance ``("batch", "length", "d_inner")``. The first tensor that has an axis
fixes its size; the tensors after it have to agree.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from seqlab.ops.recent import Recent

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)

CHECKED = Recent(1024)
"""Answers of ``checked``."""


def checked(check: Callable[..., str], tensors: dict[str, Tensor | None], *settings: Any) -> str:
    """``check(tensors, *settings)``, cached by the shapes, dtypes and devices of the tensors and by the settings.

    Args:
        check: raises ValueError where something does not fit, which is not cached.
        tensors: the arguments of an operation, of any shapes, always in the same order.
        settings: what it takes besides; an unhashable one is not cached either.
    """
    if torch.compiler.is_compiling():
        return check(tensors, *settings)
    key = [check, settings]
    for tensor in tensors.values():
        if tensor is None:
            key.append(None)
        elif type(tensor) is Tensor or type(tensor) is Parameter:
            key += (tensor.shape, tensor.dtype, tensor.device)
        else:  # sizes of a subclass, as a tracer's, may not be hashable
            return check(tensors, *settings)
    key = tuple(key)
    try:
        answer = CHECKED.get(key)
    except TypeError:  # a setting of a wrong type, which the check names
        return check(tensors, *settings)
    if answer is None:
        answer = check(tensors, *settings)
        CHECKED.keep(key, answer)
    return answer


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute in: float64 for float64, float32 for float32, bfloat16 and float16."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_given(tensors: dict[str, Tensor | None], *names: str) -> None:
    """Check that the tensors of these names, of any shapes, are given: a kernel would read from no address at all.

    Raises:
        ValueError: names the first that is None.
    """
    for name in names:
        if tensors[name] is None:
            raise ValueError(f"{name} is None, expected a tensor")


def check_shapes(shapes: dict[str, tuple[str, ...]], tensors: dict[str, Tensor | None], sizes: dict[str, int]) -> None:
    """Check ``tensors`` against ``shapes``, in the order of ``shapes``; None passes.

    Args:
        shapes: the axis names of every argument.
        tensors: the arguments.
        sizes: the sizes of the axes known so far. New axes are added; their size must be at least 1.

    Raises:
        ValueError: names the argument, its shape and the expected shape.
    """
    for name, axes in shapes.items():
        tensor = tensors[name]
        if tensor is None:
            continue
        shape = tuple(tensor.shape)
        if len(shape) != len(axes) or any(
            actual < 1 if axis not in sizes else actual != sizes[axis] for actual, axis in zip(shape, axes, strict=True)
        ):
            expected = ", ".join(str(sizes.get(axis, "at least 1")) for axis in axes)
            raise ValueError(f"{name} has shape {shape}, expected ({', '.join(axes)}) = ({expected})")
        sizes.update(zip(axes, shape, strict=True))


def check_dtypes(tensors: dict[str, Tensor | None]) -> None:
    """Check that all tensors, of any shape, are on one device, and all or none of them float64; None passes.

    The first tensor sets both. float32, bfloat16 and float16 may be mixed, as they are under autocast (parameters in
    float32).

    Raises:
        ValueError: names the argument, what it is and what was expected.
    """
    (first, reference), *_ = tensors.items()
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{name} is {tensor.dtype}, expected one of {', '.join(map(str, DTYPES))}")
        if tensor.device != reference.device:
            raise ValueError(f"{name} is on {tensor.device}, expected {reference.device} like {first}")
        if (tensor.dtype == torch.float64) != (reference.dtype == torch.float64):
            raise ValueError(
                f"{name} is {tensor.dtype} but {first} is {reference.dtype}: "
                "expected torch.float64 for every tensor or for none"
            )


def check_state(name: str, state: Tensor | None, dtype: torch.dtype) -> None:
    """Check that a state of any shape, the argument ``name``, is in the ``accumulation_dtype`` of inputs; None passes.

    Raises:
        ValueError: it is in another.
    """
    if state is not None and state.dtype != accumulation_dtype(dtype):
        raise ValueError(f"{name} is {state.dtype}, expected {accumulation_dtype(dtype)}")


def check_seq_idx(seq_idx: Tensor | None, name: str, sequence: Tensor) -> None:
    """Check that seq_idx (batch, length) holds integers on the device of a sequence; None passes.

    Args:
        seq_idx: the tensor.
        name: the name of the argument ``sequence``.
        sequence: (batch, length, ...).

    Raises:
        ValueError: names what does not fit and what was expected.
    """
    if seq_idx is None:
        return
    sizes = {"batch": sequence.shape[0], "length": sequence.shape[1]}
    check_shapes({"seq_idx": ("batch", "length")}, {"seq_idx": seq_idx}, sizes)
    if seq_idx.dtype not in INTEGERS:
        raise ValueError(f"seq_idx is {seq_idx.dtype}, expected one of {', '.join(map(str, INTEGERS))}")
    if seq_idx.device != sequence.device:
        raise ValueError(f"seq_idx is on {seq_idx.device}, expected {sequence.device} like {name}")
