"""Softmax attention by PyTorch's fused kernels: over all positions, or over a sliding window (Beltagy et al. 2020).

Symbols: B batch, L queries, S keys (the queries are at the last L of these positions), H heads, P width of a head,
W window: a position attends to itself and the W - 1 before it; T positions of a block, n blocks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_BLOCK = 64
"""Least number of queries in a block: a narrow window would leave a kernel too little to do."""

PAIRS = 2**29
"""Pairs of query and key, over the batch and all heads, in one call when a prompt is read: on a CPU, where that takes a
second or two in which Python handles no signal; on a GPU where the scores of all are held, 2 GiB in float32."""


def attend_last(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of the last L of S positions: q (B, H, L, P), k and v (B, H, S, P) to (B, H, L, P).

    For inference only: on a CPU the gradients are wrong where S > L.
    """
    length, before = q.shape[2], k.shape[2] - q.shape[2]
    if _holds_scores(q) or (q.device.type == "cpu" and before):
        size = max(SMALLEST_BLOCK, PAIRS // (q.shape[0] * q.shape[1] * k.shape[2]))
        if size < length:
            ends = [min(start + size, length) + before for start in range(0, length, size)]
            parts = zip(q.split(size, dim=2), ends, strict=True)
            return torch.cat([attend_last(one, k[:, :, :end], v[:, :, :end]) for one, end in parts], dim=2)
    if before == 0:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    if q.device.type != "cpu":
        from torch.nn.attention.bias import causal_lower_right  # imports torch's compiler: a second of every start

        mask = causal_lower_right(length, before + length)  # symbolic: GPU kernels need no tensor for it
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    # On a CPU that mask would be a dense tensor. Instead: attention to the earlier positions without a mask, causal
    # attention to the new ones, and both combined by their log-sum-exps.
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    old, log_sum_old = kernel(q, k[:, :, :before], v[:, :, :before])
    new, log_sum_new = kernel(q, k[:, :, before:], v[:, :, before:], is_causal=True)
    share = torch.sigmoid(log_sum_old - log_sum_new)[..., None]  # (B, H, L, 1)
    return torch.lerp(new, old, share.to(new.dtype))


def _holds_scores(q: Tensor) -> bool:
    """Whether attention of q (B, H, L, P) on a GPU may hold the scores of all pairs: no fused kernel is sure to run."""
    return q.is_cuda and (q.dtype == torch.float64 or q.shape[-1] % 8 != 0)


def attend_window(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Attention of the last L of S positions, each to the last W up to its own, in O(L W) work and memory.

    The queries are cut into blocks of T >= W, so that a block attends only to itself and the W positions before it. All
    blocks but the first have the same mask and are computed in one call.

    Args:
        q: (B, H, L, P).
        k, v: (B, H, S, P).
        window: W, at least 1.

    Returns:
        (B, H, L, P).
    """
    length, before = q.shape[2], k.shape[2] - q.shape[2]
    if k.shape[2] <= window:
        return attend_last(q, k, v)
    if before > window:
        k, v, before = k[:, :, before - window :], v[:, :, before - window :], window
    block = max(window, SMALLEST_BLOCK)
    band = torch.ones(block, window + block, dtype=torch.bool, device=q.device)
    band = band.triu(1).tril(window)  # (T, W + T): query r of a block attends to keys r + 1 .. r + W
    head = min(block, length)
    mask = band[:head, window - before : window + head]  # (head, before + head)
    first = F.scaled_dot_product_attention(
        q[:, :, :head], k[:, :, : before + head], v[:, :, : before + head], attn_mask=mask
    )
    if length == head:
        return first
    rest = attend_blocks(q[:, :, head:], k[:, :, before + head - window :], v[:, :, before + head - window :], band)
    return torch.cat((first, rest), dim=2)


def attend_after(q: Tensor, k: Tensor, v: Tensor, length: Tensor, window: int | None) -> Tensor:
    """Attention of L positions after M others, of which there may be fewer.

    In blocks of M positions, each of which attends to those of its block up to itself and to the block before
    (Dai et al. 2019, "Transformer-XL", arXiv:1901.02860, section 3.2); with a window to the last W up to itself.

    Args:
        q: (B, H, L, P).
        k, v: (B, H, M + L, P).
        length: (B,) how many of the M there are: the last ones.
        window: W, which is M; None for blocks.

    Returns:
        (B, H, L, P).
    """
    before = k.shape[2] - q.shape[2]
    block = before if window is None else max(window, SMALLEST_BLOCK)
    mask = torch.ones(block, before + block, dtype=torch.bool, device=q.device).tril(before)  # (T, M + T)
    mask = mask if window is None else mask.triu(1)
    head = min(block, q.shape[2])
    there = torch.arange(before, device=q.device) >= before - length[:, None]  # (B, M)
    there = F.pad(there, (0, head), value=True)[:, None, None]  # (B, 1, 1, M + head)
    end = before + head
    first = F.scaled_dot_product_attention(
        q[:, :, :head], k[:, :, :end], v[:, :, :end], attn_mask=mask[:head, :end] & there
    )
    if q.shape[2] == head:
        return first
    return torch.cat((first, attend_blocks(q[:, :, head:], k[:, :, head:], v[:, :, head:], mask)), dim=2)


def attend_within(q: Tensor, k: Tensor, v: Tensor, seq_idx: Tensor, window: int | None) -> Tensor:
    """Causal attention within packed sequences, under a mask of all pairs: (B, H, L, P) each, to that.

    Args:
        q, k, v: of the same positions.
        seq_idx: (B, L) integers, which never fall; positions of one sequence share theirs.
        window: W; None for all.
    """
    place = torch.arange(q.shape[2], device=q.device)
    back = place[:, None] - place  # (L, L)
    seen = (back >= 0) if window is None else (back >= 0) & (back < window)
    mask = seen & (seq_idx[:, :, None] == seq_idx[:, None])  # (B, L, L)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None])


def attend_blocks(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention in blocks of T positions under one mask: q (B, H, L, P), k and v (B, H, W + L, P), mask (T, W + T)."""
    batch, _, length, _ = q.shape
    block, seen = mask.shape
    missing = -length % block
    q, k, v = (F.pad(part, (0, 0, 0, missing)) for part in (q, k, v))
    q = q.unflatten(2, (-1, block)).transpose(1, 2).flatten(0, 1)  # (B n, H, T, P)
    k, v = (
        part.unfold(2, seen, block).permute(0, 2, 1, 4, 3).flatten(0, 1)  # (B n, H, W + T, P)
        for part in (k, v)
    )
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    y = y.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)  # (B, H, n T, P)
    return y[:, :, :length]
