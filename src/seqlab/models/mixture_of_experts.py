"""A mixture of experts in place of one feed-forward: a router picks a few experts for each token.

Symbols:

    T, D        tokens, model width
    E, k        experts, experts of a token
    logits      (T, E) W_r x_t, in float32 at any precision (Fedus et al. 2022, section 2.4)
    p           (T, E) softmax of the logits
    gates       (T, k) the k largest of p, divided by their sum where they are renormalised (Jiang et al. 2024, Mixtral,
                section 2.1); with k = 1 p itself, without which the router would have no gradient (Fedus et al. 2022,
                equation 2)
    f           (E,) share of the T k assignments that go to each expert, a constant to the gradient
    P           (E,) mean of p over the tokens

The output is the sum over a token's experts of gate times expert, plus the shared expert's if there is one. There is no
capacity: no token is dropped.
"""

from contextlib import nullcontext
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from typing_extensions import override

from seqlab.errors import UserError
from seqlab.models.feedforward import SwiGLU, swiglu_width
from seqlab.models.protocols import parts
from seqlab.ops.routed_experts import resolve_backend, routed_experts, routed_experts_flops


class ExpertMaps(nn.Module):
    """A linear map for each expert, ``weight`` (n_experts, d_in, d_out), initialised as ``nn.Linear`` is."""

    def __init__(self, n_experts: int, d_in: int, d_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_experts, d_in, d_out).uniform_(-1, 1) / d_in**0.5)

    @override
    def extra_repr(self) -> str:
        return ", ".join(map(str, self.weight.shape))


class HasAuxiliaryLoss(nn.Module):
    """A part with a loss of its own, which is added to that of the data.

    Each forward pass in training stores it, a scalar already weighted, in ``auxiliary_loss``. Any part may do so; one
    that inherits from this class can be copied while a loss is stored.
    """

    auxiliary_loss: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """The state without the auxiliary loss, whose autograd graph cannot be copied."""
        return self.__dict__ | {"auxiliary_loss": None}


class MixtureOfExperts(HasAuxiliaryLoss):
    """Experts, each a ``SwiGLU``, and the router that sends each token to ``top_k`` of them.

    In training it stores

    - ``auxiliary_loss``: ``balance_weight`` E sum_e f_e P_e, which is ``balance_weight`` at perfect balance (Fedus et
      al. 2022, equations 4 to 6; for k = 2 as in GShard, Lepikhin et al. 2021, section 2.2), plus ``z_weight`` times
      the mean of logsumexp(logits)^2 (Zoph et al. 2022, ST-MoE, equation 5);
    - ``expert_share`` (E,): f;
    - ``loss_by_share`` (E,): the derivative of the loss by f. The loss is linear in f, so that this gives the loss of a
      part of a batch for the f of the whole batch.

    Args:
        d_model: width D.
        d_ff: width of an expert, in the sense of ``SwiGLU``.
        d_hidden: the hidden width of an expert, whatever ``d_ff`` is; null for ``swiglu_width(d_ff)``.
        d_shared: the hidden width of a ``SwiGLU`` that every token visits beside its experts; null for none.
        n_experts: E.
        top_k: k, experts of a token.
        renormalise: divide a token's gates by their sum, as Mixtral does; otherwise they are the router's
            probabilities, as in Jamba (Lieber et al. 2024).
        balance_weight: weight of the balance loss, which keeps the experts equally busy.
        z_weight: weight of the z-loss, which keeps the logits small.
        dropout: on the sum of the experts' outputs.
        backend: one of ``seqlab.ops.routed_experts.BACKENDS``, or ``auto``.

    Raises:
        UserError: top_k is above n_experts.
    """

    resolve_backend = staticmethod(resolve_backend)  # of ``experts_backend`` on a device

    def __init__(
        self,
        d_model: int,
        *,
        d_ff: PositiveInt,
        d_hidden: PositiveInt | None = None,
        d_shared: PositiveInt | None = None,
        n_experts: PositiveInt = 8,
        top_k: PositiveInt = 2,
        renormalise: bool = True,
        balance_weight: NonNegativeFloat = 0.01,
        z_weight: NonNegativeFloat = 0.0,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        backend: Literal["auto", "triton", "grouped", "reference"] = "auto",
    ):
        super().__init__()
        if top_k > n_experts:
            rule = f"a token cannot visit more than the n_experts={n_experts} that there are"
            raise UserError("top_k", top_k, rule, f"Lower it, or set n_experts={top_k} or more")
        self.top_k, self.balance_weight, self.z_weight = top_k, balance_weight, z_weight
        self.renormalise = renormalise and top_k > 1
        self.experts_backend = backend
        d_hidden = swiglu_width(d_ff) if d_hidden is None else d_hidden
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.in_proj = ExpertMaps(n_experts, d_model, 2 * d_hidden)
        self.out_proj = ExpertMaps(n_experts, d_hidden, d_model)
        self.shared = None if d_shared is None else SwiGLU(d_model, d_ff=d_shared, d_hidden=d_shared)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("expert_share", torch.zeros(n_experts))
        self.loss_by_share: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x (B, L, D) or (B, D) to the same shape."""
        tokens = x.reshape(-1, x.shape[-1])  # (T, D)
        logits, p, experts, gates = self._route(tokens)
        y = self._visit(tokens, experts, gates)
        if self.shared is not None:
            y = y + self.shared(tokens)
        if self.training:
            self._leave_losses(logits, p, experts)
        return self.dropout(y).view(x.shape)  # (B, L, D) or (B, D)

    def _route(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits and p, (T, E) each, and for each token its experts and their gates, (T, k) each."""
        exact = nullcontext() if tokens.is_meta else torch.autocast(tokens.device.type, enabled=False)
        with exact:
            weight = self.router.weight
            dtype = torch.promote_types(weight.dtype, torch.float32)  # float32 for a bfloat16 model too
            logits = nn.functional.linear(tokens.to(dtype), weight.to(dtype))  # (T, E)
        p = logits.softmax(dim=-1)
        largest, experts = p.topk(self.top_k, dim=-1)
        gates = largest / largest.sum(dim=-1, keepdim=True) if self.renormalise else largest
        return logits, p, experts, gates

    def _visit(self, tokens: Tensor, experts: Tensor, gates: Tensor) -> Tensor:
        """The gated sum of each token's experts, (T, D)."""
        maps = self.in_proj.weight, self.out_proj.weight
        return routed_experts(tokens, *maps, experts, gates, backend=self.experts_backend)

    def _leave_losses(self, logits: Tensor, p: Tensor, experts: Tensor) -> None:
        """Store the auxiliary loss and the experts' shares."""
        everyone = torch.arange(logits.shape[1], device=experts.device)
        share = (experts.flatten()[:, None] == everyone).to(logits.dtype).mean(dim=0)  # (E,)
        self.expert_share.copy_(share)
        if not torch.is_grad_enabled():
            return
        self.loss_by_share = self.balance_weight * len(share) * p.mean(dim=0) if self.balance_weight else None  # (E,)
        loss = self.balance_weight * balance_loss(p, share)
        if self.z_weight:
            loss = loss + self.z_weight * z_loss(logits)
        self.auxiliary_loss = loss

    def why_not_captured(self, device: torch.device) -> str | None:
        """A reason unless the experts run on "triton", the one backend that never waits for the device."""
        chosen = self.resolve_backend(self.experts_backend, device, torch.float32)
        return None if chosen == "triton" else f"the experts' backend {chosen!r} waits for the device"

    def inactive_parameters(self) -> int:
        """Number of parameters of the experts that a token does not use."""
        every = sum(p.numel() for maps in (self.in_proj, self.out_proj) for p in maps.parameters())
        n_experts = len(self.expert_share)
        return every // n_experts * (n_experts - self.top_k)

    def uncounted_flops(self, batch_size: int, length: int) -> int:
        """Forward FLOPs of the experts' matrix products."""
        _, d_hidden, d_model = self.out_proj.weight.shape
        return routed_experts_flops(batch_size * length * self.top_k, d_model, d_hidden)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"loss_by_share": None}


def balance_loss(p: Tensor, share: Tensor) -> Tensor:
    """E sum_e f_e P_e, a scalar, of p (T, E) and f = share (E,): 1 at perfect balance, E if one expert has it all."""
    return len(share) * torch.dot(share, p.mean(dim=0))


def z_loss(logits: Tensor) -> Tensor:
    """The mean over tokens of logsumexp(logits)^2, a scalar, of logits (T, E)."""
    return logits.logsumexp(dim=-1).square().mean()


def auxiliary_losses(model: nn.Module, shares: dict[nn.Module, Tensor] | None = None) -> Tensor | None:
    """The sum of the auxiliary losses that the last forward pass stored, a scalar, or ``None`` without any.

    The parts' losses are removed, which frees their graphs.

    Args:
        model: the whole model.
        shares: f (E,) of each mixture of experts, in place of that of the pass.
    """
    total = None
    for part in model.modules():
        loss = vars(part).get("auxiliary_loss")  # any part may have one; getattr is slow for what a module lacks
        if loss is None:
            continue
        part.auxiliary_loss = None
        if isinstance(part, MixtureOfExperts):
            by_share, part.loss_by_share = part.loss_by_share, None
            if shares and by_share is not None:
                loss = loss + torch.dot(shares[part] - part.expert_share, by_share)
        total = loss if total is None else total + loss
    return total


def balances(model: nn.Module) -> bool:
    """Whether some part has a balance loss, which depends on f."""
    return any(part.balance_weight for part in parts(model, MixtureOfExperts))


class ExpertLoad(NamedTuple):
    """How tokens are distributed over the experts, in all layers that have any."""

    largest_share: float  # the largest f_e of any layer; 1 / n_experts is perfect balance
    dead: int  # number of experts without a token, in all layers together
    shares: list[list[float]]  # f of each layer


def expert_load(model: nn.Module) -> ExpertLoad | None:
    """The load by the parts' ``expert_share``; ``None`` without experts. Waits for the device."""
    layers = [part.expert_share for part in parts(model, MixtureOfExperts)]
    if not layers:
        return None
    shares = [share.tolist() for share in torch.cat(layers).cpu().split([len(layer) for layer in layers])]
    return ExpertLoad(max(map(max, shares)), sum(share.count(0.0) for share in shares), shares)
