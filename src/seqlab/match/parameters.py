"""Equal parameters, by the width of the model."""

import math
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Literal

from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from pydantic import Field
from torch import nn

from seqlab.config.without_effect import mixers_in_pattern
from seqlab.data import DataSet
from seqlab.errors import UserError
from seqlab.match.width_search import Unfit, Widths, nearest_widths
from seqlab.models.counting import count_parameters

Tolerance = Annotated[float, Field(gt=0, lt=1)]
FAR = 0.2  # a relative difference that no tolerance should allow


class EqualParameters:
    """The width at which a model has as many parameters as the reference.

    The feed-forward's width is scaled with it. The search tries coarse steps of the width first, then finer ones that
    the heads still divide, then the feed-forward alone; last any width, with the mixers' inner width (``d_inner``) held
    at that of the nearest width that the heads divide.

    Args:
        reference: name of the reference model.
        count: ``without_embeddings`` leaves out lookup tables (a tied head counts), ``total`` nothing.
        active: count the parameters active for one token: of a mixture only the ``top_k`` experts that it uses.
        tolerance: largest relative difference.
    """

    def __init__(
        self,
        *,
        reference: str,
        count: Literal["without_embeddings", "total"] = "without_embeddings",
        active: bool = False,
        tolerance: Tolerance = 0.01,
    ):
        self.reference, self.without_embeddings, self.active = reference, count == "without_embeddings", active
        self.tolerance = tolerance
        self.counted = f"{'active_' * active}parameters{'_without_embeddings' * self.without_embeddings}"

    def __call__(
        self, cfg: DictConfig, reference: DictConfig, data: DataSet, model_of: Callable[[DictConfig], nn.Module]
    ) -> dict[str, Any]:
        """Set ``size.d_model``, ``size.d_ff`` and the mixers' ``d_inner`` of ``cfg``; returns ``cfg.matched``.

        Raises:
            UserError: no width comes within the tolerance.
        """
        target = self.number(model_of(reference))
        self.number(model_of(cfg))  # raises if the configuration as given cannot be built
        given, n_heads, followers = Widths(cfg.size.d_model, cfg.size.d_ff), cfg.size.n_heads, mixers_that_follow(cfg)
        before = settings_of(given, followers)

        def count(widths: Widths) -> int:
            for key, value in settings_of(widths, followers).items():
                OmegaConf.update(cfg, key, value)
            try:
                return self.number(model_of(cfg))
            except (InstantiationException, UserError) as error:
                raise Unfit from error

        widths, reached = nearest_widths(
            cache(count), target, self.tolerance, given, n_heads=n_heads, holds_inner=bool(followers)
        )
        if count(widths._replace(d_ff=given.d_ff)) == reached:
            widths = widths._replace(d_ff=given.d_ff)  # the model does not use it
        count(widths)
        after = settings_of(widths, followers)
        if abs(reached - target) > self.tolerance * target:
            raise self.missed(target, reached, {key: value for key, value in after.items() if value is not None})
        changes = {key: {"from": before[key], "value": after[key]} for key in after if after[key] != before[key]}
        key = next(iter(changes), "size.d_model")
        first = changes.pop(key, {"from": given.d_model, "value": given.d_model})
        record = {"to": "params", "reference": self.reference, "counted": self.counted, "key": key} | first
        return record | ({"also": changes} if changes else {}) | {"target": target, "reached": reached}

    def number(self, model: nn.Module) -> int:
        """Number of a model's parameters, of those that ``count`` and ``active`` select."""
        counts = count_parameters(model)
        number = counts["parameters_without_embeddings" if self.without_embeddings else "parameters"]
        return number - self.active * (counts["parameters"] - counts["active_parameters"])

    def missed(self, target: int, reached: int, settings: dict[str, int]) -> UserError:
        """The error for nearest widths outside the tolerance."""
        difference = reached / target - 1
        enough = math.ceil(100 * abs(difference)) / 100
        rule = (
            f"no width comes within {100 * self.tolerance:g}% of the {target:,} {self.counted.replace('_', ' ')} of "
            f"{self.reference}; {' '.join(f'{key}={value}' for key, value in settings.items())} comes nearest, "
            f"{reached:,} ({difference:+.2%})"
        )
        remedy = f"Set match.tolerance={enough:g}, take a larger size, or another match.reference"
        if enough > FAR:
            remedy = "Set match.reference to a model of the same scale, or take another size"
        return UserError("match", "active_params" if self.active else "params", rule, remedy)


def mixers_that_follow(cfg: DictConfig) -> dict[str, float]:
    """The pattern's mixers whose inner width follows ``d_model`` (``d_inner`` is null), each with its ``expand``."""
    mixers = {name: cfg.model.mixers[name] for name in mixers_in_pattern(cfg.model)}
    follow = {name: node for name, node in mixers.items() if "d_inner" in node and node.d_inner is None}
    return {name: node.get("expand", 1) for name, node in follow.items()}


def settings_of(widths: Widths, followers: dict[str, float]) -> dict[str, int | None]:
    """The configuration's values for these widths, by key."""
    inner = {
        f"model.mixers.{name}.d_inner": None if widths.inner is None else int(times * widths.inner)
        for name, times in followers.items()
    }
    return {"size.d_model": widths.d_model, "size.d_ff": widths.d_ff} | inner
