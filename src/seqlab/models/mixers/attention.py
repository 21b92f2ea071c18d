"""Causal multi-head self-attention (Vaswani et al. 2017), with rotary positions (Su et al. 2021) if asked.

Symbols: B batch, L length, H heads, P width of a head, D = H P model width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right

from seqlab.errors import UserError

SPARE = 256
"""Positions of room, at least, that a cache grows by."""


class Cache(NamedTuple):
    """Keys and values of the positions so far, with room for more."""

    k: Tensor  # (B, H, C, P), the first ``length`` of the C positions filled
    v: Tensor
    length: int

    def extended(self, k: Tensor, v: Tensor) -> "Cache":
        """The cache with the keys and values (B, H, L, P) of the next L positions.

        They are written into the room that there is, so a cache can be continued once: what is continued from it
        again takes the same room. It grows by an eighth, so that a position costs the same however many there are.
        """
        end = self.length + k.shape[2]
        k_buffer, v_buffer = (self._with_room(buffer, end, new) for buffer, new in ((self.k, k), (self.v, v)))
        k_buffer[:, :, self.length : end] = k
        v_buffer[:, :, self.length : end] = v
        return Cache(k_buffer, v_buffer, end)

    def _with_room(self, buffer: Tensor, needed: int, new: Tensor) -> Tensor:
        if needed <= buffer.shape[2]:
            return buffer
        capacity = needed + max(SPARE, needed // 8) if self.length else needed
        larger = new.new_empty(*new.shape[:2], capacity, new.shape[3])
        larger[:, :, : self.length] = buffer[:, :, : self.length]
        return larger

    @property
    def filled(self) -> tuple[Tensor, Tensor]:
        """Keys and values of the positions so far, each (B, H, length, P)."""
        return self.k[:, :, : self.length], self.v[:, :, : self.length]


def rotate(x: Tensor, start: int, base: float) -> Tensor:
    """Rotary position embedding: turn each pair (x_i, x_{i + P/2}) at position t by the angle t base^(-2i/P).

    Su et al. 2021, equation 34, with the halves of a head as the pairs. x is (B, H, L, P), its first position
    number ``start``; angles and products are float32, the result has x's dtype.
    """
    length, width = x.shape[-2:]
    position = torch.arange(start, start + length, device=x.device, dtype=torch.float32)
    frequency = base ** (-torch.arange(0, width, 2, device=x.device, dtype=torch.float32) / width)
    angle = position[:, None] * frequency  # (L, P/2)
    cos, sin = angle.cos(), angle.sin()
    first, second = x.float().chunk(2, dim=-1)  # (B, H, L, P/2)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def attend_last(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of the last L of S positions: q (B, H, L, P), k and v (B, H, S, P) to (B, H, L, P)."""
    length, before = q.shape[2], k.shape[2] - q.shape[2]
    if before == 0:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    if q.device.type != "cpu":
        mask = causal_lower_right(length, before + length)  # a name for it, which the GPU's kernels know
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    # The kernel for CPUs would take that mask as a tensor and work through all of it. So: what came before without a
    # mask, the new positions causally, and both joined by the sums of exponentials that they divided by.
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    old, log_sum_old = kernel(q, k[:, :, :before], v[:, :, :before])
    new, log_sum_new = kernel(q, k[:, :, before:], v[:, :, before:], is_causal=True)
    share = torch.sigmoid(log_sum_old - log_sum_new)[..., None]  # (B, H, L, 1)
    return torch.lerp(new, old, share.to(new.dtype))


class Attention(nn.Module):
    """Softmax attention over all positions up to one's own.

    Args:
        d_model: width D, divisible by ``n_heads``.
        n_heads: heads H.
        rotary: turn queries and keys by their position; without it the mixer knows no order but causality.
        rotary_base: the largest wavelength over 2 pi.
        bias: biases in the projections.
    """

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: PositiveInt,
        rotary: bool = True,
        rotary_base: PositiveFloat = 10_000.0,
        bias: bool = False,
    ):
        super().__init__()
        if d_model % n_heads:
            divisors = [str(h) for h in range(1, min(d_model, 64) + 1) if d_model % h == 0]
            raise UserError(
                "size.n_heads", n_heads, f"must divide d_model={d_model}", f"Choose one of {', '.join(divisors)}"
            )
        d_head = d_model // n_heads
        if rotary and d_head % 2:
            rule = f"rotary positions turn pairs, and d_model / n_heads = {d_head} is odd"
            raise UserError("size.n_heads", n_heads, rule, "Choose n_heads so that d_model / n_heads is even")
        self.n_heads, self.rotary, self.rotary_base = n_heads, rotary, rotary_base
        self.in_proj = nn.Linear(d_model, 3 * d_model, bias=bias)
        self.out_proj = nn.Linear(d_model, d_model, bias=bias)

    def _project(self, x: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (
            part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # (B, H, L, P)
            for part in self.in_proj(x).chunk(3, dim=-1)
        )
        if self.rotary:
            q, k = (rotate(part, start, self.rotary_base) for part in (q, k))
        return q, k, v

    def _merge(self, y: Tensor) -> Tensor:
        return self.out_proj(y.transpose(1, 2).flatten(2))  # (B, L, D)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._project(x, start=0)
        return self._merge(F.scaled_dot_product_attention(q, k, v, is_causal=True))

    def initial_state(self, batch_size: int) -> Cache:
        weight = self.in_proj.weight
        empty = weight.new_empty(batch_size, self.n_heads, 0, weight.shape[1] // self.n_heads)
        return Cache(empty, empty, 0)

    def step(self, x: Tensor, state: Cache) -> tuple[Tensor, Cache]:
        q, k, v = self._project(x[:, None], start=state.length)
        state = state.extended(k, v)
        return self._merge(F.scaled_dot_product_attention(q, *state.filled))[:, 0], state

    def prefill(self, x: Tensor, state: Cache) -> tuple[Tensor, Cache]:
        q, k, v = self._project(x, start=state.length)
        state = state.extended(k, v)
        return self._merge(attend_last(q, *state.filled)), state
