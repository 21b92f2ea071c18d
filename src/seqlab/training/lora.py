"""Low-rank adaptation (Hu et al. 2021, "LoRA", arXiv:2106.09685, section 4.1).

Symbols: W a weight, (..., O, I), and its factors of rank r, A (..., r, I) and B (..., O, r); ... are experts, if any.
"""

import torch
from pydantic import ConfigDict, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import TypedDict

from seqlab.errors import UserError
from seqlab.training.freezing import matching
from seqlab.training.sharding import own, part_of, whole


class LoraSettings(TypedDict):
    """Rank r, alpha, and the names or patterns of the weights that learn alpha / r B A (``freezing.is_of``)."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    rank: PositiveInt
    alpha: PositiveFloat
    on: list[str]


class Lora:
    """Trains the factors of W + alpha / r B A for each chosen W, and nothing else of the model.

    The model keeps whole weights, put together after each step: what reads a weight, as the kernels of a whole block
    do, reads the adapted one, and a checkpoint is a plain model's. The gradient of a whole weight is turned into those
    of its factors as soon as it is complete, and dropped. A starts as the weight of a linear map does, B at zero.
    Where processes share out the weights, each has all factors.

    Args:
        model: of which all else is frozen. Parameters that are frozen already are left out.
        settings: as in the configuration.

    Raises:
        UserError: what they choose cannot be adapted.
    """

    def __init__(self, model: nn.Module, settings: LoraSettings):
        self.scale = settings["alpha"] / settings["rank"]
        self.weights = chosen(model, settings)
        adapted = set(self.weights)
        self.names = {W: name for name, W in model.named_parameters() if W in adapted}
        self.base = [W.detach().clone() for W in self.weights]
        for p in model.parameters():
            p.requires_grad_(p in adapted)
        for W in self.weights:
            W.factors = factors_of(W, settings["rank"])  # which are trained in its place (``optim.trainable``)
            W.register_post_accumulate_grad_hook(self._pull_back)

    def share_out(self, model: nn.Module) -> None:
        """Keep parts of the weights that processes have shared out since (``sharding.shard``), and no whole ones."""
        self.weights = [model.get_parameter(self.names[W]) for W in self.weights]
        self.base = [part_of(base, W) for base, W in zip(self.base, self.weights, strict=True)]

    def collect(self) -> None:
        """Turn the gradients of weights in parts, for which torch has no hook, into those of the factors."""
        for W in self.weights:
            if W.grad is not None:
                self._pull_back(W)

    @torch.no_grad()
    def _pull_back(self, W: nn.Parameter) -> None:
        """Add to the gradients of B and A, by the chain rule, and drop that of W."""
        B, A = W.factors
        of_weight = whole(W.grad).to(A.device)
        for factor, gradient in ((B, of_weight @ A.mT), (A, B.mT @ of_weight)):
            gradient *= self.scale
            factor.grad = gradient if factor.grad is None else factor.grad.add_(gradient)
        W.grad = None

    @torch.no_grad()
    def merge(self) -> None:
        """Put the weights together from what they were and their factors."""
        for W, base in zip(self.weights, self.base, strict=True):
            B, A = W.factors
            change = own(part_of(B @ A, W)).to(base.device)
            own(W).copy_(torch.add(own(base), change, alpha=self.scale))

    def state(self) -> dict[str, list[Tensor]]:
        """The weights without their change, (..., O, I), and B (..., O, r) and A (..., r, I)."""
        return {"base": self.base, "factors": [factor.detach() for W in self.weights for factor in W.factors]}

    def load_state(self, state: dict[str, list[Tensor]]) -> None:
        """Restore what ``state`` returned, in its shapes: (..., O, I), (..., O, r), (..., r, I)."""
        for key, ours in self.state().items():
            for mine, saved in zip(ours, state[key], strict=True):
                mine.copy_(part_of(saved, mine))

    def check_trained(self, optimizers: list[Optimizer]) -> None:
        """Check that the optimizers take the factors, which one of a user's own may not know of.

        Raises:
            UserError: one is left out.
        """
        served = {p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
        if not served.issuperset(factor for W in self.weights for factor in W.factors):
            rule = "the optimizer takes whole weights and not what is trained in their place"
            remedy = "Let it take seqlab.training.optim.trainable(model), as those of conf/ do"
            raise UserError("lora", "set", rule, remedy)


def factors_of(W: nn.Parameter, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
    """B (..., O, r), zeros, and A (..., r, I), uniform within 1 / sqrt(I); drawn on the CPU, the same on every device.

    Of W (..., O, I).
    """
    *experts, rows, columns = W.shape
    A = torch.empty(*experts, rank, columns).uniform_(-(columns**-0.5), columns**-0.5)
    return nn.Parameter(W.new_zeros(*experts, rows, rank)), nn.Parameter(A.to(W))


def chosen(model: nn.Module, settings: LoraSettings) -> list[nn.Parameter]:
    """The weights that are to be adapted, each once.

    Raises:
        UserError: a pattern is of none, they are frozen or too small for the rank, or there are rates by width.
    """
    rank, found = settings["rank"], {}
    for pattern in settings["on"]:
        these = {p: name for name, p in matching(model, [pattern], "lora.on").items() if p.ndim > 1}
        if not these:
            raise UserError("lora.on", pattern, "is of vectors alone, which have no rank", "Name weights, as in_proj")
        found |= these
    found = {p: name for p, name in found.items() if p.requires_grad}
    if not found:
        raise UserError("lora.on", settings["on"], "names nothing that is not frozen", "Name weights, as [in_proj]")
    for p, name in found.items():
        if rank >= min(p.shape[-2:]):
            rule = f"must be below the {min(p.shape[-2:])} rows or columns of {name}"
            raise UserError("lora.rank", rank, rule, "Lower it, or leave that weight out of lora.on")
    if any(hasattr(p, "rates") for p in found):
        rule = "has rates for whole weights, and none for the factors of trainer.lora"
        raise UserError("parametrisation", "mup", rule, "Set parametrisation=standard")
    return list(found)
