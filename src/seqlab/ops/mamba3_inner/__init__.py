"""A Mamba-3 block with one input and output a head, all that comes after its first projection, as one operation.

    z, x, B, C, dd_dt, dd_A, trap, angle = projected            parts of what the first projection gives
    k, q = R(theta) (norm(B) + bias), R(theta) (norm(C) + bias)
    y = scan(x, delta, A, lam, k, q, D)
    out = W_out (y silu(z))

with delta, A, lam and theta as in ``models/mixers/mamba3.py`` (arXiv:2603.15569), where the parts are called one after
the other if this cannot run. Then each of them keeps what it gives for the backward pass, such as k and q of every head
in float32. Here kernels make k and q in the dtype that enters matrix products, and keep them and the states between
chunks beside the projection; with ``recompute`` they make them once for each direction, and keep the projection alone.

Symbols: Bt batch, L length, M model width, E inner width, H heads, G groups, N state size, S pairs of channels turned.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from seqlab.ops.contract import check_dtypes, check_given, check_shapes, checked
from seqlab.ops.derivatives import other_derivatives
from seqlab.ops.mamba3_inner.interface import MOST_CHANNELS, MOST_STATES, Settings
from seqlab.ops.mamba3_inner.operator import Mamba3Inner
from seqlab.ops.ssd import resolve_backend as scan_backend

__all__ = ["BACKENDS", "Block", "Settings", "can_run", "mamba3_inner"]

BACKENDS = ()
"""None to choose from: it runs where kernels do that its parts can be replaced by."""

SHAPES = {
    "dt_bias": ("n_heads",),
    "norm_weight": ("2", "d_state"),
    "map_bias": ("2", "n_heads", "d_state"),
    "D": ("n_heads",),
    "out_weight": ("d_model", "d_inner"),
    "projected": ("batch", "length", "2 d_inner + 2 n_groups d_state + 3 n_heads + n_pairs"),
}


class Block(NamedTuple):
    """The parameters of a Mamba-3 block after its first projection."""

    dt_bias: Tensor  # (H,)
    norm_weight: Tensor  # (2, N), of B and of C
    map_bias: Tensor  # (2, H, N), of B and of C
    D: Tensor  # (H,)
    out_weight: Tensor  # (M, E)


def can_run(projected: Tensor, block: Block, settings: Settings, backend: str = "auto") -> bool:
    """Whether ``mamba3_inner`` is to take these; where not, the parts are called one after the other.

    It is for a GPU, with or without a backward pass: in eager mode, with products in the dtype of ``projected``, under
    autocast or without, and for heads of up to 128 channels and 256 states.

    Args:
        projected: (Bt, L, 2 E + 2 G N + 3 H + S).
        block: the parameters.
        settings: G, S, what is added to the norms' mean square, ``act`` and ``recompute`` as in the mixer.
        backend: the scan's, as ``ssd`` takes it.

    Raises:
        ValueError: a shape, dtype or device does not fit, or the scan's backend does not exist or cannot run.
    """
    if torch.compiler.is_compiling() or not projected.is_cuda or other_derivatives():
        return False
    products = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else block.out_weight.dtype
    if projected.dtype != products:
        return False
    return checked(_check, {"projected": projected, **block._asdict()}, settings, backend) == "triton"


def _check(tensors: dict[str, Tensor | None], settings: Settings, backend: str) -> str:
    """The backend of the scan; of one that is too large for the kernels here, not "triton".

    Raises:
        ValueError: the arguments of ``can_run`` do not fit.
    """
    check_given(tensors, *tensors)
    sizes = {"2": 2}
    (joined,) = SHAPES["projected"][2:]
    check_shapes({name: axes for name, axes in SHAPES.items() if name != "projected"}, tensors, sizes)
    n_heads, d_inner, d_state = sizes["n_heads"], sizes["d_inner"], sizes["d_state"]
    sizes[joined] = 2 * d_inner + 2 * settings.n_groups * d_state + 3 * n_heads + settings.n_pairs
    check_shapes({"projected": SHAPES["projected"]}, tensors, sizes)
    check_dtypes(tensors)
    if settings.n_groups < 1 or n_heads % settings.n_groups or d_inner % n_heads:
        raise ValueError(f"{n_heads} heads in n_groups={settings.n_groups} do not divide {d_inner} channels")
    if not 1 <= settings.n_pairs <= d_state // 2:
        raise ValueError(f"n_pairs is {settings.n_pairs}, expected 1 to {d_state // 2}, pairs of {d_state} channels")
    chosen = scan_backend(backend, tensors["projected"].device, tensors["projected"].dtype)
    if d_inner // n_heads > MOST_CHANNELS or d_state > MOST_STATES:
        return "too large"
    return chosen


def mamba3_inner(projected: Tensor, block: Block, settings: Settings) -> Tensor:
    """The block's output (Bt, L, M) in the dtype of ``projected``, for arguments that ``can_run``.

    It is differentiable once, and bitwise reproducible. The angle of each step is rounded to 2^-32 turns and added
    exactly. Other sums are in float32, and the factors of matrix products rounded as ``ssd`` rounds them.

    Args:
        projected: (Bt, L, 2 E + 2 G N + 3 H + S) gates, inputs, B and C, dd_dt with dd_A and trap, angles; float32,
            bfloat16 or float16.
        block: the parameters, each in a dtype of its own.
        settings: as ``can_run`` takes them.
    """
    projected = projected if projected.stride(2) == 1 else projected.contiguous()
    block = block._replace(out_weight=block.out_weight.to(projected.dtype))
    return Mamba3Inner.apply(projected, *block, settings, "triton")
