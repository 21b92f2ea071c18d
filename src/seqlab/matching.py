"""Overlays that make architectures meet: equal parameters by the width, equal training FLOPs by the steps.

The reference is what ``model=<reference>`` would be in the same command without the overrides under ``model.``, which
are the candidate's alone; so all jobs of a sweep have one target, whatever each changes in its own model.
What was adjusted stands in ``config.yaml`` and ``summary.json`` under ``matched``.
"""

import copy
import logging
import math
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Literal

import torch
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException, MissingConfigException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from pydantic import Field
from torch import nn

from seqlab.config import model_options, search_path
from seqlab.errors import UserError, nearest
from seqlab.summary import count_parameters
from seqlab.training.budget import total_steps
from seqlab.training.flops import training_flops
from seqlab.width_search import Unfit, Widths, nearest_widths

log = logging.getLogger(__name__)

Build = Callable[[DictConfig, Any, torch.device], nn.Module]
Tolerance = Annotated[float, Field(gt=0, lt=1)]
META = torch.device("meta")
FAR = 0.2  # a difference that no tolerance makes good


def matched(cfg: DictConfig, build: Build) -> DictConfig:
    """The configuration after its ``match`` overlay, or as it is where there is none.

    Args:
        cfg: a job's, with its interpolations, while Hydra's own configuration is the job's.
        build: a model from a configuration, a data object and a device.
    """
    if cfg.get("match") is None:
        return cfg
    match = instantiate(cfg.match)
    reference = compose_with(match.reference)
    data = instantiate(cfg.data, _convert_="all")

    def model_of(cfg: DictConfig) -> nn.Module:
        with META:
            return build(cfg, data, META)

    cfg = copy.deepcopy(cfg)
    record = match(cfg, reference, data, model_of)
    log.info("%s", in_words(record))
    with open_dict(cfg):
        cfg.matched = record
    return cfg


def in_words(record: dict[str, Any]) -> str:
    """What was adjusted and what came of it, in a line."""
    changes = {record["key"]: record} | record.get("also", {})
    told = ", ".join(f"{key} from {one['from']} to {one['value']}" for key, one in changes.items())
    what = record.get("counted", record["to"]).replace("_", " ")
    target, reached = record["target"], record["reached"]
    difference = 100 * (reached / target - 1)
    return f"Matched to {record['reference']} with {target:,} {what}: {told} gives {reached:,} ({difference:+.2f} %)."


class EqualParameters:
    """The width at which a model has as many parameters as the reference.

    The feed-forward keeps its proportion to the width. Coarse steps of the width come first, then finer ones down to
    what the heads allow, then the feed-forward alone; last the width whatever the heads, with the mixers as wide inside
    (``d_inner``) as at the nearest width that the heads allow.

    Args:
        reference: a model's name.
        count: ``without_embeddings`` leaves out lookup tables (a tied head counts), ``total`` nothing.
        active: count what a token meets: of a mixture's experts as many as it visits. Dense models have no other.
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
        self, cfg: DictConfig, reference: DictConfig, data: Any, model_of: Callable[[DictConfig], nn.Module]
    ) -> dict[str, Any]:
        """Set ``size.d_model``, ``size.d_ff`` and the mixers' ``d_inner`` of ``cfg``; returns what was done."""
        target = self.number(model_of(reference))
        self.number(model_of(cfg))  # what cannot be built as it was asked for says so itself
        given, n_heads, followers = Widths(cfg.size.d_model, cfg.size.d_ff), cfg.size.n_heads, mixers_that_follow(cfg)
        before = settings_of(given, followers)

        def count(widths: Widths) -> int:
            for key, value in settings_of(widths, followers).items():
                OmegaConf.update(cfg, key, value)
            try:
                return self.number(model_of(cfg))
            except InstantiationException as error:
                raise Unfit from error

        widths, reached = nearest_widths(
            cache(count), target, self.tolerance, given, n_heads=n_heads, holds_inner=bool(followers)
        )
        if count(widths._replace(d_ff=given.d_ff)) == reached:
            widths = widths._replace(d_ff=given.d_ff)  # the model has no use for it
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
        """What is to be equal."""
        counts = count_parameters(model)
        number = counts["parameters_without_embeddings" if self.without_embeddings else "parameters"]
        return number - self.active * (counts["parameters"] - counts["active_parameters"])

    def missed(self, target: int, reached: int, settings: dict[str, int]) -> UserError:
        """How near the nearest widths come, and what to do."""
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


def mixers_that_follow(cfg: DictConfig) -> dict[str, int]:
    """Of the mixers in the pattern those whose inner width follows the model's, each with the one over the other."""
    mixers = {name: cfg.model.mixers[name] for name in cfg.model.pattern}
    follow = {name: node for name, node in mixers.items() if "d_inner" in node and node.d_inner is None}
    return {name: node.get("expand", 1) for name, node in follow.items()}


def settings_of(widths: Widths, followers: dict[str, int]) -> dict[str, int | None]:
    """Every setting that widths mean, by its key."""
    inner = {
        f"model.mixers.{name}.d_inner": None if widths.inner is None else times * widths.inner
        for name, times in followers.items()
    }
    return {"size.d_model": widths.d_model, "size.d_ff": widths.d_ff} | inner


class EqualFlops:
    """The number of steps at which training costs as many FLOPs as that of the reference.

    Args:
        reference: a model's name.
        tolerance: largest relative difference.
    """

    def __init__(self, *, reference: str, tolerance: Tolerance = 0.01):
        self.reference, self.tolerance = reference, tolerance

    def __call__(
        self, cfg: DictConfig, reference: DictConfig, data: Any, model_of: Callable[[DictConfig], nn.Module]
    ) -> dict[str, Any]:
        """Set the budget of ``cfg`` to a number of steps; returns what was done."""

        def cost(cfg: DictConfig) -> tuple[int, int]:
            trainer = instantiate(cfg.trainer, _convert_="all")
            return total_steps(trainer, data), trainer.batch_size * training_flops(model_of(cfg), data)

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
        cfg.trainer.steps, cfg.trainer.epochs, cfg.trainer.tokens = steps, None, None
        return {
            "to": "flops",
            "reference": self.reference,
            "key": "trainer.steps",
            "from": before,
            "value": steps,
            "target": target,
            "reached": reached,
        }


def compose_with(model: str) -> DictConfig:
    """The running job's configuration with another model as its file has it, resolved."""
    hydra = HydraConfig.get()
    own = ("model", "match", "resume")
    shared = [override for override in hydra.overrides.task if bare_key(override).split(".")[0] not in own]
    try:
        return resolved_composition(hydra.job.config_name, [*search_path(), *shared, f"model={model}"])
    except MissingConfigException as error:
        if error.missing_cfg_file != f"model/{model}":
            raise
        raise UserError("match.reference", model, "is no option of model", nearest(model, model_options())) from error


def bare_key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def resolved_composition(name: str, overrides: list[str]) -> DictConfig:
    """A composition whose ``hydra:`` interpolations mean its own choices and not the running job's."""
    cfg = compose(name, overrides, return_hydra_config=True)
    running = HydraConfig.instance().cfg
    try:
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    finally:
        HydraConfig.instance().cfg = running
