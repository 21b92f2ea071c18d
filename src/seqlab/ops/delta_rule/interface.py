"""The interface between the public function and its backends.

A backend is a file with

    why_unavailable(device, dtype) -> str | None
    forward(inputs, initial_state) -> (y, final state)
    backward(inputs, initial_state, dy, d_final_state) -> Gradients      where it is in ``operator.FUSED``

The backward pass gets the arguments alone, and recomputes the states that it needs.
"""

from typing import NamedTuple

from torch import Tensor

from seqlab.ops.contract import check_given, check_shapes

MOST_KEYS = 256
"""Widest keys of "triton", in which a program that walks over the chunks holds whole columns of the state."""


class Inputs(NamedTuple):
    """The arguments of one call: Bt batch, L length, H heads, K and V width of a head's keys and values."""

    q: Tensor  # (Bt, L, H, K)
    k: Tensor  # (Bt, L, H, K)
    v: Tensor  # (Bt, L, H, V)
    beta: Tensor | None  # (Bt, L, H), or (Bt, L, H, K) for each key channel
    g: Tensor | None  # (Bt, L, H), or (Bt, L, H, K) for each key channel
    w: Tensor | None  # (Bt, L, H, V)
    seq_idx: Tensor | None  # (Bt, L), integers; the last, after all that have gradients


class Gradients(NamedTuple):
    """The gradient of each tensor, in its shape and dtype; None for an argument that was not given."""

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor | None
    g: Tensor | None
    w: Tensor | None
    initial_state: Tensor  # also if none was given, which means zeros


def check_rule(shapes: dict[str, tuple[str, ...]], tensors: dict[str, Tensor | None]) -> None:
    """Check ``tensors`` against ``shapes``, in which beta and g may have the key's channels.

    Raises:
        ValueError: one has another shape, or beta has channels and w is missing.
    """
    axes = {name: shapes["k"] for name in ("beta", "g") if _has_channels(tensors[name], shapes)}
    if "beta" in axes:
        check_given(tensors, "w")
    check_shapes(shapes | axes, tensors, {})


def _has_channels(tensor: Tensor | None, shapes: dict[str, tuple[str, ...]]) -> bool:
    return tensor is not None and tensor.dim() == len(shapes["k"])


def erased_and_written(k: Tensor, v: Tensor, beta: Tensor | None, w: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """The key that reads what is erased, beta * k (..., K) or None, and what is written, w * v (..., V), in one dtype.

    Args:
        k: (..., K).
        v: (..., V).
        beta: (...) or (..., K).
        w: (..., V).
    """
    if beta is None:
        return None, v if w is None else w * v
    share = beta if beta.dim() == k.dim() else beta[..., None]
    return share * k, (share if w is None else w) * v
