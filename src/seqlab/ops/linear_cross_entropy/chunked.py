"""Rows in chunks by PyTorch's matrix products: of logits and their gradient one chunk exists, and one after the other.

Between the two products stands the cross-entropy: on a GPU the kernels of ``cross_entropy``, which write the gradient
over the logits, elsewhere PyTorch's operations. A chunk has all softmaxes of its positions, so that their losses, and
with these the share of each in the gradient, are known before the gradient is. Symbols as in ``operator.py``; R rows of
a chunk; P the vocabulary filled up to a multiple of ``PAD``, with words whose weights are zero and which the losses do
not see.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from seqlab.ops.contract import accumulation_dtype
from seqlab.ops.cross_entropy import resolve_backend, triton
from seqlab.ops.linear_cross_entropy.operator import Gradients, for_each, log_joint

LOGITS = 2**27
"""Most bytes of a chunk's logits. With fewer, the kernels of a chunk have too little work for a whole GPU, and the
weight's gradient is read and written more often: a step of 16,384 tokens with a vocabulary of 10,000 took 4 % longer
with 64 MiB on an H200 than with all at once, and 2 % with 128 MiB."""

TILE = 128
"""A chunk has a multiple of this many rows, as the tiles of matrix products have."""

PAD = 16
"""The rows of logits begin at multiples of this many numbers: products move 16 bytes at once only if rows allow it."""

HALF_UNIT = 64.0
"""In float16 the gradient of the logits of the row of the largest scale is computed as if its scale were this. Times a
real one, such as 1 / 16,384, small probabilities would be less than the smallest number there, 6e-8, before the factor
of a gradient scaler came. The gradient by x, at most twice this times the largest weight, must stay below 65,504."""

ADDS_IN_FLOAT32 = torch.__version__ >= (2, 11)
"""Whether ``torch.addmm`` adds a product of halves to a float32 matrix; before, it is added in a pass of its own."""


def why_unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """None: PyTorch's products run everywhere, and so does one of the two ways to the loss."""
    return None


def chunk_rows(vocabulary: int, width: int, dtype: torch.dtype) -> int:
    """How many rows a chunk has, R.

    Its logits take ``LOGITS`` bytes, or as many as the weight's gradient does if these are more, so that adding to it
    costs less than moving the logits; memory is then at most doubled by them.
    """
    row = vocabulary * dtype.itemsize
    rows = max(LOGITS, vocabulary * width * accumulation_dtype(dtype).itemsize) // row
    return max(1, rows if rows < TILE else rows - rows % TILE)


def positions_at_once(vocabulary: int, width: int, dtype: torch.dtype, softmaxes: int) -> int:
    """How many positions of so many softmaxes a chunk has at most."""
    return max(1, chunk_rows(vocabulary, width, dtype) // softmaxes)


def pays(rows: int, vocabulary: int, width: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether chunks hold fewer logits than all rows at once would, and are no slower for it.

    Not on a CPU: one that is not Intel's multiplies whole batches by oneDNN, which is faster than the products here.
    """
    return device.type == "cuda" and rows > chunk_rows(vocabulary, width, dtype)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    log_prior: Tensor | None,
    targets: Tensor,
    scale: Tensor,
    ignore_index: int,
    wanted: tuple[bool, bool, bool, bool],
) -> tuple[Tensor, Gradients]:
    """The loss, a scalar, and the gradients that are ``wanted``; arguments as in ``operator.py``."""
    positions, (vocabulary, width) = len(targets), weight.shape
    softmaxes = 1 if log_prior is None else log_prior.shape[1]
    head = _Head(x, weight, bias, wanted[:3])
    d_log_prior = torch.zeros_like(log_prior) if wanted[3] else None
    d_scale, factor = None, None
    if any(wanted):
        d_scale, factor = _relative(scale) if x.dtype == torch.float16 else (scale, None)
    size = _even(positions, positions_at_once(vocabulary, width, x.dtype, softmaxes))
    logits = x.new_empty(size * softmaxes, len(head.weight))  # (R, P), of every chunk
    losses = [scale.new_zeros(0)]
    for start in range(0, positions, max(1, size)):
        here, rows = slice(start, start + size), slice(start * softmaxes, (start + size) * softmaxes)
        z, prior = head.logits(rows, logits), None if log_prior is None else log_prior[here]  # (R, P)
        found, write_gradient = _losses(z[:, :vocabulary], for_each(targets[here], prior), ignore_index)
        d = None if d_scale is None else d_scale[here]
        if prior is not None:
            joint, counts = log_joint(found, prior), targets[here] != ignore_index
            found = -joint.logsumexp(1).where(counts, 0)
            d = None if d is None else d.where(counts, 0)[:, None] * joint.softmax(1)  # (R / K, K)
            if d_log_prior is not None:
                d_log_prior[here] = -d
        losses.append(found)
        if d is not None:
            write_gradient(d.flatten())
            head.add(rows, z)
    return (torch.cat(losses) * scale).sum(), head.gradients(vocabulary, d_log_prior, factor)


def _even(rows: int, most: int) -> int:
    """How many rows a chunk has if there are as few as possible, all of about one size."""
    size = -(-rows // max(1, -(-rows // most)))
    return min(most, -(-size // TILE) * TILE, rows)


def _relative(scale: Tensor) -> tuple[Tensor, Tensor]:
    """The scales (N,), the largest as ``HALF_UNIT``, and the scalar that takes this back."""
    if not len(scale):
        return scale, scale.new_ones(())
    unit = scale.abs().amax().clamp(min=torch.finfo(scale.dtype).tiny) / HALF_UNIT
    return scale / unit, unit


def _losses(logits: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Callable[[Tensor], None]]:
    """The losses (R,) of logits (R, V), and what writes over these their gradient, given those of the losses (R,)."""
    if resolve_backend("auto", logits.device, logits.dtype) != "triton":
        return _plain_losses(logits, targets, ignore_index)
    losses, kept = triton.forward(logits, targets, ignore_index)

    def write_gradient(d_losses: Tensor) -> None:
        triton.backward(d_losses, logits, targets, kept, ignore_index, in_place=True)

    return losses, write_gradient


def _plain_losses(logits: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Callable[[Tensor], None]]:
    """As ``_losses``, by PyTorch's operations."""
    log_p = torch.log_softmax(logits, 1, dtype=accumulation_dtype(logits.dtype))  # (R, V)

    def write_gradient(d_losses: Tensor) -> None:
        counts = targets != ignore_index
        d = log_p.exp_().scatter_add_(1, targets.where(counts, 0)[:, None], log_p.new_full((len(log_p), 1), -1.0))
        logits.copy_(d.mul_(d_losses.where(counts, 0)[:, None]).masked_fill_(~counts[:, None], 0))

    return F.nll_loss(log_p, targets, ignore_index=ignore_index, reduction="none"), write_gradient


class _Head:
    """The linear map, its rows filled up to P, and the sums of its gradients."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor | None, wanted: tuple[bool, bool, bool]):
        self.x, missing = x, -len(weight) % PAD
        self.weight = _filled(weight, missing, x.dtype)  # (P, D)
        self.bias = None if bias is None else _filled(bias, missing, x.dtype)  # (P,)
        sums = accumulation_dtype(x.dtype)
        self.d_x = torch.empty_like(x) if wanted[0] else None
        self.d_weight = torch.zeros_like(self.weight, dtype=sums) if wanted[1] else None
        self.d_bias = torch.zeros_like(self.bias, dtype=sums) if wanted[2] else None

    def logits(self, here: slice, out: Tensor) -> Tensor:
        """The logits of some rows, (R, P), in the memory of ``out`` (R, P)."""
        x = self.x[here]
        out = out[: len(x)]
        if self.bias is None:
            return torch.mm(x, self.weight.t(), out=out)
        return torch.addmm(self.bias, x, self.weight.t(), out=out)

    def add(self, here: slice, d_logits: Tensor) -> None:
        """Take the gradient of the logits of some rows, (R, P)."""
        if self.d_x is not None:
            torch.mm(d_logits, self.weight, out=self.d_x[here])
        if self.d_weight is not None:
            _add_product(self.d_weight, d_logits.t(), self.x[here])
        if self.d_bias is not None:
            self.d_bias += d_logits.sum(0, dtype=self.d_bias.dtype)

    def gradients(self, vocabulary: int, d_log_prior: Tensor | None, factor: Tensor | None) -> Gradients:
        """The gradients, without the rows that filled up, beside that of the priors (N, K)."""
        d_weight, d_bias = (None if d is None else d[:vocabulary] for d in (self.d_weight, self.d_bias))
        return Gradients(self.d_x, d_weight, d_bias, d_log_prior, factor)


def _filled(tensor: Tensor, missing: int, dtype: torch.dtype) -> Tensor:
    """The tensor (V, ...) in ``dtype``, with ``missing`` rows of zeros after it."""
    if not missing:
        return tensor.detach().to(dtype).contiguous()
    filled = tensor.new_zeros((len(tensor) + missing, *tensor.shape[1:]), dtype=dtype)
    filled[: len(tensor)] = tensor.detach()
    return filled


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b, of total (P, D) in the dtype of sums, a (P, R) and b (R, D); no sum is rounded to theirs."""
    if total.dtype == a.dtype or not total.is_cuda:
        torch.addmm(total, a.to(total.dtype), b.to(total.dtype), out=total)
    elif ADDS_IN_FLOAT32:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total += torch.mm(a, b, out_dtype=total.dtype)
