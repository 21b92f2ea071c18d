"""Learning-rate schedules: pure functions of the step, so that there is no state to save.

Each gives the factor on the optimizer's learning rate for update number ``step`` (from 0) of ``total``.
``warmup`` and ``decay`` are numbers of steps where they are 1 or more, and fractions of the run below 1.
"""

import inspect
import math
from collections.abc import Callable

from pydantic import NonNegativeFloat

from seqlab.errors import UserError


def check_fits(schedule: Callable[[int, int], float], total: int) -> None:
    """Check that warmup and decay of one of the schedules here, with its settings bound, fit into ``total`` steps.

    Raises:
        UserError: together they are longer than the run.
    """
    if getattr(schedule, "func", schedule).__module__ != __name__:
        return  # a user's own, whose settings may have other meanings
    settings = inspect.signature(schedule).parameters
    phases = {name: settings[name].default for name in ("warmup", "decay") if name in settings}
    steps = {name: amount * total if amount < 1 else amount for name, amount in phases.items()}
    if sum(steps.values()) > total * (1 + 1e-9):
        raise UserError(
            ", ".join(phases),
            ", ".join(f"{amount:g}" for amount in phases.values()),
            f"{' and '.join(f'a {name} of {n:g} steps' for name, n in steps.items())} "
            f"{'do' if len(steps) > 1 else 'does'} not fit into a run of {total} steps",
            "Shorten them (below 1 they are fractions of the run), or train for more steps",
        )


def steps_of(amount: float, total: int) -> int:
    """A number of steps, from such a number (1 or more) or a fraction of the run (below 1)."""
    return round(amount * total) if amount < 1 else round(amount)


def warm(step: int, warmup_steps: int) -> float:
    """The linear rise to 1 at the end of the warmup."""
    return min(1.0, (step + 1) / (warmup_steps + 1))


def progress(step: int, start: int, total: int) -> float:
    """The completed fraction, in [0, 1], of a phase from ``start`` to the run's last update."""
    return min(1.0, max(0.0, (step - start) / max(1, total - 1 - start)))


def constant(step: int, total: int, *, warmup: NonNegativeFloat = 0.0) -> float:
    """1 after the warmup."""
    return warm(step, steps_of(warmup, total))


def cosine(step: int, total: int, *, warmup: NonNegativeFloat = 0.0, final: NonNegativeFloat = 0.0) -> float:
    """Half a cosine from 1 to ``final`` (Loshchilov and Hutter 2017, equation 5, without restarts)."""
    start = steps_of(warmup, total)
    fall = 0.5 * (1 + math.cos(math.pi * progress(step, start, total)))
    return warm(step, start) * (final + (1 - final) * fall)


def linear(step: int, total: int, *, warmup: NonNegativeFloat = 0.0, final: NonNegativeFloat = 0.0) -> float:
    """A straight line from 1 to ``final``."""
    start = steps_of(warmup, total)
    return warm(step, start) * (1 - (1 - final) * progress(step, start, total))


def warmup_stable_decay(
    step: int,
    total: int,
    *,
    warmup: NonNegativeFloat = 0.0,
    decay: NonNegativeFloat = 0.2,
    final: NonNegativeFloat = 0.0,
) -> float:
    """1, then a straight line to ``final`` over the last ``decay`` (Hu et al. 2024, MiniCPM, section 4)."""
    start = total - steps_of(decay, total) if decay else total
    return warm(step, steps_of(warmup, total)) * (1 - (1 - final) * progress(step, start - 1, total))
