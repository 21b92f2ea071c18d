"""What the kernels of one position share: waiting for one another, norms, activations, products of tiles.

Symbols: B batch, I and O columns into and out of a projection; a program's tile is BM sequences, BN columns, and BK
columns in at a time. Weights are (out, in) as ``nn.Linear`` has them. Sums are in float32.

At batch 1 a kernel's time is that of fetching its weights, and of waiting for the kernel before it. So each program
asks for its weights first, which no other kernel writes, and only then waits (``PDL``: programmatic dependent launch,
where a kernel may begin before its predecessor has ended; ``gdc_wait`` returns when that has). Every kernel lets the
next one begin after its own wait, never before it: what comes before a wait runs when all but the predecessor have
ended. Several sequences are normalised by a kernel of its own, and go through the tensor cores by tiles of ``BM``.
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
def product(
    x, rows, in_batch, weight, o, in_out, INS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Rows of x (B, I) by rows o of weight; (BM, BN). The next kernel may then begin."""
    found = tl.zeros((BM, BN), tl.float32)
    for start in range(0, INS, BK):
        k = start + tl.arange(0, BK)
        given = tl.load(x + rows[:, None] * INS + k[None, :], mask=in_batch[:, None] & (k < INS)[None, :], other=0.0)
        w = tl.load(weight + o[None, :] * INS + k[:, None], mask=in_out[None, :] & (k < INS)[:, None], other=0.0)
        found = tl.dot(given, w, found, input_precision="ieee")
    let_next_begin(PDL)
    return found


@triton.jit
def norm_kernel(
    x, weight, bias, out, eps, D: tl.constexpr, RMS: tl.constexpr, HAS_BIAS: tl.constexpr, BK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """norm(x) of one row (B, D), which BK holds, rounded once: for many sequences whose product takes it in pieces.

    A product that normalises its pieces itself takes 5 us more at 64 sequences (H200, 768 columns in, 3,072 out).
    """
    row, k = tl.program_id(0), tl.arange(0, BK)
    inside = k < D
    scale = tl.load(weight + k, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + k, mask=inside, other=0.0).to(tl.float32) if HAS_BIAS else scale
    wait(PDL)
    let_next_begin(PDL)
    given = tl.load(x + row * D + k, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * D + k, normalised_row(given, inside, scale, shift, D, eps, RMS, HAS_BIAS), mask=inside)
