"""The selective scan with the name, arguments and layout of mamba_ssm, for code that was written for it.

Symbols: Bt batch, L length, D channels (d_inner), N state size (d_state), G groups of channels, which share B and C.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seqlab.ops.contract import accumulation_dtype, check_dtypes, check_given, check_shapes, checked
from seqlab.ops.selective_scan import selective_scan

SHAPES = {
    "u": ("batch", "d_inner", "length"),
    "delta": ("batch", "d_inner", "length"),
    "A": ("d_inner", "d_state"),
    "D": ("d_inner",),
    "z": ("batch", "d_inner", "length"),
    "delta_bias": ("d_inner",),
}
MAPS = {
    2: ("d_inner", "d_state"),
    3: ("batch", "d_state", "length"),
    4: ("batch", "groups", "d_state", "length"),
}
"""The shapes that B and C may have, by their number of axes."""


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    cu_seqlens: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """``seqlab.ops.selective_scan`` as ``mamba_ssm.ops.selective_scan_interface.selective_scan_fn`` is called.

    Equations, dtypes and backends are those of ``selective_scan`` (arXiv:2312.00752, Algorithm 2). Unlike in mamba_ssm,
    the last state has a gradient, and no argument has to be contiguous or float32. Complex parameters are refused.

    Args:
        u: (batch, d_inner, length) the input.
        delta: (batch, d_inner, length) step sizes, before ``delta_bias`` and softplus.
        A: (d_inner, d_state) the diagonal of each channel's state matrix, real.
        B: (batch, d_state, length) the input map; or (batch, groups, d_state, length), of which each serves
            d_inner / groups neighbouring channels, by one scan for each group; or (d_inner, d_state), constant over
            positions, which takes d_state times the memory of u.
        C: the output map, as B; of three and of four axes may be mixed.
        D: (d_inner,) the skip.
        z: (batch, d_inner, length) the gate.
        delta_bias: (d_inner,) added to delta.
        delta_softplus: whether the step sizes are softplus(delta + delta_bias).
        return_last_state: whether to return the state after the last position too.
        cu_seqlens: (sequences + 1,) integers: where packed sequences begin, from 0, and the length; in each row of the
            batch the same.
        backend: as for ``selective_scan``.

    Returns:
        (batch, d_inner, length) in u's dtype, contiguous; or that and the last state (batch, d_inner, d_state), in
        float32 (float64 if u is).

    Raises:
        ValueError: a shape, dtype or device that does not fit, or a backend that does not exist or cannot run.
    """
    tensors = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    checked(_check, tensors)
    seq_idx = None
    if cu_seqlens is not None:
        positions = torch.arange(u.shape[2], device=u.device, dtype=cu_seqlens.dtype)
        seq_idx = torch.searchsorted(cu_seqlens[1:-1].contiguous(), positions, right=True).expand(len(u), -1)  # (Bt, L)
    scan = partial(
        selective_scan, delta_softplus=delta_softplus, return_final_state=True, seq_idx=seq_idx, backend=backend
    )
    over_time = [None if tensor is None else tensor.transpose(1, 2) for tensor in (u, delta, z)]  # (Bt, L, D)
    constant = 2 in (B.dim(), C.dim())
    y, state = (_of_states if constant else _of_groups)(scan, *over_time, A, B, C, D, delta_bias)
    y = y.transpose(1, 2).contiguous()  # (Bt, D, L)
    return (y, state) if return_last_state else y


def _check(tensors: dict[str, Tensor | None]) -> str:
    """Nothing to choose.

    Raises:
        ValueError: an argument does not fit.
    """
    check_given(tensors, "u", "delta", "A", "B", "C")
    check_dtypes(tensors)
    sizes: dict[str, int] = {}
    check_shapes(SHAPES, tensors, sizes)
    for name in ("B", "C"):
        axes = MAPS.get(tensors[name].dim())
        if axes is None:
            choices = " or ".join(f"({', '.join(axes)})" for axes in MAPS.values())
            raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, expected {choices}")
        check_shapes({name: axes}, tensors, sizes)
    if sizes["d_inner"] % sizes.get("groups", 1):
        raise ValueError(f"B and C have {sizes['groups']} groups, which do not divide d_inner = {sizes['d_inner']}")
    return ""


def _of_groups(
    scan: Any,
    u: Tensor,
    delta: Tensor,
    z: Tensor | None,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y (Bt, L, D) and the last state (Bt, D, N): a scan for each group, as the channels of one share B and C."""
    groups = max(map_.shape[1] if map_.dim() == 4 else 1 for map_ in (B, C))

    def split(tensor: Tensor | None, axis: int) -> tuple[Tensor | None, ...]:
        return (tensor,) * groups if tensor is None or groups == 1 else tensor.chunk(groups, axis)

    def maps(tensor: Tensor) -> tuple[Tensor, ...]:
        tensor = tensor.transpose(-2, -1)  # (Bt, L, N) or (Bt, G, L, N)
        return tensor.unbind(1) if tensor.dim() == 4 else (tensor,) * groups

    parts = split(u, 2), split(delta, 2), split(A, 0), maps(B), maps(C), split(D, 0), split(z, 2), split(delta_bias, 0)
    scanned = [scan(*part) for part in zip(*parts, strict=True)]
    if groups == 1:
        return scanned[0]
    ys, states = zip(*scanned, strict=True)
    return torch.cat(ys, dim=2), torch.cat(states, dim=1)


def _of_states(
    scan: Any,
    u: Tensor,
    delta: Tensor,
    z: Tensor | None,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y (Bt, L, D) and the last state (Bt, D, N), where B or C is constant and so differs between channels.

    Each number of a state is scanned as a channel whose state is one number, with B u for its input.
    """
    (d_inner, d_state), dtype = A.shape, accumulation_dtype(u.dtype)

    def of_channels(map_: Tensor) -> Tensor:  # (D, N) or (Bt, L, D, N)
        if map_.dim() == 3:
            map_ = map_[:, None]  # one group
        if map_.dim() == 4:
            map_ = map_.permute(0, 3, 1, 2).repeat_interleave(d_inner // map_.shape[1], dim=2)
        return map_.to(dtype)

    drive = u.to(dtype)[..., None] * of_channels(B)  # (Bt, L, D, N)
    one = u.new_ones((), dtype=dtype).expand(*u.shape[:2], 1)  # (Bt, L, 1)
    bias = None if delta_bias is None else delta_bias.repeat_interleave(d_state)
    repeated = delta.repeat_interleave(d_state, dim=2)  # (Bt, L, D N)
    h, state = scan(drive.flatten(2), repeated, A.reshape(-1, 1), one, one, None, None, bias)
    y = (h.unflatten(2, (d_inner, d_state)) * of_channels(C)).sum(dim=3)  # (Bt, L, D)
    if D is not None:
        y = y + D.to(dtype) * u
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(u.dtype), state.view(-1, d_inner, d_state)
