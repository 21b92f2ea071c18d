"""The search space: the command line, in Hydra's own syntax of sweeps, as studies and Optuna's distributions."""

import itertools
import json
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from seqlab.config.influence import WITHOUT_INFLUENCE
from seqlab.config.overrides import parse, sets_any
from seqlab.config.without_effect import reaches_nothing
from seqlab.errors import UserError

log = logging.getLogger("seqlab")


@dataclass(frozen=True)
class Arm:
    """One architecture (on one data set) and what is searched for it.

    Args:
        name: of its study, and the beginning of its trials' folders.
        fixed: overrides of every trial.
        dimensions: what Optuna chooses, by key as it is typed (``optimizer.lr``, ``+model.x``).
    """

    name: str
    fixed: list[str]
    dimensions: dict[str, BaseDistribution]

    def settings(self, values: dict[str, Any]) -> dict[str, Any]:
        """A trial's values as its job has them: floats to four significant digits, which people can read.

        Those of another search's trial may not all be known yet.
        """
        trial = {key: values[key] for key in self.dimensions if key in values}
        return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in trial.items()}

    def overrides(self, values: dict[str, Any]) -> list[str]:
        """The overrides of a trial with these values."""
        return [*self.fixed, *(f"{key}={value}" for key, value in self.settings(values).items())]

    def outermost(self) -> list[list[str]]:
        """The overrides of two trials, with the first values of all dimensions and with the last."""
        bounds_of = {key: bounds(dimension) for key, dimension in self.dimensions.items()}
        return [self.overrides({key: values[end] for key, values in bounds_of.items()}) for end in (0, 1)]

    @property
    def fingerprint(self) -> str:
        """What must be the same for trials to belong to one study."""
        fixed = sorted(override for override in self.fixed if not sets_any(override, WITHOUT_INFLUENCE))
        dimensions = {key: distribution_to_json(value) for key, value in sorted(self.dimensions.items())}
        return json.dumps([fixed, dimensions])


def arms(overrides: Sequence[Override], each: Iterable[str], compose: Callable[[list[str]], DictConfig]) -> list[Arm]:
    """Every combination of the choices that have studies of their own.

    Args:
        overrides: the command line's.
        each: keys whose choices are not searched but compared.
        compose: a job's configuration from its overrides.

    Raises:
        UserError: a combination has nothing to search, or the seed is searched.
    """
    each, fixed, apart, free = set(each), [], [], {}
    for override in overrides:
        key = override.get_key_element()
        if key == "seed" and override.is_sweep_override():
            remedy = "Give one seed, and run the best settings with several afterwards"
            raise UserError("seed", typed(override), "is no setting to search", remedy)
        if not override.is_sweep_override():
            fixed.append(f"{key}={override.get_value_element_as_str()}")
        elif override.key_or_group in each:
            apart.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            free[key] = dimension(override)
    found = []
    for choice in itertools.product(*apart):
        cfg = compose([*fixed, *choice])
        name = "_".join(parse(override)[1] for override in choice) or cfg.hydra.runtime.choices.model
        own = {key: value for key, value in free.items() if has(cfg, key)}
        if left_out := sorted(free.keys() - own.keys()):
            log.info("%s has no %s: its trials leave that out.", name, ", ".join(left_out))
        if not own:
            rule = "nothing is left to search"
            remedy = "Give it a setting with interval(...), range(...) or choice(...)"
            raise UserError("search", name, rule, remedy)
        arm = Arm(re.sub(r"[^\w.-]+", "_", name), [*fixed, *choice], own)
        compose(arm.outermost()[0])  # refuses unknown names
        found.append(arm)
    return found


def has(cfg: DictConfig, key: str) -> bool:
    """Whether an architecture has a setting; only the model's parts and sizes differ between architectures."""
    absent = object()
    if reaches_nothing(cfg, key):
        return False
    return not key.startswith("model.") or OmegaConf.select(cfg, key, default=absent) is not absent


def dimension(override: Override) -> BaseDistribution:
    """Optuna's distribution of a sweep: ``choice``, ``range`` or ``interval``, on a log scale if tagged ``log``.

    Raises:
        UserError: the bounds are none of a distribution.
    """
    sweep = override.value()
    log_scale = "log" in getattr(sweep, "tags", ())
    try:
        if isinstance(sweep, IntervalSweep):
            whole = isinstance(sweep.start, int) and isinstance(sweep.end, int)
            return (IntDistribution if whole else FloatDistribution)(sweep.start, sweep.end, log=log_scale)
        if isinstance(sweep, RangeSweep) and not log_scale:
            values = list(override.sweep_iterator())
            if all(isinstance(value, int) for value in values):
                return IntDistribution(min(values), max(values), step=abs(sweep.step))
    except ValueError as error:
        remedy = "Write interval(low, high), range(start, stop, step) or choice(a, b, c)"
        raise UserError(override.get_key_element(), typed(override), str(error), remedy) from error
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def typed(override: Override) -> str:
    """An override's value as it stands on the command line."""
    return parse(override.input_line)[1]


def bounds(distribution: BaseDistribution) -> tuple[Any, Any]:
    """The first and the last value of a distribution."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0], distribution.choices[-1]
    return distribution.low, distribution.high
