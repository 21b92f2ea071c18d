"""A Mamba-2 block in training on a GPU, all that comes after its first projection, as one operation.

    z, xBC, dt = zxBCdt                             parts of what the first projection gives
    x, B, C = silu(conv(xBC))                       ``causal_conv1d``
    y = scan(x, dt, A, B, C, D)                     ``ssd``
    out = W_out norm(y silu(z))                     ``gated_rms_norm``

(Dao and Gu 2024, arXiv:2405.21060, figure 6.) Called one after the other, the parts keep x, B and C, y, and the norm's
output of every layer for the backward pass, and join the gradients of parts. Here these tensors are computed again, of
the scan all but its states, which its backward pass computes anyway, and every gradient is written where it belongs.

Symbols: Bt batch, L length, M model width, E inner width, H heads, G groups, N state size, K width of the convolution.
"""

from typing import NamedTuple

from torch import Tensor

from seqlab.ops.causal_conv1d import resolve_backend as conv_backend
from seqlab.ops.context import ContextGroup
from seqlab.ops.contract import check_dtypes, check_given, check_shapes, checked
from seqlab.ops.mamba2_inner.operator import Mamba2Inner
from seqlab.ops.mamba_inner import trains_by_products
from seqlab.ops.rms_norm import resolve_backend as norm_backend
from seqlab.ops.ssd import resolve_backend as scan_backend

__all__ = ["BACKENDS", "Block", "can_run", "mamba2_inner"]

BACKENDS = ()
"""None of its own: it runs where those of its parts do."""

SHAPES = {
    "A_log": ("n_heads",),
    "dt_bias": ("n_heads",),
    "D": ("n_heads",),
    "norm_weight": ("d_inner",),
    "out_weight": ("d_model", "d_inner"),
    "conv_weight": ("d_inner + 2 n_groups d_state", "d_conv"),
    "conv_bias": ("d_inner + 2 n_groups d_state",),
}
JOINED_SHAPES = {"zxBCdt": ("batch", "length", "2 d_inner + 2 n_groups d_state + n_heads")}


class Block(NamedTuple):
    """The parameters of a Mamba-2 block after its first projection."""

    conv_weight: Tensor  # (E + 2 G N, K)
    conv_bias: Tensor | None  # (E + 2 G N,)
    dt_bias: Tensor | None  # (H,)
    A_log: Tensor  # (H,)
    D: Tensor | None  # (H,)
    norm_weight: Tensor  # (E,)
    out_weight: Tensor  # (M, E)


def can_run(zxBCdt: Tensor, block: Block, n_groups: int, backend: str = "auto") -> bool:
    """Whether ``mamba2_inner`` is to take these; where not, the parts are called one after the other.

    It is for a backward pass on a GPU: in eager mode, with the kernels of all its parts, and with products in zxBCdt's
    dtype, under autocast or without.

    Args:
        zxBCdt: (Bt, L, 2 E + 2 G N + H).
        block: the parameters.
        n_groups: G, of the scan and of the norm.
        backend: the scan's, as ``ssd`` takes it.

    Raises:
        ValueError: a shape, dtype or device does not fit, or the scan's backend does not exist or cannot run.
    """
    if not trains_by_products(zxBCdt, block, block.out_weight):
        return False
    return checked(_check, {"zxBCdt": zxBCdt, **block._asdict()}, n_groups, backend) == "triton"


def _check(tensors: dict[str, Tensor | None], n_groups: int, backend: str) -> str:
    """The backend of all parts, or of one that is not "triton".

    Raises:
        ValueError: the arguments of ``can_run`` do not fit.
    """
    check_given(tensors, "zxBCdt", "conv_weight", "A_log", "norm_weight", "out_weight")
    sizes: dict[str, int] = {}
    check_shapes(SHAPES, tensors, sizes)
    mixed, d_inner, n_heads = (sizes[name] for name in ("d_inner + 2 n_groups d_state", "d_inner", "n_heads"))
    sizes["2 d_inner + 2 n_groups d_state + n_heads"] = d_inner + mixed + n_heads
    check_shapes(JOINED_SHAPES, tensors, sizes)
    check_dtypes(tensors)
    channels = mixed - d_inner  # of B and C
    if n_groups < 1 or n_heads % n_groups or d_inner % n_heads or channels % (2 * n_groups):
        raise ValueError(f"{n_heads} heads in n_groups={n_groups} do not divide {d_inner} and {channels} channels")
    where = tensors["zxBCdt"].device, tensors["zxBCdt"].dtype
    norm = norm_backend("auto", *where, d_inner // n_groups)
    parts = scan_backend(backend, *where), conv_backend("auto", *where), norm
    return next((part for part in parts if part != "triton"), "triton")


def mamba2_inner(
    zxBCdt: Tensor,
    block: Block,
    n_groups: int,
    eps: float,
    context: ContextGroup | None = None,
    states: tuple[Tensor, Tensor] | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The block's output (Bt, L, M) in the dtype of zxBCdt (Bt, L, 2 E + 2 G N + H), for arguments that ``can_run``.

    With ``states`` also the scan's state (Bt, H, P, N) after the last position, in float32, without a gradient.

    It is differentiable once. The output is what the parts give, bit by bit, each by "triton" and the product in
    zxBCdt's dtype, and so are the gradients where products are. All are bitwise reproducible.

    Args:
        zxBCdt: gates, what the convolution mixes and step sizes, float32, bfloat16 or float16.
        block: the parameters, each in a dtype of its own; both biases and D may be None.
        n_groups: G, of the scan and of the norm.
        eps: added to the norm's mean square.
        context: the processes that share these sequences, as ``ssd`` takes it.
        states: the convolution's inputs (Bt, K - 1, E + 2 G N) and the scan's state before the first position, which
            get no gradient; zeros if None. Not with ``context``.
    """
    before, state = (None, None) if states is None else (states[0].to(zxBCdt.dtype), states[1])
    block = block._replace(out_weight=block.out_weight.to(zxBCdt.dtype))
    y, final = Mamba2Inner.apply(zxBCdt, *block, n_groups, float(eps), context, before, state, "triton")
    return y if states is None else (y, final)
