"""Launches of ``triton_kernels.py``: how the work of one position is cut, by the batch and the widths."""

from typing import Any

import torch
from torch import Tensor

from seqlab.ops.triton_support import DTYPES
from seqlab.ops.triton_support import why_unavailable as why_unavailable

try:
    import triton

    from seqlab.ops.decoding import triton_kernels as kernels
except ImportError:  # a torch wheel for CPUs may come without it
    triton = None

TILE = 16_384
"""Weights that a program of a single row holds in registers."""

ROW_WARPS, UPDATE_WARPS, FEWEST_CHANNELS = 8, 4, 16
ROWS_BK, ROWS_STAGES, HEAD_BN, ENTER_BN = 64, 4, 128, 16
LINEAR_BM, LINEAR_BK, LINEAR_STAGES, ENTER_BM = 32, 128, 4, 64

WIDEST_ROW = 4096
"""Columns up to which a program holds a whole row; beyond, rows go through the tensor cores in pieces."""

PROGRAMS = 192
"""About so many programs update states at a time: between one and two on each multiprocessor of a large GPU."""

PIECE = 2048
"""Numbers of a row that one program takes to find the largest."""

MOST_SHARES = 16 * 128
"""Programs' shares, times sequences, up to which each program that needs their sum makes it itself."""


def power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def options(device: torch.device, warps: int, *, overlaps: bool = False) -> dict[str, Any]:
    """How a kernel is launched; ``overlaps``: before its predecessor has ended, which needs compute capability 9.

    That pays for kernels of single sequences (366 to 276 us a token of 24 layers on an H200), and costs those of many:
    programs that wait take the place of programs that work (702 to 837 us).
    """
    if device.type != "cuda":
        return {"PDL": False}
    overlaps = overlaps and torch.cuda.get_device_capability(device)[0] >= 9
    return {"PDL": overlaps, "num_warps": warps} | ({"launch_pdl": True} if overlaps else {})


def tile(batch: int) -> int:
    """Sequences of a program: at least the 16 rows of a tensor core's tile."""
    return min(64, max(16, power_of_two(batch)))


def is_single(batch: int, width: int) -> bool:
    """Whether each sequence is best taken by itself."""
    return batch <= 2 and width <= WIDEST_ROW


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, norm: Any, residual: Tensor | None) -> Tensor:
    """``residual + weight norm(x) + bias``: x (B, I) to (B, O); norm as ``seqlab.ops.decoding.Norm``, or None."""
    batch, width = x.shape
    outs = len(weight)
    out = x.new_empty(batch, outs)
    tensors = x, norm.weight if norm else None, norm.bias if norm else None, weight, bias, residual, out
    flags = {
        "I": width, "NORM": norm is not None, "RMS": norm is not None and norm.rms,
        "HAS_NORM_BIAS": norm is not None and norm.bias is not None, "HAS_BIAS": bias is not None,
        "HAS_RESIDUAL": residual is not None,
    }  # fmt: skip
    eps = norm.eps if norm else 0.0
    if is_single(batch, width):
        wide = power_of_two(width)
        columns = min(max(1, TILE // wide), power_of_two(outs))
        kernels.row_linear_kernel[(triton.cdiv(outs, columns), batch)](
            *tensors, eps, outs, **flags, BN=columns, BK=wide, **options(x.device, ROW_WARPS, overlaps=True)
        )
    else:
        wide_out = outs >= 8192
        rows, columns = min(tile(batch), 64 if wide_out else LINEAR_BM), HEAD_BN if wide_out else 16
        depth, stages = (ROWS_BK, ROWS_STAGES) if norm else (LINEAR_BK, LINEAR_STAGES)
        kernels.rows_linear_kernel[(triton.cdiv(outs, columns), triton.cdiv(batch, rows))](
            *tensors, eps, outs, batch, **flags, BM=rows, BN=columns, BK=min(depth, max(16, power_of_two(width))),
            num_stages=stages, **options(x.device, 4),
        )  # fmt: skip
    return out


def enter(x: Tensor, norm: Any, block: Any, conv_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From the residual stream x (B, D) to u and z (B, E), and the shares (P, B, W) of ``x_proj``'s output."""
    batch, width = x.shape
    inner, columns_of_x = block.conv_weight.shape[0], block.x_weight.shape[0]
    u, z = x.new_empty(batch, inner), x.new_empty(batch, inner)
    single = is_single(batch, width)
    wide = power_of_two(width)
    columns = max(1, TILE // wide) if single else ENTER_BN
    programs = triton.cdiv(inner, columns)
    shares = torch.empty(programs, batch, columns_of_x, dtype=torch.float32, device=x.device)
    tensors = (
        x, norm.weight, norm.bias, block.in_weight, conv_state, block.conv_weight, block.conv_bias, block.x_weight,
        u, z, shares, norm.eps,
    )  # fmt: skip
    flags = {
        "D": width, "E": inner, "W": columns_of_x, "K": block.conv_weight.shape[1],
        "KP": power_of_two(block.conv_weight.shape[1]), "RMS": norm.rms,
        "HAS_NORM_BIAS": norm.bias is not None, "HAS_BIAS": block.conv_bias is not None, "BN": columns,
        "BW": max(16, power_of_two(columns_of_x)),
    }  # fmt: skip
    if single:
        kernels.enter_row_kernel[(programs, batch)](*tensors, **flags, BK=wide, **options(x.device, ROW_WARPS, overlaps=True))
    else:
        rows = min(tile(batch), ENTER_BM)
        kernels.enter_rows_kernel[(programs, triton.cdiv(batch, rows))](
            *tensors, batch, **flags, BM=rows, BK=min(ROWS_BK, max(16, wide)), num_stages=ROWS_STAGES, **options(x.device, 4)
        )
    return u, z, shares


def update(u: Tensor, z: Tensor, shares: Tensor, block: Any, state: Tensor) -> Tensor:
    """The gated output y (B, E) of the selective scan's step; ``state`` (B, E, N) moves on."""
    batch, inner = u.shape
    rank, size = block.dt_weight.shape[1], state.shape[2]
    if len(shares) * batch > MOST_SHARES:
        shares = summed(shares)
    channels = min(512, max(FEWEST_CHANNELS, power_of_two(triton.cdiv(inner * batch, PROGRAMS))))
    y = torch.empty_like(u)
    kernels.update_kernel[(triton.cdiv(inner, channels), batch)](
        shares, u, z, block.dt_weight, block.dt_bias, block.A_log, block.D, state, y, len(shares),
        E=inner, N=size, R=rank, BE=channels, BN=power_of_two(size), BR=power_of_two(rank),
        BP=min(128, power_of_two(len(shares))), **options(u.device, 8 if channels >= 256 else UPDATE_WARPS, overlaps=batch <= 2),
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
    """The place of the largest in each row of logits (B, V): (B,) int64."""
    batch, width = logits.shape
    pieces = triton.cdiv(width, PIECE)
    best = torch.empty(batch, pieces, dtype=torch.float32, device=logits.device)
    where = torch.empty(batch, pieces, dtype=torch.int32, device=logits.device)
    token = torch.empty(batch, dtype=torch.int64, device=logits.device)
    launch = options(logits.device, 4, overlaps=batch == 1)
    kernels.likeliest_kernel[(pieces, batch)](
        logits, where, best, where, width, width, BLOCK=PIECE, LAST=False, **launch
    )
    kernels.likeliest_kernel[(1, batch)](
        best, where, best, token, pieces, width, BLOCK=power_of_two(pieces), LAST=True, **launch
    )
    return token


def runs(x: Tensor) -> bool:
    """Whether the kernels can take x."""
    return x.dtype in DTYPES and why_unavailable(x.device, x.dtype) is None
