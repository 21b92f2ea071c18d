"""Cross-entropy of a linear map of hidden states, summed over positions, of whose logits only a chunk is held.

    z = x W^T + b        loss = sum over n of scale_n (log(sum over v of exp(z_nv)) - z_(n, target of n))

The logits of a language model and their gradient are its largest tensors: a row has V numbers each, one position's
hidden state D. Since the loss is a scalar, all that is unknown of the gradients in the forward pass is one factor. So
"chunked" takes some rows at a time and computes their logits, the loss, the gradient in the logits' place, and what it
adds to the gradients of x, W and b, which the backward pass multiplies by the factor (as Hsu et al. 2024 do,
arXiv:2410.10989).

With ``log_prior`` a position has K rows, and its prediction is the mixture of their softmaxes (Yang et al. 2018,
arXiv:1711.03953, section 2.3):

    loss = - sum over n of scale_n log(sum over k of exp(log_prior_nk) p_nk(target of n))      p_nk = softmax(z_nk)

of which the losses of the rows are all that is needed: row k's gradient is that of its own loss times its share of the
sum.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from seqlab.ops import backends
from seqlab.ops.contract import check_dtypes
from seqlab.ops.linear_cross_entropy.chunked import pays, positions_at_once
from seqlab.ops.linear_cross_entropy.operator import FUSED, fused_loss

__all__ = ["BACKENDS", "linear_cross_entropy", "pays", "positions_at_once", "resolve_backend"]

BACKENDS = ("chunked", "reference")
"""Fastest first; each is the file of that name in this folder."""


def resolve_backend(backend: str, device: torch.device | str, dtype: torch.dtype) -> str:
    """The backend that ``linear_cross_entropy(..., backend=backend)`` uses on ``device`` for logits in ``dtype``.

    A pure function: call it to record what "auto" chose. It is "reference" but on a GPU. Raises ValueError as
    ``linear_cross_entropy`` does.
    """
    auto = backend == "auto" and torch.device(device).type != "cuda"
    return backends.resolve(__name__, BACKENDS, "reference" if auto else backend, device, dtype)


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scale: Tensor,
    *,
    log_prior: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """The sum of the losses of ``cross_entropy(F.linear(x, weight, bias), targets)``, each times its scale.

    Logits are in x's dtype, or under autocast in its dtype, as those of ``F.linear`` are, and rounded once; so is their
    gradient. Gradients are summed in float32, or in float64 if x is, those of ``weight`` and ``bias`` over all chunks.
    "chunked" goes through the backward pass once: its gradients are scaled where they lie.

    Args:
        x: (..., D), float32, bfloat16, float16 or float64; with ``log_prior`` (..., K, D).
        weight: (V, D), in a dtype of its own; float64 if and only if x is.
        bias: (V,), likewise, or None.
        targets: (...) int64, as in ``cross_entropy``.
        scale: (...) float32, or float64 if x is; has no gradient. One number for all positions may be expanded.
        log_prior: (..., K), the logarithms of the weights of K softmaxes, float32, or float64 if x is; or None.
        ignore_index: the target where there is nothing to predict.
        label_smoothing: e, the share of each target that goes to all words alike, as in torch's ``cross_entropy``;
            not of a mixture, whose logarithms at all words it would need.
        backend: "auto" for "chunked" on a GPU and "reference" elsewhere, or a name in ``BACKENDS``.

    Returns:
        The loss, a scalar, float32, or float64 if x is.

    Raises:
        ValueError: a shape, dtype or device that does not fit, a mixture whose labels are to be smoothed, or a backend
            that does not exist or cannot run.
    """
    _check(x, weight, bias, log_prior, targets, scale)
    if log_prior is not None:
        if label_smoothing:
            raise ValueError(f"label_smoothing is {label_smoothing}, expected 0 with log_prior")
        log_prior = log_prior.reshape(-1, log_prior.shape[-1])  # (N, K)
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    rows, picks, scales = x.reshape(-1, x.shape[-1]), targets.reshape(-1), scale.reshape(-1)  # (N K, D), (N,)
    compiling = torch.compiler.is_compiling() and backend == "auto"  # PyTorch differentiates "reference" by itself
    chosen = resolve_backend("reference" if compiling else backend, x.device, x.dtype)
    if chosen in FUSED:
        loss = fused_loss(rows, weight, bias, log_prior, picks, scales, ignore_index, chosen)
    else:
        loss = backends.load(__name__, chosen).loss(rows, weight, bias, log_prior, picks, scales, ignore_index)
    if not label_smoothing:
        return loss
    return loss + label_smoothing * _excess(rows, weight, bias, picks, scales.detach(), ignore_index)


def _excess(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: Tensor, ignore_index: int
) -> Tensor:
    """The sum of the scaled ``smoothing_excess`` of each row, a scalar, without its logits.

    It is linear in them, z_target - mean of z = x (w_target - mean of w) + b_target - mean of b, so that each row needs
    one row of the weight and no product of matrices.
    """
    counts, dtype = targets != ignore_index, scale.dtype
    picks, weight = targets.where(counts, 0), weight.to(dtype)
    rows = F.embedding(picks, weight) - weight.mean(0)  # (N, D)
    excess = (x.to(dtype) * rows).sum(1)
    if bias is not None:
        excess = excess + bias.to(dtype)[picks] - bias.to(dtype).mean()
    return (excess * scale).where(counts, 0).sum()


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, log_prior: Tensor | None, targets: Tensor, scale: Tensor
) -> None:
    """Refuse arguments that do not fit each other.

    Raises:
        ValueError: a shape, dtype or device that does not fit.
    """
    check_dtypes({"x": x, "weight": weight, "bias": bias, "log_prior": log_prior, "scale": scale})
    shape, sizes = tuple(x.shape), tuple(weight.shape)
    if not shape or shape[-1] < 1:
        raise ValueError(f"x has shape {shape}, expected (..., D), D at least 1")
    if len(sizes) != 2 or sizes[0] < 1 or sizes[1] != shape[-1]:
        raise ValueError(f"weight has shape {sizes}, expected (V, {shape[-1]}) for x of {shape}, V at least 1")
    if bias is not None and bias.shape != sizes[:1]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}, expected {sizes[:1]} for weight of {sizes}")
    if log_prior is not None and (len(shape) < 2 or log_prior.shape != shape[:-1] or not shape[-2]):
        raise ValueError(f"log_prior has shape {tuple(log_prior.shape)}, expected {shape[:-1]} for x of {shape}")
    rest = shape[:-1] if log_prior is None else shape[:-2]
    for name, tensor in {"targets": targets, "scale": scale}.items():
        if tensor.shape != rest:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {rest} for x of {shape}")
    if targets.dtype != torch.int64 or targets.device != x.device:
        raise ValueError(f"targets is {targets.dtype} on {targets.device}, expected torch.int64 on {x.device}")
    for name, tensor in {"scale": scale, "log_prior": log_prior}.items():
        if tensor is not None and tensor.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name} is {tensor.dtype}, expected torch.float32, or torch.float64 if x is")
