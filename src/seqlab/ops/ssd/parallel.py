"""State-space duality in plain PyTorch, as matrix products over chunks of positions, with its gradient written out.

Inside a chunk the scan is a masked attention (the paper's dual form), between chunks it is the recurrence, one step a
chunk (section 6, figure 5). Exponents are differences of sums of dt A; the sums are in float64, because steps of all
sizes may meet in one chunk. Decays are never divided by. A new sequence is a step that forgets everything, ``FORGET``.
The gradient of each dt A is a sum over the pairs of positions on either side of it, never a difference of such sums,
which would leave a remainder where every decay underflows. The backward pass computes everything again; nothing is
larger than a chunk's square of positions or its state, for each chunk and head.

Symbols (arXiv:2405.21060; i and j positions in a chunk):

    Bt, K, T      batch, chunks, positions in a chunk
    H, P, G, R    heads, channels of a head, groups, heads of a group (H = G R)
    N             state size
    dt            (Bt, K, T, H) step sizes, after bias and softplus; 0 past the end
    u             (Bt, K, T, H, P) dt x
    s             (Bt, K, H, T) float64, sum of dt A from the chunk's start up to and with a position
    M             (Bt, K, H, T, T) decays exp(s_i - s_j) from j to i, 0 for j > i
    h             (Bt, K, H, P, N) state before a chunk
    g             (Bt, K, H, P, N) gradient of the loss by the state after a chunk
    d...          gradient of the loss by what follows the d
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqlab.ops.contract import accumulation_dtype
from seqlab.ops.ssd.interface import Gradients, Inputs

CHUNK, SHORTEST_CHUNK = 64, 32
"""Bounds of the chunk length T, which is the root of P N between them: the squares of positions inside chunks then cost
about what the states between them do. On a CPU (P of 32 to 128, N 64) 16 and 128 ran up to twice as long."""

MOST_STEPS = 64
"""Chunks that are walked one after another, 2 or more; further ones are walked in groups side by side."""

NEGLIGIBLE = -70.0
"""exp of less is taken for 0: numbers near the smallest of float32, 1e-38, multiply up to ten times slower on a CPU."""

FORGET = -1000.0
"""exp of it is 0 in float64 too."""


def why_unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """None: plain PyTorch runs everywhere."""
    return None


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

    def by_group(self, tensor: Tensor) -> Tensor:
        """(Bt, K, T, H, P) as (Bt, K, G, T, R P)."""
        batch, chunks, positions, _, _ = tensor.shape
        return tensor.view(batch, chunks, positions, self.B.shape[2], -1).transpose(2, 3)

    def by_head(self, tensor: Tensor) -> Tensor:
        """The way back: (Bt, K, G, T, R P) as (Bt, K, T, H, P)."""
        return tensor.transpose(2, 3).reshape(self.x.shape)

    def states_by_group(self, states: Tensor) -> Tensor:
        """(Bt, K, H, P, N) as (Bt, K, G, R P, N)."""
        batch, chunks, _, _, d_state = states.shape
        return states.view(batch, chunks, self.B.shape[2], -1, d_state)

    def states(self, values: Tensor, directions: Tensor) -> Tensor:
        """(Bt, K, H, P, N): for each chunk the sum over positions of values (.., H, P) times directions (.., N)."""
        batch, chunks, _, heads, width = values.shape
        products = self.by_group(values).transpose(3, 4) @ directions  # (Bt, K, G, R P, N)
        return products.view(batch, chunks, heads, width, -1)

    def decays(self) -> Tensor:
        """M."""
        M = self.x.new_empty(*self.s.shape, self.s.shape[3])  # (Bt, K, H, T, T)
        torch.sub(self.s.unsqueeze(4), self.s.unsqueeze(3), out=M)
        return _exp_(M).tril_()

    def scores(self, M: Tensor) -> Tensor:
        """(Bt, K, H, T, T) in the memory of M: (C_i B_j) M."""
        products = self.C @ self.B.transpose(3, 4)  # (Bt, K, G, T, T)
        M.view(*products.shape[:3], -1, *products.shape[3:]).mul_(products.unsqueeze(3))
        return M


def forward(inputs: Inputs, initial_state: Tensor | None) -> tuple[Tensor, Tensor]:
    """y (Bt, L, H, P) in x's dtype and the final state (Bt, H, P, N)."""
    c = _read(inputs)
    added = c.states(c.u * c.to_end.unsqueeze(4), c.B)  # (Bt, K, H, P, N)
    h, final = _walk(added, c.s[..., -1], initial_state)
    y = c.by_head(c.C @ c.states_by_group(h).transpose(3, 4))  # (Bt, K, T, H, P)
    y.mul_(c.from_start.unsqueeze(4))
    y += (c.scores(c.decays()) @ c.u.transpose(2, 3)).transpose(2, 3)
    if inputs.D is not None:
        y.addcmul_(c.x, inputs.D.to(y.dtype)[:, None])
    return _joined(y, inputs.x), final


def backward(inputs: Inputs, initial_state: Tensor | None, dy: Tensor, d_final_state: Tensor | None) -> Gradients:
    """Every gradient."""
    c = _read(inputs)
    dtype = c.x.dtype
    dy = _cut(dy.to(dtype), c.x.shape[1], c.x.shape[2])  # (Bt, K, T, H, P)
    total = c.s[..., -1]  # (Bt, K, H)

    u_left = c.u * c.to_end.unsqueeze(4)
    h, _ = _walk(c.states(u_left, c.B), total, initial_state)
    dy_left = dy * c.from_start.unsqueeze(4)
    g, d_initial = _walk(c.states(dy_left, c.C).flip(1), total.flip(1), d_final_state)
    g = g.flip(1)

    h_grouped, g_grouped = c.states_by_group(h), c.states_by_group(g)  # (Bt, K, G, R P, N)
    dC = c.by_group(dy_left) @ h_grouped  # (Bt, K, G, T, N)
    dB = c.by_group(u_left) @ g_grouped
    du = c.by_head(c.B @ g_grouped.transpose(3, 4)).mul_(c.to_end.unsqueeze(4))  # (Bt, K, T, H, P)
    read = c.by_head(c.C @ h_grouped.transpose(3, 4))  # (Bt, K, T, H, P), h C_i

    into = (read * dy_left).sum(dim=4)  # (Bt, K, T, H), the part of the loss that comes from h through position i
    out = (c.u * du).sum(dim=4)  # through the state after the chunk, from position j
    across = (g * h).sum(dim=(3, 4)).mul_(total.exp().to(dtype))  # (Bt, K, H), from before the chunk to after it

    M = c.decays()
    d_scores = dy.transpose(2, 3) @ c.u.permute(0, 1, 3, 4, 2)  # (Bt, K, H, T, T)
    d_products = _group_sum(d_scores * M, c.B.shape[2])  # (Bt, K, G, T, T)
    dC += d_products @ c.B
    dB += d_products.transpose(3, 4) @ c.C
    scores = c.scores(M)
    du += (scores.transpose(3, 4) @ dy.transpose(2, 3)).transpose(2, 3)

    d_log = _crossing(d_scores.mul_(scores)).transpose(2, 3)  # (Bt, K, T, H), by dt A
    d_log += into.flip(2).cumsum(2).flip(2) + across.unsqueeze(2)
    d_log[:, :, 1:] += out.cumsum(2)[:, :, :-1]
    return _gradients(inputs, c, dy, du, d_log, dB, dC, d_initial)


def _gradients(
    inputs: Inputs, c: _Chunks, dy: Tensor, du: Tensor, d_log: Tensor, dB: Tensor, dC: Tensor, d_initial: Tensor
) -> Gradients:
    """From the gradients in chunks to those by the arguments."""
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
    if inputs.seq_idx is not None:
        begins = F.pad(inputs.seq_idx[:, 1:] != inputs.seq_idx[:, :-1], (1, 0))  # (Bt, L)
        log_decay = log_decay.masked_fill(begins.unsqueeze(2), FORGET)
    x, raw, dt, log_decay, B, C = (
        _cut(t, n_chunks, positions) for t in (inputs.x.to(dtype), raw, dt, log_decay, inputs.B, inputs.C)
    )
    s = log_decay.cumsum(dim=2)  # (Bt, K, T, H)
    from_start, to_end = (_exp_(exponents.to(dtype)) for exponents in (s.clone(), s[:, :, -1:] - s))
    B, C = (t.to(dtype).transpose(2, 3).contiguous() for t in (B, C))  # (Bt, K, G, T, N)
    return _Chunks(x, raw, dt, x * dt.unsqueeze(4), B, C, s.transpose(2, 3).contiguous(), from_start, to_end)


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


def _crossing(pairs: Tensor) -> Tensor:
    """(..., T): for each position t the sum of pairs (..., T, T) over i >= t > j, those whose way leads through t."""
    later = torch.ones_like(pairs[0, 0, 0]).triu()  # [t, i] whether i >= t
    return (later @ pairs.tril(-1)).tril_(-1).sum(dim=-1)


def _walk(added: Tensor, log_decay: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor]:
    """The states before each chunk (Bt, K, ...) and after the last (Bt, ...).

    Args:
        added: (Bt, K, H, P, N) what each chunk adds to the state.
        log_decay: (Bt, K, H) float64, what is left of the state after it, as a logarithm.
        start: (Bt, H, P, N) before the first; zeros if None.
    """
    n_chunks = added.shape[1]
    decay = log_decay.exp().to(added.dtype)[..., None, None]  # (Bt, K, H, 1, 1)
    if n_chunks > MOST_STEPS:
        return _walk_in_groups(added, log_decay, start)
    state = added.new_zeros(added[:, 0].shape) if start is None else start
    before = added.new_empty(added.shape)
    for chunk in range(n_chunks):
        before[:, chunk] = state
        state = torch.addcmul(added[:, chunk], decay[:, chunk], state)
    return before, state


def _walk_in_groups(added: Tensor, log_decay: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor]:
    """``_walk`` in about twice the square root of K steps."""
    batch, n_chunks = added.shape[:2]
    size = math.isqrt(n_chunks - 1) + 1
    groups = -(-n_chunks // size)
    missing = groups * size - n_chunks
    added = F.pad(added, (0, 0) * 3 + (0, missing)).reshape(batch * groups, size, *added.shape[2:])
    log_decay = F.pad(log_decay, (0, 0, 0, missing)).reshape(batch * groups, size, -1)  # (Bt groups, size, H)
    before, total = _walk(added, log_decay, None)
    left = log_decay.cumsum(dim=1)  # of a group's start after each of its chunks
    starts, final = _walk(total.unflatten(0, (batch, groups)), left[:, -1].unflatten(0, (batch, groups)), start)
    left = F.pad(left[:, :-1], (0, 0, 1, 0)).exp().to(added.dtype)[..., None, None]  # before each of them
    before.addcmul_(left, starts.flatten(0, 1).unsqueeze(1))
    return before.reshape(batch, groups * size, *added.shape[2:])[:, :n_chunks], final
