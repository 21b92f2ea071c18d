"""What the kernels of one position share: waiting for one another, norms, activations, products of tiles.

Symbols: B batch, I and O columns into and out of a projection; a program's tile is BM sequences, BN columns, and BK
columns in at a time. Weights are (out, in) as ``nn.Linear`` has them. Sums are in float32.

At batch 1 a kernel's time is that of fetching its weights, and of waiting for the kernel before it. So each program
asks for its weights first, which no other kernel writes, and only then waits (``PDL``: programmatic dependent launch,
where a kernel may begin before its predecessor has ended; ``gdc_wait`` returns when that has). Every kernel lets the
next one begin after its own wait, never before it: what comes before a wait runs when all but the predecessor have
ended. Larger batches go through tiles of ``BM`` sequences on the tensor cores.
"""

import triton
import triton.language as tl


@triton.jit
def wait(PDL: tl.constexpr):
    """Until the kernels before this one have ended and what they wrote can be read."""
    if PDL:
        tl.extra.cuda.gdc_wait()


@triton.jit
def let_next_begin(PDL: tl.constexpr):
    """The next kernel may take its place on the device; it waits there for this one."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def silu(x):
    """x sigmoid(x), elementwise."""
    return x / (1.0 + tl.exp(-x))


@triton.jit
def softplus(x):
    """log(1 + exp(x)); above 20 it is x in float32, as torch has it."""
    return tl.where(x > 20.0, x, tl.log(1.0 + tl.exp(tl.minimum(x, 20.0))))


@triton.jit
def normalised_row(row, inside, weight, bias, D: tl.constexpr, eps, RMS: tl.constexpr, HAS_BIAS: tl.constexpr):
    """RMSNorm or LayerNorm of one row (BK,), whose first D columns are ``inside``."""
    if not RMS:
        row = tl.where(inside, row - tl.sum(row) / D, 0.0)
    normal = row * tl.rsqrt(tl.sum(row * row) / D + eps) * weight
    if HAS_BIAS:
        normal += bias
    return normal


@triton.jit
def statistics(x, rows, in_batch, D: tl.constexpr, eps, BM: tl.constexpr, BK: tl.constexpr):
    """Mean and the reciprocal of the deviation of rows of x (B, D), as LayerNorm has them: (BM,) each."""
    mean = tl.zeros((BM,), tl.float32)
    for start in range(0, D, BK):
        k = start + tl.arange(0, BK)
        part = tl.load(x + rows[:, None] * D + k[None, :], mask=in_batch[:, None] & (k < D)[None, :], other=0.0)
        mean += tl.sum(part.to(tl.float32), axis=1)
    mean /= D
    squares = tl.zeros((BM,), tl.float32)
    for start in range(0, D, BK):
        k = start + tl.arange(0, BK)
        inside = in_batch[:, None] & (k < D)[None, :]
        part = tl.load(x + rows[:, None] * D + k[None, :], mask=inside, other=0.0).to(tl.float32)
        part = tl.where(inside, part - mean[:, None], 0.0)
        squares += tl.sum(part * part, axis=1)
    return mean, tl.rsqrt(squares / D + eps)


@triton.jit
def weighted(tile, k, norm_weight, norm_bias, D: tl.constexpr, HAS_BIAS: tl.constexpr):
    """Columns k of rows (BM, BK) by the norm's weight and bias, which are 0 past the last column."""
    tile *= tl.load(norm_weight + k, mask=k < D, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        tile += tl.load(norm_bias + k, mask=k < D, other=0.0).to(tl.float32)[None, :]
    return tile


@triton.jit
def product(
    x, rows, in_batch, norm_weight, norm_bias, weight, o, in_out, eps, INS: tl.constexpr, NORM: tl.constexpr,
    RMS: tl.constexpr, HAS_NORM_BIAS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Rows of x (B, I), normalised if ``NORM``, by rows o of weight; (BM, BN). The next kernel may then begin."""
    if NORM and not RMS:
        mean, scale = statistics(x, rows, in_batch, INS, eps, BM, BK)
    found = tl.zeros((BM, BN), tl.float32)
    squares = tl.zeros((BM, BK), tl.float32)
    for start in range(0, INS, BK):
        k = start + tl.arange(0, BK)
        given = tl.load(x + rows[:, None] * INS + k[None, :], mask=in_batch[:, None] & (k < INS)[None, :], other=0.0)
        w = tl.load(weight + o[None, :] * INS + k[:, None], mask=in_out[None, :] & (k < INS)[:, None], other=0.0)
        if NORM:
            given = given.to(tl.float32)
            if RMS:
                squares += given * given
            else:
                given = (given - mean[:, None]) * scale[:, None]
            given = weighted(given, k, norm_weight, norm_bias, INS, HAS_NORM_BIAS).to(w.dtype)
        found = tl.dot(given, w, found, input_precision="ieee")
    let_next_begin(PDL)
    if NORM and RMS:  # once a row is known; that needs no second pass
        found *= tl.rsqrt(tl.sum(squares, axis=1) / INS + eps)[:, None]
    return found
