"""M²RNN, a nonlinear recurrent network whose state is a matrix (Mishra et al. 2026, arXiv:2603.14360), channels last.

    Z_t = tanh(H_{t-1} W + k_t v_t^T)
    H_t = f_t H_{t-1} + (1 - f_t) Z_t         (K, V) for each head
    y_t = H_t^T q_t

Each state is a nonlinear function of the one before, so that positions follow one another in time. ``m2rnn`` computes a
whole sequence, ``m2rnn_update`` one position of it for generation.
"""

import torch
from torch import Tensor

from seqlab.ops import backends
from seqlab.ops.contract import check_dtypes, check_given, check_seq_idx, check_shapes, check_state, checked
from seqlab.ops.m2rnn.flops import m2rnn_flops
from seqlab.ops.m2rnn.interface import MOST_VALUES, Inputs
from seqlab.ops.m2rnn.operator import FUSED, fused_m2rnn
from seqlab.ops.m2rnn.step import m2rnn_update

__all__ = ["BACKENDS", "m2rnn", "m2rnn_flops", "m2rnn_update", "resolve_backend"]

BACKENDS = ("triton", "spans", "reference")
"""Fastest first; each is the file of that name in this folder."""

SHAPES = {
    "q": ("batch", "length", "d_key"),
    "k": ("batch", "length", "d_key"),
    "v": ("batch", "length", "n_heads", "d_value"),
    "f": ("batch", "length", "n_heads"),
    "W": ("n_heads", "d_value", "d_value"),
    "initial_state": ("batch", "n_heads", "d_key", "d_value"),
}


def resolve_backend(backend: str, device: torch.device | str, dtype: torch.dtype, d_value: int = 1) -> str:
    """The backend that ``m2rnn(..., backend=backend)`` uses for v of this width on ``device``, q in ``dtype``.

    A pure function: call it to record what "auto" chose.

    Raises:
        ValueError: the backend does not exist or cannot run.
    """
    fits = d_value <= MOST_VALUES
    if backend == "triton" and not fits:
        raise ValueError(f'm2rnn backend="triton" takes d_value up to {MOST_VALUES}, not {d_value}')
    order = BACKENDS if backend != "auto" or fits else tuple(name for name in BACKENDS if name != "triton")
    return backends.resolve(__name__, order, backend, device, dtype)


def _check(tensors: dict[str, Tensor | None], backend: str) -> str:
    """The backend that runs.

    Raises:
        ValueError: an argument does not fit, or the backend does not exist or cannot run.
    """
    check_given(tensors, "q", "k", "v", "f", "W")
    q = tensors["q"]
    given = {name: tensors[name] for name in SHAPES}
    check_shapes(SHAPES, given, {})
    check_dtypes(given)
    check_state("initial_state", tensors["initial_state"], q.dtype)
    check_seq_idx(tensors["seq_idx"], "q", q)
    return resolve_backend(backend, q.device, q.dtype, tensors["v"].shape[3])


def m2rnn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    f: Tensor,
    W: Tensor,
    *,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    seq_idx: Tensor | None = None,
    gradient_clip: float | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the recurrence over a sequence; differentiable, once but for "reference", in every tensor but ``seq_idx``.

    Sums are in float32, or in float64 if the arguments are float64, also under autocast. Where q is bfloat16 "triton"
    rounds the factors of matrix products to it, and tanh to 11 bits, otherwise the factors to 21 of a float32's 24
    bits; it takes d_value up to 128. float32, bfloat16 and float16 arguments may be mixed. Every backend is bitwise
    reproducible.

    Args:
        q: (batch, length, d_key) what reads the state, the same for all heads; at least one position long.
        k: (batch, length, d_key) where it is written, the same for all heads.
        v: (batch, length, n_heads, d_value) what is written.
        f: (batch, length, n_heads) the share of the state that is kept, from 0 to 1.
        W: (n_heads, d_value, d_value) how a state enters the next one.
        initial_state: (batch, n_heads, d_key, d_value) the state before the first position, float32 (float64 if q
            is); zeros if None.
        return_final_state: whether to return the state after the last position too.
        seq_idx: (batch, length) integers for sequences packed one after another: a new one begins where the number
            differs from that of the position before, with a state of zeros. ``initial_state`` belongs to the sequence
            of position 0, the final state to the last one. Negative numbers are no exception.
        gradient_clip: the largest magnitude of each number in the gradient by the state after a position, in the
            backward pass; any if None.
        backend: "auto" for the fastest that can run, or a name in ``BACKENDS``.

    Returns:
        y (batch, length, n_heads, d_value) in q's dtype, or (y, final state) with the state as ``initial_state``.

    Raises:
        ValueError: a shape, dtype or device that does not fit, or a backend that does not exist or cannot run.
    """
    inputs = Inputs(q, k, v, f, W, seq_idx)
    chosen = checked(_check, {**inputs._asdict(), "initial_state": initial_state}, backend)
    if chosen in FUSED:
        y, final_state = fused_m2rnn(inputs, initial_state, gradient_clip, chosen)
    else:
        with torch.autocast(q.device.type, enabled=False):
            y, final_state = backends.load(__name__, chosen).forward(inputs, initial_state, gradient_clip)
    return (y, final_state) if return_final_state else y
