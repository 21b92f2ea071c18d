"""The delta rule: a memory that corrects what it recalls, heads and channels last.

    S   <- Diag(e^g_t) S_{t-1}                                decay: none, one for a head, or one for each key channel
    S_t = S + k_t (w_t * v_t - (beta_t * k_t)^T S)^T          correction of what k_t recalls, (K, V) for each head
    y_t = S_t^T q_t                                           output

beta, which erases, and w, which writes, are one number for a head, the same for both; then without g it is DeltaNet
(Yang et al. 2024, arXiv:2406.06484, section 2.2), with one decay a head Gated DeltaNet (arXiv:2412.06464, equation 10),
with one for each key channel Kimi delta attention (arXiv:2510.26692, equation 1). With a beta for each key channel and
a w for each value channel it is Gated DeltaNet-2 (arXiv:2605.22791). Without beta nothing is erased: linear attention
with decays. ``delta_rule`` computes a whole sequence, ``delta_rule_update`` one position of it for generation.
"""

import torch
from torch import Tensor

from seqlab.ops import backends
from seqlab.ops.contract import check_dtypes, check_given, check_seq_idx, check_state, checked
from seqlab.ops.delta_rule.flops import delta_rule_flops
from seqlab.ops.delta_rule.interface import MOST_KEYS, Inputs, check_rule
from seqlab.ops.delta_rule.operator import DIFFERENTIATED, differentiated_rule
from seqlab.ops.delta_rule.step import delta_rule_update

__all__ = ["BACKENDS", "delta_rule", "delta_rule_flops", "delta_rule_update", "resolve_backend"]

BACKENDS = ("triton", "chunked", "reference")
"""Fastest first; each is the file of that name in this folder."""

SHAPES = {
    "q": ("batch", "length", "n_heads", "d_key"),
    "k": ("batch", "length", "n_heads", "d_key"),
    "v": ("batch", "length", "n_heads", "d_value"),
    "beta": ("batch", "length", "n_heads"),
    "g": ("batch", "length", "n_heads"),
    "w": ("batch", "length", "n_heads", "d_value"),
    "initial_state": ("batch", "n_heads", "d_key", "d_value"),
}


def resolve_backend(backend: str, device: torch.device | str, dtype: torch.dtype, d_key: int = 1) -> str:
    """The backend that ``delta_rule(..., backend=backend)`` uses for q of this width on ``device`` in ``dtype``.

    A pure function: call it to record what "auto" chose.

    Raises:
        ValueError: the backend does not exist or cannot run.
    """
    fits = d_key <= MOST_KEYS
    if backend == "triton" and not fits:
        raise ValueError(f'delta_rule backend="triton" takes d_key up to {MOST_KEYS}, not {d_key}')
    order = BACKENDS if backend != "auto" or fits else tuple(name for name in BACKENDS if name != "triton")
    return backends.resolve(__name__, order, backend, device, dtype)


def _check(tensors: dict[str, Tensor | None], backend: str) -> str:
    """The backend that runs.

    Raises:
        ValueError: an argument does not fit, or the backend does not exist or cannot run.
    """
    check_given(tensors, "q", "k", "v")
    q = tensors["q"]
    ruled = {name: tensors[name] for name in SHAPES}
    check_rule(SHAPES, ruled)
    check_dtypes(ruled)
    check_state("initial_state", tensors["initial_state"], q.dtype)
    check_seq_idx(tensors["seq_idx"], "q", q)
    return resolve_backend(backend, q.device, q.dtype, q.shape[3])


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None = None,
    g: Tensor | None = None,
    w: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    seq_idx: Tensor | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the delta rule over a sequence; differentiable, once but for "reference", in every tensor but ``seq_idx``.

    Sums are in float32, or in float64 if the arguments are float64, also under autocast. "triton" rounds the factors of
    matrix products to bfloat16 where q is, otherwise to 21 of a float32's 24 bits, and takes d_key up to 256. float32,
    bfloat16 and float16 arguments may be mixed. Every backend is bitwise reproducible. The caller normalises and scales
    q and k: the state is bounded where |k| = 1 and beta is from 0 to 2, and may grow without bound otherwise.

    Args:
        q: (batch, length, n_heads, d_key) what is asked of the memory, at least one position long.
        k: (batch, length, n_heads, d_key) where it is corrected.
        v: (batch, length, n_heads, d_value) what it is to recall there.
        beta: (batch, length, n_heads) how far: with |k| = 1 it recalls v itself after 1. Above 1 the transition of the
            state has an eigenvalue 1 - beta below 0 (arXiv:2411.12537). (batch, length, n_heads, d_key) for the share
            of each key channel in what is erased, which needs w. Nothing is erased if None.
        g: (batch, length, n_heads) or (batch, length, n_heads, d_key) logarithm of the decay, at most 0; none if None.
        w: (batch, length, n_heads, d_value) the share of v that is written; beta if None, all of it without beta.
        initial_state: (batch, n_heads, d_key, d_value) the state before the first position, float32 (float64 if q
            is); zeros if None.
        return_final_state: whether to return the state after the last position too.
        seq_idx: (batch, length) integers for sequences packed one after another: a new one begins where the number
            differs from that of the position before, with a state of zeros. ``initial_state`` belongs to the sequence
            of position 0, the final state to the last one. Negative numbers are no exception. But with "reference"
            infinity and NaN may reach the sequences nearby.
        backend: "auto" for the fastest that can run, or a name in ``BACKENDS``.

    Returns:
        y (batch, length, n_heads, d_value) in q's dtype, or (y, final state) with the state as ``initial_state``.

    Raises:
        ValueError: a shape, dtype or device that does not fit, or a backend that does not exist or cannot run.
    """
    inputs = Inputs(q, k, v, beta, g, w, seq_idx)
    chosen = checked(_check, {**inputs._asdict(), "initial_state": initial_state}, backend)
    if chosen in DIFFERENTIATED:
        y, final_state = differentiated_rule(inputs, initial_state, chosen)
    else:
        y, final_state = backends.load(__name__, chosen).forward(inputs, initial_state)
    return (y, final_state) if return_final_state else y
