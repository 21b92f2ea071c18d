"""The selective scan of Mamba (Gu and Dao 2023, arXiv:2312.00752, Algorithm 2), channels last.

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t        state, one row of N numbers for each channel
    y_t = C_t h_t + D u_t                                 output
    y_t = y_t silu(z_t)                                   gate, where z is given

``selective_scan`` computes a whole sequence, ``selective_state_update`` one position of it for generation.
"""

import torch
from torch import Tensor

from seqlab.ops import backends
from seqlab.ops.context import ContextGroup, check_alone
from seqlab.ops.contract import check_dtypes, check_given, check_seq_idx, check_shapes, check_state, checked
from seqlab.ops.selective_scan.flops import selective_scan_flops
from seqlab.ops.selective_scan.interface import Inputs
from seqlab.ops.selective_scan.operator import FUSED, fused_scan
from seqlab.ops.selective_scan.sliced import SlicedScan
from seqlab.ops.selective_scan.step import selective_state_update

__all__ = ["BACKENDS", "resolve_backend", "selective_scan", "selective_scan_flops", "selective_state_update"]

BACKENDS = ("cpu", "triton", "parallel", "reference")
"""Fastest first; each is the file of that name in this folder."""

SHAPES = {
    "u": ("batch", "length", "d_inner"),
    "delta": ("batch", "length", "d_inner"),
    "A": ("d_inner", "d_state"),
    "B": ("batch", "length", "d_state"),
    "C": ("batch", "length", "d_state"),
    "D": ("d_inner",),
    "z": ("batch", "length", "d_inner"),
    "delta_bias": ("d_inner",),
    "initial_state": ("batch", "d_inner", "d_state"),
}


def resolve_backend(backend: str, device: torch.device | str, dtype: torch.dtype) -> str:
    """The backend that ``selective_scan(..., backend=backend)`` uses for u on ``device`` in ``dtype``.

    A pure function: call it to record what "auto" chose. Raises ValueError as ``selective_scan`` does.
    """
    return backends.resolve(__name__, BACKENDS, backend, device, dtype)


def _check(tensors: dict[str, Tensor | None], backend: str) -> str:
    """The backend that runs.

    Raises:
        ValueError: an argument does not fit, or the backend does not exist or cannot run.
    """
    check_given(tensors, "u", "delta", "A", "B", "C")
    u = tensors["u"]
    scanned = {name: tensors[name] for name in SHAPES}
    check_shapes(SHAPES, scanned, {})
    check_dtypes(scanned)
    check_state("initial_state", tensors["initial_state"], u.dtype)
    check_seq_idx(tensors["seq_idx"], "u", u)
    return resolve_backend(backend, u.device, u.dtype)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    seq_idx: Tensor | None = None,
    context: ContextGroup | None = None,
    deterministic: bool | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the selective scan over a sequence.

    It is differentiable in every tensor but ``seq_idx``: once, or with "reference" any number of times and through
    ``torch.func``. The discretisation is that of the paper's code: exp(delta A) for the state (equation 4) and the
    simplified delta B for the input. Arithmetic is in float32, or in float64 if the arguments are float64, also under
    autocast. float32, bfloat16 and float16 arguments may be mixed.

    Args:
        u: (batch, length, d_inner) the input, at least one position long.
        delta: (batch, length, d_inner) step sizes, before ``delta_bias`` and softplus.
        A: (d_inner, d_state) the diagonal of the state matrix of each channel, negative in a stable model.
        B: (batch, length, d_state) the input map: delta B u enters the state.
        C: (batch, length, d_state) the output map: y is C h.
        D: (d_inner,) the skip: D u is added to y, before the gate.
        z: (batch, length, d_inner) the gate: y is multiplied by silu(z).
        delta_bias: (d_inner,) added to delta.
        delta_softplus: whether the step sizes are softplus(delta + delta_bias).
        initial_state: (batch, d_inner, d_state) the state before the first position, float32 (float64 if u is);
            zeros if None.
        return_final_state: whether to return the state after the last position too.
        seq_idx: (batch, length) integers for sequences packed one after another: a new one begins where the number
            differs from that of the position before, with a state of zeros. ``initial_state`` belongs to the sequence
            of position 0, the final state to the last one. Negative numbers are no exception: padding is a sequence
            of its own, whose output is 0 where its input is, as after ``causal_conv1d``. Infinity and NaN do not leave
            their sequence with any backend, forward and backward (except into the gradients of A, D and delta_bias,
            which all sequences share).
        context: the processes that share these sequences, of which each has a slice, all equally long; without the
            three before, and with any backend but "reference". The gradients of A, D and delta_bias are those of this
            slice's positions: their sums over the processes are those of whole sequences.
        deterministic: whether gradients must be bitwise reproducible, which may cost time and memory; None for the
            setting of ``torch.use_deterministic_algorithms``.
        backend: "auto" for the fastest that can run, or a name in ``BACKENDS``.

    Returns:
        y (batch, length, d_inner) in u's dtype, or (y, final state) with the state as ``initial_state``.

    Raises:
        ValueError: a shape, dtype or device that does not fit, a backend that does not exist or cannot run, or what
            ``context`` does not go with.
    """
    tensors = {
        "u": u,
        "delta": delta,
        "A": A,
        "B": B,
        "C": C,
        "D": D,
        "z": z,
        "delta_bias": delta_bias,
        "initial_state": initial_state,
        "seq_idx": seq_idx,
    }
    chosen = checked(_check, tensors, backend)
    if deterministic is None:
        deterministic = torch.are_deterministic_algorithms_enabled()
    if context is not None:
        check_alone(chosen, FUSED, initial_state, seq_idx, return_final_state)
        return SlicedScan.apply(u, delta, A, B, C, D, z, delta_bias, delta_softplus, context, deterministic, chosen)
    if chosen in FUSED:
        inputs = Inputs(u, delta, A, B, C, D, z, delta_bias, seq_idx, delta_softplus)
        y, final_state = fused_scan(inputs, initial_state, deterministic, chosen)
    else:
        scan = backends.load(__name__, chosen).scan
        y, final_state = scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, seq_idx)
    return (y, final_state) if return_final_state else y
