"""Launches of ``triton_kernels.py``: how the work of one position is cut, by the batch and the widths.

Symbols: B batch, D model width, E inner width, N state size, W = R + 2 N columns of ``x_proj``, I and O columns into
and out of a projection, P shares of a sum, V vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqlab.ops.triton_support import DTYPES
from seqlab.ops.triton_support import why_unavailable as why_unavailable

try:
    import triton

    from seqlab.ops.decoding import triton_kernels as kernels
except ImportError:  # a torch wheel for CPUs may come without it
    triton = None

WIDEST_ROW = 4096
"""Columns up to which a program holds a whole row of weights; wider ones go through the tensor cores in pieces."""

ROW_TILE = 16_384
"""Weights that a program of a single sequence holds in registers: 64 for each lane of its eight warps."""

PROGRAMS = 400
"""About so many programs update states at a time: three for each multiprocessor of a large GPU."""

MOST_SHARES = 2048
"""Shares times sequences up to which each program that needs their sum adds them itself."""

PIECE = 2048
"""Numbers of a row that one program takes to find the largest."""


class Tile(NamedTuple):
    """How a kernel of several sequences is cut: a program's sequences and columns, columns in at a time, and how many
    of those are being loaded."""

    rows: int
    columns: int
    depth: int
    stages: int


ENTER, PROJECT, HEAD = Tile(64, 16, 64, 4), Tile(32, 16, 128, 4), Tile(64, 128, 64, 4)
WIDE_OUT = 8192
"""Columns out from which a projection is cut as a head over a vocabulary is."""


def power_of_two(number: int) -> int:
    """The number, rounded up."""
    return 1 << (number - 1).bit_length()


def is_single(batch: int, width: int) -> bool:
    """Whether each sequence is taken by itself, which wastes no row of a tensor core's 16."""
    return batch <= 2 and width <= WIDEST_ROW


def rows_of(tile: Tile, batch: int) -> int:
    """A program's sequences: of a small batch all, in a tensor core's 16 rows at least."""
    return min(tile.rows, max(16, power_of_two(batch)))


def depth_of(tile: Tile, width: int) -> int:
    """Columns in at a time, of which a tensor core takes 16."""
    return min(tile.depth, max(16, power_of_two(width)))


def options(device: torch.device, warps: int, *, overlaps: bool = False, stages: int | None = None) -> dict[str, Any]:
    """How a kernel is launched; ``overlaps``: before its predecessor has ended, which needs compute capability 9.

    It pays for kernels of single sequences (366 to 276 us for a token of 24 layers on an H200) and costs those of many,
    where programs that wait take the place of programs that work (702 to 837 us).
    """
    if device.type != "cuda":
        return {"PDL": False}
    overlaps = overlaps and torch.version.cuda is not None and torch.cuda.get_device_capability(device)[0] >= 9
    given = {"PDL": overlaps, "num_warps": warps}
    return given | ({"launch_pdl": True} if overlaps else {}) | ({} if stages is None else {"num_stages": stages})


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, norm: Any, residual: Tensor | None) -> Tensor:
    """residual + weight norm(x) + bias: x (B, I) to (B, O); ``norm`` is a ``seqlab.ops.decoding.Norm`` or None."""
    batch, width = x.shape
    outs = len(weight)
    out = x.new_empty(batch, outs)
    scale, shift = (norm.weight, norm.bias) if norm else (None, None)
    tensors = x, scale, shift, weight, bias, residual, out, norm.eps if norm else 0.0, outs
    flags = {
        "INS": width, "NORM": norm is not None, "RMS": norm is not None and norm.rms,
        "HAS_NORM_BIAS": shift is not None, "HAS_BIAS": bias is not None, "HAS_RESIDUAL": residual is not None,
    }  # fmt: skip
    if is_single(batch, width):
        wide = power_of_two(width)
        columns = min(max(1, ROW_TILE // wide), power_of_two(outs))
        launch = options(x.device, 8, overlaps=True)
        grid = triton.cdiv(outs, columns), batch
        kernels.row_linear_kernel[grid](*tensors, **flags, BN=columns, BK=wide, **launch)
        return out
    tile = HEAD if outs >= WIDE_OUT else PROJECT
    rows, launch = rows_of(tile, batch), options(x.device, 4, stages=tile.stages)
    grid = triton.cdiv(outs, tile.columns), triton.cdiv(batch, rows)
    kernels.rows_linear_kernel[grid](
        *tensors, batch, **flags, BM=rows, BN=tile.columns, BK=depth_of(tile, width), **launch
    )
    return out


def enter(x: Tensor, norm: Any, block: Any, conv_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From the residual stream x (B, D) to u and z (B, E), and the shares (P, B, W) of ``x_proj``'s output.

    ``norm`` and ``block`` are a ``Norm`` and a ``Block`` of ``seqlab.ops.decoding``; ``conv_state`` (B, K - 1, E) moves
    on.
    """
    batch, width = x.shape
    inner, taps = block.conv_weight.shape
    of_x, single, wide = len(block.x_weight), is_single(batch, width), power_of_two(width)
    columns = max(1, ROW_TILE // wide) if single else ENTER.columns
    programs = triton.cdiv(inner, columns)
    u, z = x.new_empty(batch, inner), x.new_empty(batch, inner)
    shares = torch.empty(programs, batch, of_x, dtype=torch.float32, device=x.device)
    tensors = (
        x, norm.weight, norm.bias, block.in_weight, conv_state, block.conv_weight, block.conv_bias, block.x_weight,
        u, z, shares, norm.eps,
    )  # fmt: skip
    flags = {
        "D": width, "E": inner, "W": of_x, "K": taps, "KP": power_of_two(taps), "RMS": norm.rms,
        "HAS_NORM_BIAS": norm.bias is not None, "HAS_BIAS": block.conv_bias is not None, "BN": columns,
        "BW": max(16, power_of_two(of_x)),
    }  # fmt: skip
    if single:
        launch = options(x.device, 8, overlaps=True)
        kernels.enter_row_kernel[(programs, batch)](*tensors, **flags, BK=wide, **launch)
    else:
        rows, launch = rows_of(ENTER, batch), options(x.device, 4, stages=ENTER.stages)
        grid = programs, triton.cdiv(batch, rows)
        kernels.enter_rows_kernel[grid](*tensors, batch, **flags, BM=rows, BK=depth_of(ENTER, width), **launch)
    return u, z, shares


def update(u: Tensor, z: Tensor, shares: Tensor, block: Any, state: Tensor) -> Tensor:
    """The gated output y (B, E) of the selective scan's step; ``state`` (B, E, N) moves on.

    Arguments as ``enter`` gives them: u and z (B, E), shares (P, B, W).
    """
    batch, inner = u.shape
    rank, size = block.dt_weight.shape[1], state.shape[2]
    if len(shares) * batch > MOST_SHARES:
        shares = summed(shares)
    channels = min(512, max(8, power_of_two(triton.cdiv(inner * batch, PROGRAMS))))
    y = torch.empty_like(u)
    kernels.update_kernel[(triton.cdiv(inner, channels), batch)](
        shares, u, z, block.dt_weight, block.dt_bias, block.A_log, block.D, state, y, len(shares),
        E=inner, N=size, R=rank, BE=channels, BN=power_of_two(size), BR=power_of_two(rank),
        BP=min(128, power_of_two(len(shares))),
        **options(u.device, 8 if channels >= 256 else 4, overlaps=is_single(batch, 1)),
    )  # fmt: skip
    return y


def summed(shares: Tensor) -> Tensor:
    """The sum (1, B, W) of shares (P, B, W)."""
    total = shares.new_empty(1, *shares.shape[1:])
    size, block = total.numel(), 32
    kernels.sum_kernel[(triton.cdiv(size, block),)](
        shares, total, size, len(shares), BP=128, BLOCK=block, **options(shares.device, 4)
    )
    return total


def likeliest(logits: Tensor) -> Tensor:
    """The column of the largest number in each row of logits (B, V): (B,) int64."""
    batch, width = logits.shape
    pieces = triton.cdiv(width, PIECE)
    best = torch.empty(batch, pieces, dtype=torch.float32, device=logits.device)
    where = torch.empty(batch, pieces, dtype=torch.int32, device=logits.device)
    token = torch.empty(batch, dtype=torch.int64, device=logits.device)
    launch = options(logits.device, 4, overlaps=is_single(batch, 1))
    kernels.likeliest_kernel[(pieces, batch)](
        logits, where, best, where, width, width, BLOCK=PIECE, LAST=False, **launch
    )
    kernels.likeliest_kernel[(1, batch)](
        best, where, best, token, pieces, width, BLOCK=power_of_two(pieces), LAST=True, **launch
    )
    return token


def runs(x: Tensor) -> bool:
    """Whether the kernels can take x, of any shape."""
    return x.dtype in DTYPES and why_unavailable(x.device, x.dtype) is None
