"""Equal training FLOPs, by the number of steps."""

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig
from torch import nn

from seqlab.data import DataSet
from seqlab.errors import UserError, under
from seqlab.match.parameters import Tolerance
from seqlab.models.counting import training_flops
from seqlab.runs.build import built
from seqlab.training.freezing import freeze
from seqlab.training.lora import Lora
from seqlab.training.settings import BUDGETS


class EqualFlops:
    """The number of steps at which training costs as many FLOPs as that of the reference.

    Args:
        reference: name of the reference model.
        tolerance: largest relative difference in FLOPs.
    """

    def __init__(self, *, reference: str, tolerance: Tolerance = 0.01):
        self.reference, self.tolerance = reference, tolerance

    def __call__(
        self, cfg: DictConfig, reference: DictConfig, data: DataSet, model_of: Callable[[DictConfig], nn.Module]
    ) -> dict[str, Any]:
        """Set the budget of ``cfg`` to a number of steps; returns the record for ``cfg.matched``.

        Raises:
            UserError: no number of steps comes within the tolerance.
        """

        def cost(cfg: DictConfig) -> tuple[int, int]:
            trainer = built(cfg, "trainer")
            with under("trainer", cfg.trainer):
                steps = trainer.total_steps(data)
                freeze(model := model_of(cfg), trainer.freeze)
                if trainer.lora:
                    Lora(model, trainer.lora)
            return steps, trainer.batch_size * training_flops(model, data)

        steps_of_reference, flops_of_reference = cost(reference)
        before, flops = cost(cfg)
        target = steps_of_reference * flops_of_reference
        steps = max(1, round(target / flops))
        reached = steps * flops
        if abs(reached - target) > self.tolerance * target:
            rule = (
                f"{steps} steps come nearest to the {target:.4g} FLOPs of {self.reference}, {reached:.4g} "
                f"({reached / target - 1:+.2%}), and {100 * self.tolerance:g}% is asked"
            )
            raise UserError("match", "flops", rule, "Train longer, so that a step is a smaller part of the whole")
        cfg.trainer.update(dict.fromkeys(BUDGETS) | {"steps": steps})
        return {
            "to": "flops",
            "reference": self.reference,
            "key": "trainer.steps",
            "from": before,
            "value": steps,
            "target": target,
            "reached": reached,
        }
