"""Causal multi-head self-attention (Vaswani et al. 2017), with rotary positions (Su et al. 2021) and a sliding window
(Beltagy et al. 2020) if asked.

Symbols: B batch, L length, H heads, P width of a head, D = H P model width, W window.
"""

import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from seqlab.errors import UserError
from seqlab.models.mixers.cache import Cache, WindowCache
from seqlab.models.mixers.rotary import rotate
from seqlab.models.mixers.softmax import attend_last, attend_window


class Attention(nn.Module):
    """Softmax attention over all positions up to one's own, or over the last W of them.

    Args:
        d_model: width D, divisible by ``n_heads``.
        n_heads: heads H.
        rotary: turn queries and keys by their position; without it the mixer knows no order but causality.
        rotary_base: the largest wavelength over 2 pi.
        bias: biases in the projections.
        window: W, how many positions one sees, its own among them; null is all. Work is then O(L W), the cache O(W).
    """

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: PositiveInt,
        rotary: bool = True,
        rotary_base: PositiveFloat = 10_000.0,
        bias: bool = False,
        window: PositiveInt | None = None,
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
        self.n_heads, self.rotary, self.rotary_base, self.window = n_heads, rotary, rotary_base, window
        self.in_proj = nn.Linear(d_model, 3 * d_model, bias=bias)
        self.out_proj = nn.Linear(d_model, d_model, bias=bias)

    def _project(self, x: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.in_proj(x).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, H, L, P)
        if not self.rotary:
            return tuple(qkv)
        return *rotate(qkv[:2], start, self.rotary_base), qkv[2]

    def _merge(self, y: Tensor) -> Tensor:
        return self.out_proj(y.transpose(1, 2).flatten(2))  # (B, L, D)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._project(x, start=0)
        if self.window is None:
            return self._merge(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return self._merge(attend_window(q, k, v, self.window))

    def initial_state(self, batch_size: int) -> Cache | WindowCache:
        weight = self.in_proj.weight
        empty = weight.new_empty(batch_size, self.n_heads, 0, weight.shape[1] // self.n_heads)
        return Cache(empty, empty, 0) if self.window is None else WindowCache(empty, empty, 0, self.window)

    def step(self, x: Tensor, state: Cache | WindowCache) -> tuple[Tensor, Cache | WindowCache]:
        q, k, v = self._project(x[:, None], start=state.length)
        state = state.extended(k, v)
        return self._merge(F.scaled_dot_product_attention(q, *state.filled))[:, 0], state

    def prefill(self, x: Tensor, state: Cache | WindowCache) -> tuple[Tensor, Cache | WindowCache]:
        q, k, v = self._project(x, start=state.length)
        if self.window is None:
            state = state.extended(k, v)
            return self._merge(attend_last(q, *state.filled)), state
        y = attend_window(q, *state.before(k, v), self.window)
        return self._merge(y), state.extended(k, v)
