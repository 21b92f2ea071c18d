"""State-space duality in plain PyTorch, as matrix products over chunks of positions, with its gradient written out.

Inside a chunk the scan is a masked attention (the paper's dual form), between chunks it is the recurrence, one step per
chunk (section 6, figure 5). Exponents are differences of sums of dt A; the sums are in float64, because step sizes of
all magnitudes may occur in one chunk. Nothing is divided by a decay. Nothing passes from one packed sequence to
another: such terms are replaced by 0, never multiplied by 0, so that infinity and NaN stay in their sequence
(``_Packing``). The gradient of each dt A is a sum over the pairs of positions on either side of it, never a difference
of such sums, which would leave a remainder where every decay underflows. The backward pass recomputes everything; the
largest tensors are the squares (T, T) of positions and the states (P, N), for each chunk and head.

Symbols (arXiv:2405.21060; i and j positions in a chunk):

    Bt, K, T      batch, chunks, positions in a chunk
    H, P, G, R    heads, channels of a head, groups, heads of a group (H = G R)
    N             state size
    dt            (Bt, K, T, H) step sizes, after bias and softplus; 0 past the end
    u             (Bt, K, T, H, P) dt x
    s             (Bt, K, H, T) float64, sum of dt A from the chunk's start up to and with a position
    M             (Bt, K, H, T, T) decays exp(s_i - s_j) from j to i, 0 for j > i
    h             (Bt, K, H, P, N) state before a chunk
    g             (Bt, K, H, P, N) gradient of the loss w.r.t. the state after a chunk
    d...          gradient of the loss w.r.t. what follows the d
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqlab.ops.contract import accumulation_dtype
from seqlab.ops.ssd.interface import Gradients, Inputs

CHUNK, SHORTEST_CHUNK = 64, 32
"""Bounds of the chunk length T, which between them is sqrt(P N): the squares of positions inside chunks then cost about
as much as the states between chunks. On a CPU (P of 32 to 128, N 64) 16 and 128 took up to twice as long."""

MOST_STEPS = 64
"""Most chunks that are processed one after another, 2 or more; beyond, groups of chunks are processed in parallel."""

NEGLIGIBLE = -70.0
"""exp of less is set to 0: numbers near float32's smallest, 1e-38, multiply up to ten times slower on a CPU."""

FARTHEST = 2000.0
"""exp of minus it is 0 in float64 too. In a chunk's sums, larger steps would cost later ones their digits."""


def why_unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """None: plain PyTorch runs everywhere."""
    return None


class _Packing(NamedTuple):
    """Which positions of a chunk belong to one sequence, for packed sequences.

    A matrix product over positions includes 0 times the values of other sequences, NaN where these are not finite. Such
    rows are therefore left out, and the results of their own sequence that depend on them are set to NaN.
    """

    number: Tensor  # (Bt, K, T) of each position's sequence, 0 for that of the state before the chunk

    @property
    def last(self) -> Tensor:
        """(Bt, K, 1) the number of each chunk's last position."""
        return self.number[:, :, -1:]

    @property
    def goes_on(self) -> Tensor:
        """(Bt, K) whether no sequence begins in the chunk."""
        return self.number[:, :, -1] == 0

    def from_state(self, values: Tensor) -> Tensor:
        """values (Bt, K, T, ...), 0 where the state before the chunk is of another sequence."""
        return _where(self.number == 0, values)

    def to_state(self, values: Tensor) -> Tensor:
        """values (Bt, K, T, ...), 0 where the state after the chunk is of another sequence."""
        return _where(self.number == self.last, values)

    def pairs_(self, squares: Tensor) -> Tensor:
        """squares (Bt, K, H, T, T), 0 where the two positions are of different sequences; in place."""
        return squares.masked_fill_((self.number.unsqueeze(3) != self.number.unsqueeze(2)).unsqueeze(2), 0)

    def product(self, squares: Tensor, rows: Tensor, back: bool) -> Tensor:
        """squares (Bt, K, H, T, T) times rows (Bt, K, H, T, X), where a row contributes to itself and later ones.

        With ``back`` to itself and earlier ones.
        """
        finite = rows.isfinite()
        product = squares @ rows.where(finite, 0)
        number = self.number[:, :, None, :, None]  # (Bt, K, 1, T, 1)
        if back:
            met = number.where(~finite, rows.shape[3] + 1).flip(3).cummin(dim=3).values.flip(3) == number
        else:
            met = number.where(~finite, -1).cummax(dim=3).values == number
        return product.masked_fill_(met, math.nan)


def _where(inside: Tensor, values: Tensor) -> Tensor:
    return values.where(inside[(...,) + (None,) * (values.dim() - inside.dim())], 0)


class _Chunks(NamedTuple):
    """The arguments in chunks, in the accumulation dtype."""

    x: Tensor  # (Bt, K, T, H, P)
    raw: Tensor  # (Bt, K, T, H) dt + bias, before softplus
    dt: Tensor  # (Bt, K, T, H)
    u: Tensor  # (Bt, K, T, H, P)
    B: Tensor  # (Bt, K, G, T, N)
    C: Tensor  # (Bt, K, G, T, N)
    s: Tensor  # (Bt, K, H, T) float64
    from_start: Tensor  # (Bt, K, T, H) exp(s_i), what is left of h at i
    to_end: Tensor  # (Bt, K, T, H) exp(s_T - s_j), what is left of position j at the end
    packing: _Packing | None

    @property
    def cut(self) -> Tensor | None:
        """(Bt, K) whether a sequence begins in the chunk; None if none ever does."""
        return None if self.packing is None else ~self.packing.goes_on

    def by_group(self, tensor: Tensor) -> Tensor:
        """(Bt, K, T, H, P) as (Bt, K, G, T, R P)."""
        batch, chunks, positions, _, _ = tensor.shape
        return tensor.view(batch, chunks, positions, self.B.shape[2], -1).transpose(2, 3)

    def by_head(self, tensor: Tensor) -> Tensor:
        """The inverse: (Bt, K, G, T, R P) as (Bt, K, T, H, P)."""
        return tensor.transpose(2, 3).reshape(self.x.shape)

    def states_by_group(self, states: Tensor) -> Tensor:
        """(Bt, K, H, P, N) as (Bt, K, G, R P, N)."""
        batch, chunks, _, _, d_state = states.shape
        return states.view(batch, chunks, self.B.shape[2], -1, d_state)

    def from_state(self, values: Tensor) -> Tensor:
        """values (Bt, K, T, H, P) times the decay from the chunk's start."""
        values = values * self.from_start.unsqueeze(4)
        return values if self.packing is None else self.packing.from_state(values)

    def to_state(self, values: Tensor) -> Tensor:
        """values (Bt, K, T, H, P) times the decay to the chunk's end."""
        values = values * self.to_end.unsqueeze(4)
        return values if self.packing is None else self.packing.to_state(values)

    def product(self, squares: Tensor, rows: Tensor, back: bool = False) -> Tensor:
        """squares (Bt, K, H, T, T) times rows (Bt, K, H, T, X), position by position."""
        return squares @ rows if self.packing is None else self.packing.product(squares, rows, back)

    def states(self, values: Tensor, directions: Tensor, choose: str) -> Tensor:
        """(Bt, K, H, P, N): for each chunk the sum over positions of values (.., H, P) times directions (.., N).

        ``choose`` names the method of ``_Packing`` that was applied to the values.
        """
        batch, chunks, _, heads, width = values.shape
        if self.packing is not None:
            directions = getattr(self.packing, choose)(directions.transpose(2, 3)).transpose(2, 3)
        products = self.by_group(values).transpose(3, 4) @ directions  # (Bt, K, G, R P, N)
        return products.view(batch, chunks, heads, width, -1)

    def decays(self) -> Tensor:
        """M (Bt, K, H, T, T)."""
        M = self.x.new_empty(*self.s.shape, self.s.shape[3])  # (Bt, K, H, T, T)
        torch.sub(self.s.unsqueeze(4), self.s.unsqueeze(3), out=M)
        M = _exp_(M).tril_()
        return M if self.packing is None else self.packing.pairs_(M)

    def scores(self, M: Tensor) -> Tensor:
        """(Bt, K, H, T, T) in the memory of M: (C_i B_j) M."""
        products = self.C @ self.B.transpose(3, 4)  # (Bt, K, G, T, T)
        M.view(*products.shape[:3], -1, *products.shape[3:]).mul_(products.unsqueeze(3))
        return M if self.packing is None else self.packing.pairs_(M)


def forward(inputs: Inputs, initial_state: Tensor | None) -> tuple[Tensor, Tensor]:
    """y (Bt, L, H, P) in x's dtype and the final state (Bt, H, P, N)."""
    c = _read(inputs)
    added = c.states(c.to_state(c.u), c.B, "to_state")  # (Bt, K, H, P, N)
    h, final = _walk(added, c.s[..., -1], c.cut, initial_state)
    y = c.from_state(c.by_head(c.C @ c.states_by_group(h).transpose(3, 4)))  # (Bt, K, T, H, P)
    y += c.product(c.scores(c.decays()), c.u.transpose(2, 3)).transpose(2, 3)
    if inputs.D is not None:
        y.addcmul_(c.x, inputs.D.to(y.dtype)[:, None])
    return _joined(y, inputs.x), final


def backward(inputs: Inputs, initial_state: Tensor | None, dy: Tensor, d_final_state: Tensor | None) -> Gradients:
    """The gradients for dy (Bt, L, H, P) and d_final_state (Bt, H, P, N)."""
    c = _read(inputs)
    dtype = c.x.dtype
    dy = _cut(dy.to(dtype), c.x.shape[1], c.x.shape[2])  # (Bt, K, T, H, P)
    total = c.s[..., -1]  # (Bt, K, H)

    cut = c.cut
    u_left = c.to_state(c.u)
    h, _ = _walk(c.states(u_left, c.B, "to_state"), total, cut, initial_state)
    dy_left = c.from_state(dy)
    added = c.states(dy_left, c.C, "from_state").flip(1)
    g, d_initial = _walk(added, total.flip(1), None if cut is None else cut.flip(1), d_final_state)
    g = g.flip(1)

    h_grouped, g_grouped = c.states_by_group(h), c.states_by_group(g)  # (Bt, K, G, R P, N)
    dC = c.by_group(dy_left) @ h_grouped  # (Bt, K, G, T, N)
    dB = c.by_group(u_left) @ g_grouped
    du = c.to_state(c.by_head(c.B @ g_grouped.transpose(3, 4)))  # (Bt, K, T, H, P)
    read = c.from_state(c.by_head(c.C @ h_grouped.transpose(3, 4)))  # (Bt, K, T, H, P), h C_i
    across = (g * h).sum(dim=(3, 4)).mul_(total.exp().to(dtype))  # (Bt, K, H), from before the chunk to after it
    if cut is not None:
        dC, dB = (
            choose(grouped.transpose(2, 3)).transpose(2, 3)
            for choose, grouped in ((c.packing.from_state, dC), (c.packing.to_state, dB))
        )
        across.masked_fill_(cut.unsqueeze(2), 0)

    into = (read * dy).sum(dim=4)  # (Bt, K, T, H), what the path from h to position i contributes to d_log
    out = (c.u * du).sum(dim=4)  # what the path from position j to the state after the chunk does
    if cut is not None:
        into, out = c.packing.from_state(into), c.packing.to_state(out)

    M = c.decays()
    d_scores = dy.transpose(2, 3) @ c.u.permute(0, 1, 3, 4, 2)  # (Bt, K, H, T, T)
    by_products = d_scores * M
    if cut is not None:
        by_products = c.packing.pairs_(by_products)
    d_products = _group_sum(by_products, c.B.shape[2])  # (Bt, K, G, T, T)
    dC += c.product(d_products, c.B)
    dB += c.product(d_products.transpose(3, 4), c.C, back=True)
    scores = c.scores(M)
    du += c.product(scores.transpose(3, 4), dy.transpose(2, 3), back=True).transpose(2, 3)

    d_log = _crossing(d_scores.mul_(scores), c.packing).transpose(2, 3)  # (Bt, K, T, H), by dt A
    d_log += into.flip(2).cumsum(2).flip(2) + across.unsqueeze(2)
    d_log[:, :, 1:] += out.cumsum(2)[:, :, :-1]
    return _gradients(inputs, c, dy, du, d_log, dB, dC, d_initial)


def _gradients(
    inputs: Inputs, c: _Chunks, dy: Tensor, du: Tensor, d_log: Tensor, dB: Tensor, dC: Tensor, d_initial: Tensor
) -> Gradients:
    """The gradients of the arguments from those in chunks."""
    d_dt = (du * c.x).sum(dim=4).addcmul_(d_log, inputs.A.to(d_log.dtype))  # (Bt, K, T, H)
    if inputs.dt_softplus:
        d_dt = torch.ops.aten.softplus_backward(d_dt, c.raw, beta=1, threshold=20)
    d_raw = _joined(d_dt.unsqueeze(4), inputs.dt.unsqueeze(3), d_dt.dtype).squeeze(3)  # (Bt, L, H)
    dD = None if inputs.D is None else (dy * c.x).sum(dim=(0, 1, 2, 4)).to(inputs.D.dtype)
    d_bias = None if inputs.dt_bias is None else d_raw.sum(dim=(0, 1)).to(inputs.dt_bias.dtype)
    dx = du.mul_(c.dt.unsqueeze(4))
    if inputs.D is not None:
        dx.addcmul_(dy, inputs.D.to(dx.dtype)[:, None])
    return Gradients(
        _joined(dx, inputs.x),
        d_raw.to(inputs.dt.dtype),
        (d_log * c.dt).sum(dim=(0, 1, 2)).to(inputs.A.dtype),
        _joined(dB.transpose(2, 3), inputs.B),
        _joined(dC.transpose(2, 3), inputs.C),
        dD,
        d_bias,
        d_initial,
    )


def _read(inputs: Inputs) -> _Chunks:
    """The arguments in chunks of one length, with zeros past the end."""
    dtype, length = accumulation_dtype(inputs.x.dtype), inputs.x.shape[1]
    states = inputs.x.shape[3] * inputs.B.shape[3]
    n_chunks = -(-length // min(CHUNK, max(SHORTEST_CHUNK, math.isqrt(states))))
    positions = -(-length // n_chunks)
    raw = inputs.dt.to(dtype)
    if inputs.dt_bias is not None:
        raw = raw + inputs.dt_bias.to(dtype)
    dt = F.softplus(raw) if inputs.dt_softplus else raw
    log_decay = dt.double() * inputs.A.double()  # (Bt, L, H)
    packing = None
    if inputs.seq_idx is not None:
        begins = F.pad(inputs.seq_idx[:, 1:] != inputs.seq_idx[:, :-1], (1, 0))  # (Bt, L)
        packing = _Packing(_cut(begins, n_chunks, positions).cumsum(dim=2))
        # A step that is not finite shows in its own u; in the sums it would reach other sequences.
        log_decay = log_decay.masked_fill(begins.unsqueeze(2), 0).nan_to_num(0.0).clamp(-FARTHEST, FARTHEST)
    x, raw, dt, log_decay, B, C = (
        _cut(t, n_chunks, positions) for t in (inputs.x.to(dtype), raw, dt, log_decay, inputs.B, inputs.C)
    )
    s = log_decay.cumsum(dim=2)  # (Bt, K, T, H)
    from_start, to_end = (_exp_(exponents.to(dtype)) for exponents in (s.clone(), s[:, :, -1:] - s))
    B, C = (t.to(dtype).transpose(2, 3).contiguous() for t in (B, C))  # (Bt, K, G, T, N)
    return _Chunks(x, raw, dt, x * dt.unsqueeze(4), B, C, s.transpose(2, 3).contiguous(), from_start, to_end, packing)


def _cut(tensor: Tensor, n_chunks: int, positions: int) -> Tensor:
    """(Bt, L, ...) as (Bt, K, T, ...)."""
    missing = n_chunks * positions - tensor.shape[1]
    if missing > 0:
        tensor = F.pad(tensor, (0, 0) * (tensor.dim() - 2) + (0, missing))
    return tensor.contiguous().view(tensor.shape[0], n_chunks, positions, *tensor.shape[2:])


def _joined(tensor: Tensor, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """(Bt, K, T, ...) as (Bt, L, ...), in the dtype of ``like`` unless another is given."""
    whole = tensor.reshape(tensor.shape[0], -1, *tensor.shape[3:])  # (Bt, K T, ...)
    return whole[:, : like.shape[1]].to(dtype or like.dtype).contiguous()


def _exp_(exponents: Tensor) -> Tensor:
    """exp in place, 0 below ``NEGLIGIBLE`` in float32."""
    if exponents.dtype == torch.float32:
        F.threshold_(exponents, NEGLIGIBLE, -math.inf)
    return exponents.exp_()


def _group_sum(squares: Tensor, groups: int) -> Tensor:
    """(Bt, K, H, T, T) summed over the heads of a group, (Bt, K, G, T, T)."""
    batch, chunks, _, size, _ = squares.shape
    return squares.view(batch, chunks, groups, -1, size, size).sum(dim=3)


def _crossing(pairs: Tensor, packing: _Packing | None) -> Tensor:
    """(..., T): for each position t the sum of pairs (..., T, T) over i >= t > j, whose path passes t."""
    later = torch.ones_like(pairs[0, 0, 0]).triu()  # [t, i] whether i >= t
    if packing is None:
        return (later @ pairs.tril(-1)).tril_(-1).sum(dim=-1)
    pairs = packing.product(later, packing.pairs_(pairs).tril(-1), back=True)
    return packing.pairs_(pairs).tril_(-1).sum(dim=-1)


def _walk(added: Tensor, log_decay: Tensor, cut: Tensor | None, start: Tensor | None) -> tuple[Tensor, Tensor]:
    """The states before each chunk (Bt, K, ...) and after the last (Bt, ...).

    Args:
        added: (Bt, K, H, P, N) what each chunk adds to the state.
        log_decay: (Bt, K, H) float64, logarithm of each chunk's decay.
        cut: (Bt, K) where a state does not pass, whatever its decay; nowhere if None.
        start: (Bt, H, P, N) before the first; zeros if None.
    """
    n_chunks = added.shape[1]
    decay = log_decay.exp().to(added.dtype)[..., None, None]  # (Bt, K, H, 1, 1)
    if n_chunks > MOST_STEPS:
        return _walk_in_groups(added, log_decay, cut, start)
    state = added.new_zeros(added[:, 0].shape) if start is None else start
    before = added.new_empty(added.shape)
    for chunk in range(n_chunks):
        before[:, chunk] = state
        if cut is None:
            state = torch.addcmul(added[:, chunk], decay[:, chunk], state)
        else:
            left = (decay[:, chunk] * state).masked_fill_(cut[:, chunk, None, None, None], 0)
            state = added[:, chunk] + left
    return before, state


def _walk_in_groups(
    added: Tensor, log_decay: Tensor, cut: Tensor | None, start: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``_walk`` in about twice the square root of K steps."""
    batch, n_chunks = added.shape[:2]
    size = math.isqrt(n_chunks - 1) + 1
    groups = -(-n_chunks // size)
    missing = groups * size - n_chunks
    added = F.pad(added, (0, 0) * 3 + (0, missing)).reshape(batch * groups, size, *added.shape[2:])
    log_decay = F.pad(log_decay, (0, 0, 0, missing)).reshape(batch * groups, size, -1)  # (Bt groups, size, H)
    if cut is not None:
        cut = F.pad(cut, (0, missing)).reshape(batch * groups, size)
    before, total = _walk(added, log_decay, cut, None)
    left = log_decay.cumsum(dim=1)  # log decay from a group's start to after each of its chunks
    lost = None if cut is None else cut.cumsum(dim=1) > 0
    starts, final = _walk(
        total.unflatten(0, (batch, groups)),
        left[:, -1].unflatten(0, (batch, groups)),
        None if lost is None else lost[:, -1].view(batch, groups),
        start,
    )
    left = F.pad(left[:, :-1], (0, 0, 1, 0)).exp().to(added.dtype)[..., None, None]  # before each of them
    if lost is None:
        before.addcmul_(left, starts.flatten(0, 1).unsqueeze(1))
    else:
        carried = left * starts.flatten(0, 1).unsqueeze(1)
        before += carried.masked_fill_(F.pad(lost[:, :-1], (1, 0))[..., None, None, None], 0)
    return before.reshape(batch, groups * size, *added.shape[2:])[:, :n_chunks], final
