"""State-space duality, the scan of Mamba-2 (Dao and Gu 2024, arXiv:2405.21060), heads and channels last.

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T        state, a (P, N) matrix for each head, one decay for all of it
    y_t = h_t C_t + D x_t                             output

``ssd`` computes a whole sequence, ``ssd_update`` one position of it for generation.
"""

import torch
from torch import Tensor

from seqlab.ops import backends
from seqlab.ops.context import ContextGroup, check_alone
from seqlab.ops.contract import check_dtypes, check_given, check_seq_idx, check_shapes, check_state, checked
from seqlab.ops.ssd.flops import ssd_flops
from seqlab.ops.ssd.interface import Inputs, check_groups
from seqlab.ops.ssd.operator import FUSED, fused_ssd
from seqlab.ops.ssd.sliced import SlicedSSD
from seqlab.ops.ssd.step import ssd_update

__all__ = ["BACKENDS", "resolve_backend", "ssd", "ssd_flops", "ssd_update"]

BACKENDS = ("triton", "parallel", "reference")
"""Fastest first; each is the file of that name in this folder."""

SHAPES = {
    "x": ("batch", "length", "n_heads", "d_head"),
    "dt": ("batch", "length", "n_heads"),
    "A": ("n_heads",),
    "B": ("batch", "length", "n_groups", "d_state"),
    "C": ("batch", "length", "n_groups", "d_state"),
    "D": ("n_heads",),
    "dt_bias": ("n_heads",),
    "initial_state": ("batch", "n_heads", "d_head", "d_state"),
}


def resolve_backend(backend: str, device: torch.device | str, dtype: torch.dtype) -> str:
    """The backend that ``ssd(..., backend=backend)`` uses for x on ``device`` in ``dtype``.

    A pure function: call it to record what "auto" chose. Raises ValueError as ``ssd`` does.
    """
    return backends.resolve(__name__, BACKENDS, backend, device, dtype)


def _check(tensors: dict[str, Tensor | None], backend: str) -> str:
    """The backend that runs.

    Raises:
        ValueError: an argument does not fit, or the backend does not exist or cannot run.
    """
    check_given(tensors, "x", "dt", "A", "B", "C")
    x = tensors["x"]
    scanned = {name: tensors[name] for name in SHAPES}
    sizes = {}
    check_shapes(SHAPES, scanned, sizes)
    check_groups(sizes)
    check_dtypes(scanned)
    check_state("initial_state", tensors["initial_state"], x.dtype)
    check_seq_idx(tensors["seq_idx"], "x", x)
    return resolve_backend(backend, x.device, x.dtype)


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    *,
    dt_softplus: bool = False,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    seq_idx: Tensor | None = None,
    context: ContextGroup | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the scan over a sequence; differentiable, once, in every tensor but ``seq_idx``.

    Sums are in float32, or in float64 if the arguments are float64, also under autocast. "triton" rounds the factors of
    matrix products to about the precision of a bfloat16 or float16 x, and for a float32 x to 21 of its 24 bits: sums of
    terms of both signs, such as the gradient of A, are off by about 5e-7 of their usual size where these cancel.
    float32, bfloat16 and float16 arguments may be mixed. Every backend is bitwise reproducible.

    Args:
        x: (batch, length, n_heads, d_head) the input, at least one position long.
        dt: (batch, length, n_heads) step sizes, before ``dt_bias`` and softplus.
        A: (n_heads,) the decay of each head, negative in a stable model.
        B: (batch, length, n_groups, d_state) the input map: dt x B^T enters the state; n_groups divides n_heads, and
            neighbouring heads share a group.
        C: (batch, length, n_groups, d_state) the output map: y is h C.
        D: (n_heads,) the skip: D x is added to y.
        dt_bias: (n_heads,) added to dt.
        dt_softplus: whether the step sizes are softplus(dt + dt_bias).
        initial_state: (batch, n_heads, d_head, d_state) the state before the first position, float32 (float64 if x
            is); zeros if None.
        return_final_state: whether to return the state after the last position too.
        seq_idx: (batch, length) integers for sequences packed one after another: a new one begins where the number
            differs from that of the position before, with a state of zeros. ``initial_state`` belongs to the sequence
            of position 0, the final state to the last one. Negative numbers are no exception: padding is a sequence
            of its own, whose output is 0 where its input is, as after ``causal_conv1d``. Infinity and NaN do not leave
            their sequence.
        context: the processes that share these sequences, of which each has a slice, all equally long; without the
            three before, and with any backend but "reference". The gradients of A, D and dt_bias are those of this
            slice's positions: their sums over the processes are those of whole sequences.
        backend: "auto" for the fastest that can run, or a name in ``BACKENDS``.

    Returns:
        y (batch, length, n_heads, d_head) in x's dtype, or (y, final state) with the state as ``initial_state``.

    Raises:
        ValueError: a shape, dtype or device that does not fit, a backend that does not exist or cannot run, or what
            ``context`` does not go with.
    """
    inputs = Inputs(x, dt, A, B, C, D, dt_bias, seq_idx, dt_softplus)
    chosen = checked(_check, {**inputs._asdict(), "initial_state": initial_state, "dt_softplus": None}, backend)
    if context is not None:
        check_alone(chosen, FUSED, initial_state, seq_idx, return_final_state)
        return SlicedSSD.apply(x, dt, A, B, C, D, dt_bias, dt_softplus, context, chosen)
    if chosen in FUSED:
        y, final_state = fused_ssd(inputs, initial_state, chosen)
    else:
        y, final_state = backends.load(__name__, chosen).forward(inputs, initial_state)
    return (y, final_state) if return_final_state else y
