"""A feed-forward of many experts, of which each token uses k: the sum over these of gate times output.

    y_t = sum over j of g_tj W2_e (silu(x_t A_e) * (x_t B_e))      e = e_tj, [A_e B_e] = W1_e

Every pair of a token and one of its experts is a row. Rows are sorted by expert, and the matrix products are grouped by
it; no group has a capacity, so no token is dropped (MegaBlocks, Gale et al. 2022, section 4). With "triton" the routing
stays on the device, and the host does not wait for it.
"""

import torch
from torch import Tensor

from seqlab.ops import backends
from seqlab.ops.contract import check_dtypes, check_shapes
from seqlab.ops.routed_experts.operator import FUSED, fused_experts

__all__ = ["BACKENDS", "resolve_backend", "routed_experts", "routed_experts_flops"]

BACKENDS = ("triton", "grouped", "reference")
"""Fastest first; each is the file of that name in this folder."""


def resolve_backend(backend: str, device: torch.device | str, dtype: torch.dtype) -> str:
    """The backend that ``routed_experts(..., backend=backend)`` uses for x on ``device`` in ``dtype``.

    A pure function: call it to record what "auto" chose. Raises ValueError as ``routed_experts`` does.
    """
    return backends.resolve(__name__, BACKENDS, backend, device, dtype)


def routed_experts(
    x: Tensor, in_weight: Tensor, out_weight: Tensor, experts: Tensor, gates: Tensor, *, backend: str = "auto"
) -> Tensor:
    """Send each token through its experts and sum their outputs, each times its gate.

    Sums are in float32, or in float64 if the arguments are float64; on a GPU float32 products have float32's accuracy
    unless ``torch.set_float32_matmul_precision`` allows less. Outputs and gradients are bitwise reproducible. Under
    autocast x and the weights are cast to its dtype.

    Args:
        x: (tokens, d_model).
        in_weight: (n_experts, d_model, 2 d_hidden), the maps A_e and B_e of each expert side by side.
        out_weight: (n_experts, d_hidden, d_model).
        experts: (tokens, top_k) int64, the experts of each token, as numbers below n_experts.
        gates: (tokens, top_k) the weights of these experts.
        backend: "auto" for the fastest that can run, or a name in ``BACKENDS``.

    Returns:
        y (tokens, d_model) in x's dtype, or in autocast's.

    Raises:
        ValueError: a shape, dtype or device that does not fit, or a backend that does not exist or cannot run.
    """
    check_arguments(x, in_weight, out_weight, experts, gates)
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, in_weight, out_weight = x.to(dtype), in_weight.to(dtype), out_weight.to(dtype)
    else:
        in_weight, out_weight = in_weight.to(x.dtype), out_weight.to(x.dtype)
    gates = gates.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    chosen = "grouped" if x.is_meta else resolve_backend(backend, x.device, x.dtype)
    if chosen in FUSED:
        return fused_experts(x, in_weight, out_weight, experts, gates, chosen)
    return backends.load(__name__, chosen).experts(x, in_weight, out_weight, experts, gates)


def check_arguments(x: Tensor, in_weight: Tensor, out_weight: Tensor, experts: Tensor, gates: Tensor) -> None:
    """Check the shapes, dtypes and devices of the arguments of ``routed_experts``.

    Raises:
        ValueError: one does not fit.
    """
    tensors = {"x": x, "in_weight": in_weight, "out_weight": out_weight, "gates": gates}
    shapes = {
        "x": ("tokens", "d_model"),
        "out_weight": ("n_experts", "d_hidden", "d_model"),
        "in_weight": ("n_experts", "d_model", "2 d_hidden"),
        "experts": ("tokens", "top_k"),
        "gates": ("tokens", "top_k"),
    }
    sizes = {"2 d_hidden": 2 * out_weight.shape[1]} if out_weight.ndim == 3 else {}
    check_shapes(shapes, tensors | {"experts": experts}, sizes)
    check_dtypes(tensors)
    if experts.dtype != torch.int64 or experts.device != x.device:
        raise ValueError(f"experts is {experts.dtype} on {experts.device}, expected torch.int64 on {x.device}")


def routed_experts_flops(rows: int, d_model: int, d_hidden: int) -> int:
    """Forward FLOPs, multiplications and additions, of the three matrix products, for rows = tokens times top_k."""
    return 2 * rows * d_model * 3 * d_hidden
