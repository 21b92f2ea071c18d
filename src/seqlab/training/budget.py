"""How long to train: steps, epochs or tokens, exactly one of them."""

import math
from typing import Any

from seqlab.errors import UserError


def total_steps(trainer: Any, data: Any) -> int:
    """The number of updates that the trainer's budget allows on this data, rounded up."""
    budgets = {name: getattr(trainer, name) for name in ("steps", "epochs", "tokens")}
    given = {f"trainer.{name}": value for name, value in budgets.items() if value is not None}
    if len(given) != 1:
        raise UserError(
            ", ".join(given) or "trainer.steps, trainer.epochs, trainer.tokens",
            ", ".join(map(str, given.values())) or "null",
            "the budget is exactly one of steps, epochs and tokens",
            "Set one and leave the others null, for example trainer.steps=1000 trainer.epochs=null",
        )
    if trainer.steps is not None:
        return trainer.steps
    if trainer.epochs is not None:
        return math.ceil(trainer.epochs * data.train_size / trainer.batch_size)
    return math.ceil(trainer.tokens / (trainer.batch_size * data.length))
