"""One position of a Mamba layer and of a projection, in few kernels: generating a token is launches, not arithmetic.

Step by step, PyTorch takes some 40 kernels for a Mamba layer, each of a few microseconds of which most is the wait for
the one before. Here a layer is three of one or two sequences and five of many, with its norm and residual connection.

Symbols: B batch, D model width, E inner width, N state size, R rank of delta, K width of the convolution.
"""

from typing import NamedTuple

from torch import Tensor, nn

from seqlab.ops.decoding import triton as fused

BACKENDS = ("triton",)
"""There is no other: where it cannot run, a layer's parts are called one after the other."""


class Norm(NamedTuple):
    """An RMSNorm or a LayerNorm."""

    weight: Tensor  # (D,)
    bias: Tensor | None  # (D,)
    eps: float
    rms: bool  # RMSNorm, or else LayerNorm


class Block(NamedTuple):
    """The parameters of a Mamba block, shapes as ``seqlab.models.mixers.mamba`` has them."""

    in_weight: Tensor  # (2 E, D)
    x_weight: Tensor  # (R + 2 N, E)
    dt_weight: Tensor  # (E, R)
    dt_bias: Tensor | None  # (E,)
    out_weight: Tensor  # (D, E)
    conv_weight: Tensor  # (E, K)
    conv_bias: Tensor | None  # (E,)
    A_log: Tensor  # (E, N)
    D: Tensor | None  # (E,)


def norm_of(module: nn.Module) -> Norm | None:
    """What the kernels need to know of a norm; None of one that they do not know.

    A class that computes what torch's does, in another way, says so by ``computes``, torch's class.
    """
    kind = vars(type(module)).get("computes", type(module))  # not inherited: a subclass may compute something else
    if kind is nn.RMSNorm and module.weight is not None and len(module.normalized_shape) == 1:
        eps = module.eps
        return None if eps is None else Norm(module.weight, None, eps, True)
    if type(module) is nn.LayerNorm and module.weight is not None and len(module.normalized_shape) == 1:
        return Norm(module.weight, module.bias, module.eps, False)
    return None


def can_run(x: Tensor, *weights: Tensor | None) -> bool:
    """Whether the kernels can take x (B, D) with these weights: on their device, in one dtype, each contiguous."""
    alike = all(w is None or (w.dtype == x.dtype and w.device == x.device and w.is_contiguous()) for w in weights)
    return alike and x.is_contiguous() and x.device.type == "cuda" and fused.runs(x)


def mamba_step(x: Tensor, norm: Norm, block: Block, conv_state: Tensor, state: Tensor) -> Tensor:
    """x + mamba(norm(x)) for one position, x (B, D) to (B, D); without a gradient.

    Sums and the state are in float32; u, z, y and the residual stream are rounded to x's dtype, as by the layer's
    parts one after the other.

    Args:
        x: (B, D) the residual stream, float32, bfloat16 or float16.
        norm: before the block.
        block: the parameters, in x's dtype, dt_bias and D among them.
        conv_state: (B, K - 1, E) in x's dtype; it is moved on in place.
        state: (B, E, N) float32, likewise. Of 64 sequences or fewer both, and all parameters, may be read before the
            kernel launched just before has ended, which so must not write them; in a model that is the embedding or
            another layer. All kernels before that one have ended.
    """
    u, z, shares = fused.enter(x, norm, block, conv_state, state)
    y = fused.update(u, z, shares, block, state)
    return fused.linear(y, block.out_weight, None, None, x)


def norm_linear(x: Tensor, norm: Norm, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """weight norm(x) + bias: x (B, D) to (B, O) in x's dtype; without a gradient.

    As in ``mamba_step``, the kernel launched just before must not write the parameters.
    """
    return fused.linear(x, weight, bias, norm, None)


def likeliest(logits: Tensor) -> Tensor:
    """The place of the largest in each row of logits (B, V), the first of equals: (B,) int64."""
    return fused.likeliest(logits) if can_run(logits) else logits.argmax(dim=-1)
