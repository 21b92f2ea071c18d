"""The arguments that the convolution over a sequence and its single step have in common."""

import torch
from torch import Tensor

from seqlab.ops.contract import check_dtypes, check_shapes

INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


def check_arguments(x_axes: tuple[str, ...], tensors: dict[str, Tensor | None], activation: str | None) -> None:
    """Hold x, weight, bias and the state, the last of ``tensors``, to their shapes; raise ValueError otherwise."""
    state = list(tensors)[-1]
    sizes: dict[str, int] = {}
    check_shapes({"x": x_axes, "weight": ("d_inner", "d_conv"), "bias": ("d_inner",)}, tensors, sizes)
    sizes["d_conv - 1"] = sizes["d_conv"] - 1
    check_shapes({state: ("batch", "d_conv - 1", "d_inner")}, tensors, sizes)
    check_dtypes(tensors)
    if activation not in (None, "silu"):
        raise ValueError(f"activation is {activation!r}, expected None or 'silu'")


def check_seq_idx(seq_idx: Tensor | None, x: Tensor) -> None:
    """Hold seq_idx to an integer for each position of x, on its device; raise ValueError otherwise."""
    if seq_idx is None:
        return
    sizes = {"batch": x.shape[0], "length": x.shape[1]}
    check_shapes({"seq_idx": ("batch", "length")}, {"seq_idx": seq_idx}, sizes)
    if seq_idx.dtype not in INTEGERS:
        raise ValueError(f"seq_idx is {seq_idx.dtype}, expected one of {', '.join(map(str, INTEGERS))}")
    if seq_idx.device != x.device:
        raise ValueError(f"seq_idx is on {seq_idx.device}, expected {x.device} like x")
