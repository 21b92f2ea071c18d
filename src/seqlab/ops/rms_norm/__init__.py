"""RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467, equation 4), for rows as they are and an output in any dtype.

    y = x / sqrt(mean of x^2 over the row + eps) * weight

It does next to no arithmetic, so it costs what its tensors take to move. "triton" reads a row once forward, and once
backward for both gradients; it writes the output in the dtype that its reader wants, where PyTorch casts a second time.
``add_rms_norm`` adds to a residual stream before, and adds up the stream's two gradients, in the same kernels.
``gated_rms_norm`` multiplies by silu of a gate before, and computes that product again in the backward pass.
"""

import torch
from torch import Tensor

from seqlab.ops import backends
from seqlab.ops.contract import DTYPES, check_dtypes, checked
from seqlab.ops.rms_norm.operator import FUSED, fused_norm

__all__ = ["BACKENDS", "WIDEST", "add_rms_norm", "gated_rms_norm", "resolve_backend", "rms_norm"]

BACKENDS = ("triton", "reference")
"""Fastest first; each is the file of that name in this folder."""

WIDEST = 8192
"""Width up to which "triton" runs: a program holds a whole row in registers."""


def resolve_backend(backend: str, device: torch.device | str, dtype: torch.dtype, width: int) -> str:
    """The backend that ``rms_norm(..., backend=backend)`` uses for rows of ``width`` on ``device`` in ``dtype``.

    A pure function: call it to record what "auto" chose.

    Raises:
        ValueError: no such backend, or one that cannot run there or on rows of that width.
    """
    order = BACKENDS
    if width > WIDEST and backend in ("auto", "triton"):
        if backend == "triton":
            raise ValueError(f"rms_norm backend='triton' takes rows of up to {WIDEST} numbers, not of {width}")
        order = tuple(name for name in BACKENDS if name != "triton")
    return backends.resolve(__name__, order, backend, device, dtype)


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, out_dtype: torch.dtype | None = None, *, backend: str = "auto"
) -> Tensor:
    """Divide each row by its root mean square and multiply it by ``weight``.

    Arithmetic is in float32, or in float64 if x is float64, and the output and each gradient are rounded once. Outputs
    and gradients of "triton" are the same from run to run, bit by bit.

    Args:
        x: (..., D), float32, bfloat16, float16 or float64. Rows may lie apart in memory, as in a slice of a wider
            tensor; a layout that is not one row after another at equal distances is copied.
        weight: (D,), in a dtype of its own; float64 if and only if x is.
        eps: added to the mean square.
        out_dtype: the output's dtype, x's unless given; float64 if and only if x is.
        backend: "auto" for the fastest that can run, or a name in ``BACKENDS``.

    Returns:
        y (..., D) in ``out_dtype``.

    Raises:
        ValueError: a shape, dtype or device that does not fit, or a backend that does not exist or cannot run.
    """
    out_dtype = x.dtype if out_dtype is None else out_dtype
    chosen = checked(_check, {"x": x, "weight": weight}, out_dtype, backend)
    if chosen in FUSED:
        return fused_norm(x, None, None, weight, float(eps), 1, out_dtype, chosen)[1]
    return backends.load(__name__, chosen).norm(x, weight, eps, out_dtype)


def add_rms_norm(
    x: Tensor,
    update: Tensor,
    weight: Tensor,
    eps: float,
    out_dtype: torch.dtype | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """x + update, rounded to x's dtype, and the norm of that; otherwise as ``rms_norm``.

    Args:
        x: (..., D).
        update: (..., D), in a dtype that x's holds: x's own, or a half precision beside float32.
        weight, eps, out_dtype, backend: as for ``rms_norm``.

    Returns:
        The sum (..., D) in x's dtype, and y (..., D) in ``out_dtype``.

    Raises:
        ValueError: as ``rms_norm``.
    """
    out_dtype = x.dtype if out_dtype is None else out_dtype
    chosen = checked(_check, {"x": x, "weight": weight, "update": update}, out_dtype, backend)
    if chosen in FUSED:
        return fused_norm(x, update, None, weight, float(eps), 1, out_dtype, chosen)
    stream = x + update
    return stream, backends.load(__name__, chosen).norm(stream, weight, eps, out_dtype)


def gated_rms_norm(
    x: Tensor, gate: Tensor, weight: Tensor, eps: float, groups: int = 1, *, backend: str = "auto"
) -> Tensor:
    """The norm of x silu(gate), in each of some groups of neighbouring columns; otherwise as ``rms_norm``.

    (Dao and Gu 2024, arXiv:2405.21060, section 7.1.) The product is not rounded.

    Args:
        x: (..., W).
        gate: (..., W), in a dtype of its own; float64 if and only if x is.
        weight: (W,).
        groups: into how many groups a row is cut, each with a root mean square of its own; a divisor of W.
        eps, backend: as for ``rms_norm``; "triton" takes groups of up to ``WIDEST`` numbers.

    Returns:
        y (..., W) in x's dtype.

    Raises:
        ValueError: as ``rms_norm``, or groups is no divisor of W.
    """
    chosen = checked(_check, {"x": x, "weight": weight, "gate": gate}, x.dtype, backend, groups)
    if chosen in FUSED:
        return fused_norm(x, None, gate, weight, float(eps), groups, x.dtype, chosen)[1]
    return backends.load(__name__, chosen).gated_norm(x, gate, weight, eps, groups)


def _check(tensors: dict[str, Tensor], out_dtype: torch.dtype, backend: str, groups: int = 1) -> str:
    """The backend that runs.

    Raises:
        ValueError: the arguments of ``rms_norm``, ``add_rms_norm`` or ``gated_rms_norm`` do not fit each other.
    """
    x, weight = tensors["x"], tensors["weight"]
    check_dtypes(tensors)
    shape = tuple(x.shape)
    if not shape or shape[-1] < 1:
        raise ValueError(f"x has shape {shape}, expected (..., D), D at least 1")
    if weight.shape != shape[-1:]:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, expected {shape[-1:]} for x of {shape}")
    gate = tensors.get("gate", x)
    if gate.shape != shape:
        raise ValueError(f"gate has shape {tuple(gate.shape)}, expected {shape} as x")
    if groups < 1 or shape[-1] % groups != 0:
        raise ValueError(f"groups is {groups}, expected a divisor of x's {shape[-1]} columns")
    update = tensors.get("update", x)
    if update.shape != shape or torch.promote_types(x.dtype, update.dtype) != x.dtype:
        raise ValueError(
            f"update is {update.dtype} of shape {tuple(update.shape)}, "
            f"expected {shape} and a dtype that x's holds, which is {x.dtype}"
        )
    if out_dtype not in DTYPES or (out_dtype == torch.float64) != (x.dtype == torch.float64):
        raise ValueError(
            f"out_dtype is {out_dtype}, expected one of {', '.join(map(str, DTYPES))}, "
            f"and torch.float64 if and only if x is, which is {x.dtype}"
        )
    return resolve_backend(backend, x.device, x.dtype, shape[-1] // groups)
