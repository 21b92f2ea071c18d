"""Causal multi-head self-attention (Vaswani et al. 2017, section 3.2).

Optional are rotary positions (Su et al. 2021), a sliding window (Beltagy et al. 2020) and keys and values that several
heads share (Ainslie et al. 2023, arXiv:2305.13245).

Symbols: B batch, L length, H heads, K heads of keys and values, P width of a head, D model width, E = H P inner width,
W window.
"""

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from seqlab.errors import UserError
from seqlab.models.linear import Linear
from seqlab.models.mixers.cache import Cache, LastWindow
from seqlab.models.mixers.rotary import rotate
from seqlab.models.mixers.softmax import attend_after, attend_last, attend_window, attend_within


class Attention(nn.Module):
    """Softmax attention of each position over itself and all earlier ones, or over the last W of them.

    Args:
        d_model: width D.
        n_heads: heads H, a divisor of E.
        rotary: rotate queries and keys by their position; otherwise order enters only through the causal mask.
        rotary_base: base of the rotary frequencies.
        rotary_width: the first channels of each head that are rotated, an even number; null for all P.
        rotary_divisors: what the frequency of each rotated pair is divided by, as in models whose context was
            extended; null for 1.
        rotary_factor: what rotated channels of queries and keys are multiplied by, as in YaRN (arXiv:2309.00071).
        bias: biases in the projections.
        out_bias: a bias in the output's projection; null for as ``bias`` says.
        window: W, how many positions one attends to, itself included; null for all. Work is then O(L W), the cache
            O(W).
        expand: the ratio E / D; half of the width is Falcon-H1's.
        d_inner: inner width E of the queries; null for expand * D.
        n_kv_heads: heads K of keys and values, a divisor of H, each shared by H / K neighbouring heads of queries; null
            for H. The cache is K / H as large.

    Raises:
        UserError: H does not divide E, K does not divide H, the rotated width is odd or above P, or the divisors are
            not as many as its pairs.
    """

    rounds_input = True

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: PositiveInt,
        rotary: bool = True,
        rotary_base: PositiveFloat = 10_000.0,
        rotary_width: PositiveInt | None = None,
        rotary_divisors: list[PositiveFloat] | None = None,
        rotary_factor: PositiveFloat = 1.0,
        bias: bool = False,
        out_bias: bool | None = None,
        window: PositiveInt | None = None,
        expand: PositiveFloat = 1.0,
        d_inner: PositiveInt | None = None,
        n_kv_heads: PositiveInt | None = None,
    ):
        super().__init__()
        if d_inner is not None:
            width = "d_inner"
        else:
            width, d_inner = "d_model" if expand == 1 else "expand * d_model", int(expand * d_model)
        if d_inner % n_heads:
            divisors = [str(h) for h in range(1, min(d_inner, 64) + 1) if d_inner % h == 0]
            raise UserError(
                "n_heads", n_heads, f"must divide {width}={d_inner}", f"Choose one of {', '.join(divisors)}"
            )
        self.d_head = d_inner // n_heads
        if rotary and self.d_head % 2:
            rule = f"rotary positions turn pairs, and {width} / n_heads = {self.d_head} is odd"
            raise UserError("n_heads", n_heads, rule, f"Choose n_heads so that {width} / n_heads is even")
        self.n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        if n_heads % self.n_kv_heads:
            divisors = [str(h) for h in range(1, n_heads + 1) if n_heads % h == 0]
            rule = f"must divide n_heads={n_heads}"
            raise UserError("n_kv_heads", n_kv_heads, rule, f"Choose one of {', '.join(divisors)}")
        self.d_inner, self.n_heads, self.window = d_inner, n_heads, window
        self.rotary, self.rotary_base, self.rotary_factor = rotary, rotary_base, rotary_factor
        self.rotary_width, self.rotary_divisors = rotary_width or self.d_head, tuple(rotary_divisors or ())
        if rotary_width is not None and (rotary_width % 2 or rotary_width > self.d_head):
            rule = f"must be an even number up to {width} / n_heads = {self.d_head}"
            raise UserError("rotary_width", rotary_width, rule, "Choose another, or null for all channels of a head")
        if rotary_divisors and len(rotary_divisors) != self.rotary_width // 2:
            rule = f"must be as many as the pairs that are rotated, {self.rotary_width // 2}"
            raise UserError("rotary_divisors", rotary_divisors, rule, "Give one for each pair, or null")
        self.sharpness = 1.0  # a factor on the logits, which a parametrisation may set
        self.in_proj = Linear(d_model, d_inner + 2 * self.n_kv_heads * self.d_head, bias=bias)
        self.out_proj = Linear(d_inner, d_model, bias=bias if out_bias is None else out_bias)

    def _project(self, x: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, L, P), keys and values (B, K, L, P) of x (B, L, D), whose first position is ``start``."""
        qk, v = self._heads(x)
        q, k = self._rotate(qk, start).split((self.n_heads, self.n_kv_heads), dim=1)
        return (q if self.sharpness == 1 else q * self.sharpness), k, v

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries with keys (B, H + K, L, P), not rotated, and values (B, K, L, P)."""
        heads = self.in_proj(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2)  # (B, H + 2 K, L, P)
        return heads.split((self.n_heads + self.n_kv_heads, self.n_kv_heads), dim=1)

    def _rotate(self, qk: Tensor, start: int) -> Tensor:
        """Queries or keys (..., L, P), rotated by their positions from ``start`` on if any are."""
        if not self.rotary:
            return qk
        frequencies = self.rotary_base, self.rotary_divisors, self.rotary_factor
        if self.rotary_width == self.d_head:
            return rotate(qk, start, *frequencies)
        turned, kept = qk.split((self.rotary_width, self.d_head - self.rotary_width), dim=-1)
        return torch.cat((rotate(turned, start, *frequencies), kept), dim=-1)

    def _for_each_head(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, K, L, P) for each head of the queries, (B, H, L, P)."""
        times = self.n_heads // self.n_kv_heads
        return (k, v) if times == 1 else (k.repeat_interleave(times, dim=1), v.repeat_interleave(times, dim=1))

    def _merge(self, y: Tensor) -> Tensor:
        return self.out_proj(y.transpose(1, 2).flatten(2))  # (B, L, D)

    def forward(self, x: Tensor, seq_idx: Tensor | None = None) -> Tensor:
        """(B, L, D) to (B, L, D); ``seq_idx`` (B, L) as ``Packs`` has it."""
        q, k, v = self._project(x, start=0)
        k, v = self._for_each_head(k, v)
        if seq_idx is not None:
            return self._merge(attend_within(q, k, v, seq_idx, self.window))
        if self.window is None:
            return self._merge(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return self._merge(attend_window(q, k, v, self.window))

    def initial_state(self, batch_size: int) -> Cache:
        """An empty cache of keys and values, (B, K, 0, P) each."""
        empty = self.in_proj.weight.new_empty(batch_size, self.n_kv_heads, 0, self.d_head)
        return Cache(empty, empty, 0, self.window)

    def step(self, x: Tensor, state: Cache) -> tuple[Tensor, Cache]:
        """(B, D) to (B, D), and the cache with one more position."""
        q, k, v = self._project(x[:, None], start=state.length)
        state = state.extended(k, v)
        together = q.reshape(len(x), self.n_kv_heads, -1, self.d_head)  # heads that share keys, as if positions
        y = F.scaled_dot_product_attention(together, *state.filled)  # (B, K, H / K, P)
        return self._merge(y.reshape(q.shape))[:, 0], state

    def carried_state(self, batch_size: int, length: int) -> LastWindow:
        """The window before, of which there is nothing yet: ``length`` positions, or the W that one attends to."""
        weight, most = self.in_proj.weight, length if self.window is None else self.window
        k, v = (weight.new_zeros(batch_size, self.n_kv_heads, most, self.d_head) for _ in range(2))
        return LastWindow(k, v, weight.new_zeros(batch_size, dtype=torch.int64))

    def _follow(self, x: Tensor, state: LastWindow) -> tuple[Tensor, LastWindow]:
        """(B, L, D) to (B, L, D), and the window for the next, whose positions count from its first one again."""
        qk, v = self._heads(x)
        q, k = qk.split((self.n_heads, self.n_kv_heads), dim=1)
        k, v, after = state.followed_by(k, v)  # (B, K, M + L, P)
        q, k = self._rotate(q, k.shape[2] - q.shape[2]), self._rotate(k, 0)
        q = q if self.sharpness == 1 else q * self.sharpness
        return self._merge(attend_after(q, *self._for_each_head(k, v), state.length, self.window)), after

    def prefill(self, x: Tensor, state: Cache | LastWindow) -> tuple[Tensor, Cache | LastWindow]:
        """(B, L, D) to (B, L, D), and the cache with L more positions."""
        if isinstance(state, LastWindow):
            return self._follow(x, state)
        q, k, v = self._project(x, start=state.length)
        if self.window is None:
            state = state.extended(k, v)
            return self._merge(attend_last(q, *self._for_each_head(*state.filled))), state
        y = attend_window(q, *self._for_each_head(*state.before(k, v)), self.window)
        return self._merge(y), state.extended(k, v)
