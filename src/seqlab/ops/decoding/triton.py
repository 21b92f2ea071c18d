"""Launches of the kernels: how the work of one position is cut, by the batch and the widths.

Symbols: B batch, D model width, E inner width, N state size, W = R + 2 N columns of ``x_proj``, I and O columns into
and out of a projection, P shares of a sum, V vocabulary.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqlab.ops.triton_support import DTYPES
from seqlab.ops.triton_support import why_unavailable as why_unavailable

try:
    import triton

    from seqlab.ops.decoding import triton_enter, triton_linear, triton_parts, triton_update
except ImportError:  # a torch wheel for CPUs may come without it
    triton = None

WIDEST_ROW = 4096
"""Columns up to which a program holds a whole row of weights; wider ones go through the tensor cores in pieces."""

ROW_ENTER, ROW_LINEAR = 16_384, 8192
"""Weights that a program of a single sequence holds in registers, into a layer and out of one."""

MOST_OF_X = 128
"""Columns of ``x_proj`` that a program of several sequences takes at a time."""

MOST_SHARES = 512
"""Shares times sequences up to which each program that needs their sum adds them itself."""

PIECE = 2048
"""Numbers of a row that one program takes to find the largest."""

ROOMY = 200_000
"""Bytes of shared memory that a program must be able to have for the larger tiles."""

WIDE_OUT = 8192
"""Columns out from which a projection is cut as a head over a vocabulary is."""


class Tile(NamedTuple):
    """How a product of several sequences is cut: a program's sequences and columns, columns in at a time, how many of
    those are being loaded, and its warps."""

    rows: int
    columns: int
    depth: int
    stages: int
    warps: int


class Plan(NamedTuple):
    """How all is cut and launched for ``most`` sequences or fewer.

    Args:
        channels: of a program that updates states, for states of 16 numbers; of larger ones it has fewer.
        overlaps: whether the kernels after ``enter`` begin before their predecessor has ended.
        enter_overlaps: whether ``enter`` does.
    """

    most: float
    enter: Tile
    channels: int
    out: Tile
    head: Tile
    overlaps: bool = False
    enter_overlaps: bool = False


PLANS = (  # fastest of many on an H200 at width 768 and batches of 16, 64 and 256; the third is made of their parts
    Plan(32, Tile(32, 16, 128, 5, 4), 64, Tile(32, 16, 128, 7, 4), Tile(64, 128, 64, 4, 4), overlaps=True),
    Plan(64, Tile(64, 32, 128, 5, 4), 128, Tile(64, 16, 256, 5, 4), Tile(64, 256, 64, 3, 8), overlaps=True,
         enter_overlaps=True),
    Plan(128, Tile(64, 32, 64, 3, 4), 128, Tile(64, 16, 256, 5, 4), Tile(128, 256, 64, 3, 8)),
    Plan(float("inf"), Tile(64, 32, 64, 3, 4), 128, Tile(32, 32, 128, 7, 4), Tile(128, 256, 64, 3, 8)),
)  # fmt: skip


def plan(x: Tensor) -> Plan:
    """That for x (B, I); with small tiles in float32, which has no tensor cores here, and on GPUs without the room."""
    found, small = next(plan for plan in PLANS if len(x) <= plan.most), PLANS[0]
    roomy = not x.is_cuda or (x.element_size() == 2 and shared_memory(x.device) >= ROOMY)
    return found if roomy else found._replace(enter=small.enter, out=small.out, head=small.head)


def power_of_two(number: int) -> int:
    """The number, rounded up."""
    return 1 << (number - 1).bit_length()


def is_single(batch: int, width: int) -> bool:
    """Whether each sequence is taken by itself, which wastes no row of a tensor core's 16."""
    return batch <= 2 and width <= WIDEST_ROW


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program on a GPU can have."""
    return triton.runtime.driver.active.utils.get_device_properties(device.index)["max_shared_mem"]


@cache
def can_overlap(device: torch.device) -> bool:
    """Whether a kernel may begin before its predecessor has ended, which needs compute capability 9."""
    cuda = device.type == "cuda" and torch.version.cuda is not None
    return cuda and torch.cuda.get_device_capability(device)[0] >= 9


def options(device: torch.device, warps: int, *, overlaps: bool, stages: int | None = None) -> dict[str, Any]:
    """How a kernel is launched; ``overlaps``: before its predecessor has ended, where the device can.

    It pays up to 64 sequences (H200, us for 24 layers: 366 to 276 of one sequence, 629 to 582 of 64) and costs beyond,
    where programs that wait take the place of programs that work (1,280 to 1,340 of 256).
    """
    if device.type != "cuda":
        return {"PDL": False}
    overlaps = overlaps and can_overlap(device)
    given = {"PDL": overlaps, "num_warps": warps}
    return given | ({"launch_pdl": True} if overlaps else {}) | ({} if stages is None else {"num_stages": stages})


def row_options(device: torch.device, wide: int) -> dict[str, Any]:
    """The same for kernels of a single sequence which hold rows of ``wide`` weights."""
    return options(device, 8 if wide > 1024 else 4, overlaps=True)


def tile_options(x: Tensor, tile: Tile, *, overlaps: bool) -> dict[str, Any]:
    """The same for kernels of several sequences x (B, I), with a program's sequences and columns.

    Of a small batch a program takes all, in a tensor core's 16 rows at least, which also takes 16 columns in.
    """
    batch, width = x.shape
    rows = min(tile.rows, max(16, power_of_two(batch)))
    depth = max(16, min(tile.depth * 2 // x.element_size(), power_of_two(width)))
    launch = options(x.device, tile.warps, overlaps=overlaps, stages=tile.stages)
    return {"BM": rows, "BN": tile.columns, "BK": depth} | launch


def normalised(x: Tensor, norm: Any, *, overlaps: bool) -> Tensor:
    """norm(x), (B, D) as x; ``norm`` is a ``seqlab.ops.decoding.Norm``."""
    batch, width = x.shape
    out, wide = torch.empty_like(x), power_of_two(width)
    triton_parts.norm_kernel[(batch,)](
        x, norm.weight, norm.bias, out, norm.eps, D=width, RMS=norm.rms, HAS_BIAS=norm.bias is not None, BK=wide,
        **options(x.device, 8 if wide > 1024 else 4, overlaps=overlaps),
    )  # fmt: skip
    return out


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, norm: Any, residual: Tensor | None) -> Tensor:
    """residual + weight norm(x) + bias: x (B, I) to (B, O); ``norm`` is a ``seqlab.ops.decoding.Norm`` or None."""
    batch, width = x.shape
    outs = len(weight)
    out = x.new_empty(batch, outs)
    flags = {"INS": width, "HAS_BIAS": bias is not None, "HAS_RESIDUAL": residual is not None}
    if is_single(batch, width):
        scale, shift, eps = (norm.weight, norm.bias, norm.eps) if norm else (None, None, 0.0)
        wide = power_of_two(width)
        columns = min(max(1, ROW_LINEAR // wide), power_of_two(outs))
        triton_linear.row_linear_kernel[triton.cdiv(outs, columns), batch](
            x, scale, shift, weight, bias, residual, out, eps, outs, **flags, NORM=norm is not None,
            RMS=norm is not None and norm.rms, HAS_NORM_BIAS=shift is not None, BN=columns, BK=wide,
            **row_options(x.device, wide),
        )  # fmt: skip
        return out
    chosen = plan(x)
    if norm is not None:
        x = normalised(x, norm, overlaps=chosen.overlaps)
    wide_out = outs >= WIDE_OUT
    tile = chosen.head if wide_out else chosen.out
    launch = tile_options(x, tile, overlaps=chosen.overlaps and not wide_out)
    grid = triton.cdiv(outs, launch["BN"]), triton.cdiv(batch, launch["BM"])
    triton_linear.rows_linear_kernel[grid](x, weight, bias, residual, out, outs, batch, **flags, **launch)
    return out


def enter(x: Tensor, norm: Any, block: Any, conv_state: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From the residual stream x (B, D) to u and z (B, E), and the shares (P, B, W) of ``x_proj``'s output.

    ``norm`` and ``block`` are a ``Norm`` and a ``Block`` of ``seqlab.ops.decoding``; ``conv_state`` (B, K - 1, E) moves
    on; ``state`` (B, E, N) is what ``update`` will read.
    """
    batch, width = x.shape
    inner, taps = block.conv_weight.shape
    of_x, single, wide, chosen = len(block.x_weight), is_single(batch, width), power_of_two(width), plan(x)
    columns = max(1, ROW_ENTER // wide) if single else chosen.enter.columns
    programs = triton.cdiv(inner, columns)
    u, z = x.new_empty(batch, inner), x.new_empty(batch, inner)
    shares = torch.empty(programs, batch, of_x, dtype=torch.float32, device=x.device)
    weights = block.in_weight, conv_state, block.conv_weight, block.conv_bias, block.x_weight
    flags = {"D": width, "E": inner, "W": of_x, "K": taps, "HAS_BIAS": block.conv_bias is not None}
    if single:
        triton_enter.enter_row_kernel[2 * programs, batch](
            x, norm.weight, norm.bias, *weights, u, z, shares, norm.eps, **flags, RMS=norm.rms,
            HAS_NORM_BIAS=norm.bias is not None, BN=columns, BK=wide, BW=power_of_two(of_x),
            **row_options(x.device, wide),
        )  # fmt: skip
        return u, z, shares
    x = normalised(x, norm, overlaps=chosen.overlaps)
    following = block.dt_weight, block.A_log, state, block.out_weight
    flags |= {
        "N": state.shape[2], "R": block.dt_weight.shape[1], "BW": min(MOST_OF_X, max(16, power_of_two(of_x))),
        "AHEAD": chosen.overlaps and can_overlap(x.device),
    }  # fmt: skip
    launch = tile_options(x, chosen.enter, overlaps=chosen.enter_overlaps)
    grid = 2 * programs, triton.cdiv(batch, launch["BM"])
    triton_enter.enter_rows_kernel[grid](x, *weights, u, z, shares, batch, *following, **flags, **launch)
    return u, z, shares


def update(u: Tensor, z: Tensor, shares: Tensor, block: Any, state: Tensor) -> Tensor:
    """The gated output y (B, E) of the selective scan's step; ``state`` (B, E, N) moves on.

    Arguments as ``enter`` gives them: u and z (B, E), shares (P, B, W).
    """
    batch, inner = u.shape
    rank, size = block.dt_weight.shape[1], state.shape[2]
    chosen, single = plan(u), is_single(batch, 1)
    overlaps = single or chosen.overlaps
    if len(shares) * batch > MOST_SHARES:
        shares = summed(shares, overlaps=overlaps)
    wide = power_of_two(size)
    channels = max(8, (32 if single else chosen.channels) * 16 // max(16, wide))
    y = torch.empty_like(u)
    triton_update.update_kernel[(triton.cdiv(inner, channels), batch)](
        shares, u, z, block.dt_weight, block.dt_bias, block.A_log, block.D, state, y, P=len(shares),
        E=inner, N=size, R=rank, BE=channels, BN=wide, BR=power_of_two(rank), BP=min(128, power_of_two(len(shares))),
        **options(u.device, 8 if single else 4, overlaps=overlaps),
    )  # fmt: skip
    return y


def summed(shares: Tensor, *, overlaps: bool) -> Tensor:
    """The sum (1, B, W) of shares (P, B, W)."""
    total = shares.new_empty(1, *shares.shape[1:])
    size, block = total.numel(), 32
    triton_update.sum_kernel[(triton.cdiv(size, block),)](
        shares, total, size, len(shares), BP=min(128, power_of_two(len(shares))), BLOCK=block,
        **options(shares.device, 4, overlaps=overlaps),
    )  # fmt: skip
    return total


def likeliest(logits: Tensor) -> Tensor:
    """The column of the largest number in each row of logits (B, V): (B,) int64."""
    batch, width = logits.shape
    pieces = triton.cdiv(width, PIECE)
    best = torch.empty(batch, pieces, dtype=torch.float32, device=logits.device)
    where = torch.empty(batch, pieces, dtype=torch.int32, device=logits.device)
    token = torch.empty(batch, dtype=torch.int64, device=logits.device)
    launch = options(logits.device, 4, overlaps=is_single(batch, 1))
    triton_linear.likeliest_kernel[(pieces, batch)](
        logits, where, best, where, width, width, BLOCK=PIECE, LAST=False, **launch
    )
    triton_linear.likeliest_kernel[(1, batch)](
        best, where, best, token, pieces, width, BLOCK=power_of_two(pieces), LAST=True, **launch
    )
    return token


def runs(x: Tensor) -> bool:
    """Whether the kernels can take x, of any shape."""
    return x.dtype in DTYPES and why_unavailable(x.device, x.dtype) is None
