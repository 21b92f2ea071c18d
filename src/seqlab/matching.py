"""Overlays that make architectures meet: equal parameters by the width, equal training FLOPs by the steps.

The reference is what ``model=<reference>`` would be in the same command; so all jobs of a sweep have one target.
What was adjusted stands in ``config.yaml`` and ``summary.json`` under ``matched``.
"""

import copy
import logging
import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import torch
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException, MissingConfigException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from pydantic import Field
from torch import nn

from seqlab.config import CONFIG_FOLDER, nearest
from seqlab.errors import UserError
from seqlab.summary import count_parameters
from seqlab.training.budget import total_steps
from seqlab.training.flops import training_flops

log = logging.getLogger(__name__)

Build = Callable[[DictConfig, Any, torch.device], nn.Module]
Tolerance = Annotated[float, Field(gt=0, lt=1)]
META = torch.device("meta")
WIDEST = 16  # times the width that was given; beyond that two models are not comparable by their width


def matched(cfg: DictConfig, build: Build) -> DictConfig:
    """The configuration after its ``match`` overlay, or as it is where there is none.

    Args:
        cfg: a job's, with its interpolations, while Hydra's own configuration is the job's.
        build: a model from a configuration, a data object and a device.
    """
    if cfg.get("match") is None:
        return cfg
    match = instantiate(cfg.match)
    reference = cfg if HydraConfig.get().runtime.choices.model == match.reference else compose_with(match.reference)
    data = instantiate(cfg.data, _convert_="all")

    def model_of(cfg: DictConfig) -> nn.Module:
        with META:
            return build(cfg, data, META)

    cfg = copy.deepcopy(cfg)
    record = match(cfg, reference, data, model_of)
    difference = 100 * (record["reached"] / record["target"] - 1)
    told = [record[name] for name in ("reference", "target", "to", "key", "from", "value", "reached")]
    log.info("Matched to %s with %d %s: %s from %s to %s gives %d (%+.2f %%).", *told, difference)
    with open_dict(cfg):
        cfg.matched = record
    return cfg


class EqualParameters:
    """The width at which a model has as many parameters as the reference.

    The feed-forward keeps its proportion to the width. Coarse steps of the width come first, then finer ones down to
    what the heads allow, then the feed-forward alone.

    Args:
        reference: a model's name.
        count: ``without_embeddings`` leaves out lookup tables (a tied head counts), ``total`` nothing.
        tolerance: largest relative difference.
    """

    def __init__(
        self,
        *,
        reference: str,
        count: Literal["without_embeddings", "total"] = "without_embeddings",
        tolerance: Tolerance = 0.01,
    ):
        self.reference, self.tolerance = reference, tolerance
        self.counted = "parameters" if count == "total" else "parameters_without_embeddings"

    def __call__(
        self, cfg: DictConfig, reference: DictConfig, data: Any, model_of: Callable[[DictConfig], nn.Module]
    ) -> dict[str, Any]:
        """Set ``size.d_model`` and ``size.d_ff`` of ``cfg``; returns what was done."""

        def count(cfg: DictConfig) -> int:
            return count_parameters(model_of(cfg))[self.counted]

        target = count(reference)
        before = {"d_model": cfg.size.d_model, "d_ff": cfg.size.d_ff}

        def count_at(width: int, d_ff: int) -> int:
            cfg.size.d_model, cfg.size.d_ff = width, d_ff
            return count(cfg)

        width, d_ff, reached = self.search(count_at, target, **before, n_heads=cfg.size.n_heads)
        if count_at(width, before["d_ff"]) == reached:
            d_ff = before["d_ff"]  # the model has no use for it
        cfg.size.d_model, cfg.size.d_ff = width, d_ff
        changes = {
            f"size.{name}": {"from": old, "value": cfg.size[name]}
            for name, old in before.items()
            if cfg.size[name] != old
        }
        key = next(iter(changes), "size.d_model")
        first = changes.pop(key, {"from": before["d_model"], "value": width})
        record = {"to": "params", "reference": self.reference, "counted": self.counted, "key": key} | first
        return record | ({"also": changes} if changes else {}) | {"target": target, "reached": reached}

    def search(
        self, count: Callable[[int, int], int], target: int, *, d_model: int, d_ff: int, n_heads: int
    ) -> tuple[int, int, int]:
        """Width, feed-forward width and number of parameters of the first candidate that is near enough.

        Args:
            count: parameters at a width and a feed-forward width; raises where the heads do not fit.
            target: how many there should be.
            d_model, d_ff: the widths that were given.
            n_heads: which has to divide a width of attention.
        """
        nearest_so_far = None
        for width, hidden, reached in candidates(count, target, d_model=d_model, d_ff=d_ff, n_heads=n_heads):
            if nearest_so_far is None or abs(reached - target) < abs(nearest_so_far[2] - target):
                nearest_so_far = width, hidden, reached
            if abs(reached - target) <= self.tolerance * target:
                return width, hidden, reached
        if nearest_so_far is None:
            rule = f"no width up to {WIDEST * d_model} gives the {target:,} {words(self.counted)} of {self.reference}"
            raise UserError("match.reference", self.reference, rule, "Choose a reference of the model's own scale")
        width, hidden, reached = nearest_so_far
        rule = (
            f"no width comes within {self.tolerance:.1%} of the {target:,} {words(self.counted)} of {self.reference}; "
            f"size.d_model={width} size.d_ff={hidden} comes nearest, {reached:,} ({reached / target - 1:+.2%})"
        )
        raise UserError("match", "params", rule, "Take a larger size, or set match.tolerance to what is near enough")


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
                f"({reached / target - 1:+.2%}), and {self.tolerance:.1%} is asked"
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


def words(counted: str) -> str:
    return counted.replace("_", " ")


def candidates(
    count: Callable[[int, int], int], target: int, *, d_model: int, d_ff: int, n_heads: int
) -> Iterator[tuple[int, int, int]]:
    """Widths, feed-forward widths and parameters, from those that change least and run best to the finest.

    First the widths as given; then, in steps of 16 and whole pairs a head, of pairs a head, of a head's width, of 2
    and of 1, the two widths on either side of the target; last the feed-forward alone, at widths around those.
    """
    yield d_model, d_ff, count(d_model, d_ff)
    around, finest = d_model, 2 * n_heads

    def proportional(width: int) -> int:
        return max(1, round(d_ff * width / d_model))

    for unit in sorted({math.lcm(16, 2 * n_heads), 2 * n_heads, n_heads, 2, 1}, reverse=True):
        try:
            crossing = first_reaching(
                lambda k, unit=unit: count(k * unit, proportional(k * unit)), target, WIDEST * d_model // unit
            )
        except InstantiationException:
            continue  # the heads do not allow such widths
        for k, reached in crossing:
            around, finest = k * unit, unit
            yield around, proportional(around), reached
    for distance in sorted(range(-8, 9), key=abs):
        width = around + distance * finest
        if width >= 1:
            for hidden, reached in first_reaching(
                lambda hidden, w=width: count(w, hidden), target, 2 * proportional(width)
            ):
                if hidden * 2 >= proportional(width):
                    yield width, hidden, reached


def first_reaching(count: Callable[[int], int], target: int, limit: int) -> list[tuple[int, int]]:
    """The last whole number at which a growing ``count`` is below the target and the first at which it is not.

    Each with its count; the one nearer to the target comes first. Empty where none up to ``limit`` reaches it.
    """
    if limit < 1 or count(limit) < target:
        return []
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        if count(middle) < target:
            low = middle
        else:
            high = middle
    found = [(k, count(k)) for k in (low, high) if k >= 1]
    return sorted(found, key=lambda pair: abs(pair[1] - target))


def compose_with(model: str) -> DictConfig:
    """The running job's configuration with another model, resolved.

    An override of a part that the other model does not have (``model.mixers.mamba.d_state``) is left out.
    """
    hydra = HydraConfig.get()
    overrides = list(hydra.overrides.task)
    own = [o for o in overrides if bare_key(o).startswith("model.")]
    shared = [o for o in overrides if o not in own and bare_key(o).split(".")[0] not in ("model", "match", "resume")]
    shared.append(f"model={model}")
    try:
        plain = resolved_composition(hydra.job.config_name, shared)
    except MissingConfigException as error:
        if error.missing_cfg_file != f"model/{model}":
            raise
        options = sorted(path.stem for path in (CONFIG_FOLDER / "model").glob("*.yaml"))
        raise UserError("match.reference", model, "is no option of model", nearest(model, options)) from error
    absent = object()
    kept = [o for o in own if OmegaConf.select(plain, bare_key(o), default=absent) is not absent]
    return resolved_composition(hydra.job.config_name, shared + kept) if kept else plain


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
