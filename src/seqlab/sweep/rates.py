"""A search of each model's learning rate at equal budgets: every model is trained once at each rate of one grid.

The grid is logarithmic. The best validation loss chooses a model's rate; a run that diverged is worse than any other.
Where some model's choice lies at an end, the grid gets one rate more there, for all models, so that all have had as
many runs. The further seeds, if several are given, come last and at the chosen rates alone.

Every run is a job of the sweep, so the same command again makes those that are missing. ``rates.json`` in the sweep's
folder has the outcome, ``chosen/`` there a link to each run at a chosen rate.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from seqlab.config.overrides import hydra_of, parse
from seqlab.errors import UserError
from seqlab.jsonio import dump, finite, load
from seqlab.sweep.entries import CHOSEN, RATES, read
from seqlab.sweep.jobs import COMPLETED, DIVERGED, FAILED, RATE, key_of, varying
from seqlab.sweep.points import union

SEED = "seed"


def rounded(rate: float) -> float:
    """A rate of three significant digits, whose text is that of an override."""
    return float(f"{rate:.3g}")


def first_round(
    points: Sequence[str] | None,
    overrides: Sequence[Override],
    compose: Callable[[list[str]], DictConfig],
    *,
    rates: int,
    ratio: float,
) -> tuple[list[Override], list[str]]:
    """The overrides of every model at each rate of the first grid with the first seed, and the overrides of all seeds.

    Args:
        points: those of the sweep, to which the overrides are added.
        overrides: the command line's.
        compose: a job's configuration.
        rates: how many lie around the models' own rate, unless the command line lists them.
        ratio: of neighbouring ones.

    Raises:
        UserError: the command line's rates are no grid, the models have different rates of their own or one that is no
            number above 0, or a point has a seed.
    """
    others = [override for override in overrides if override.get_key_element() not in (RATE, SEED)]
    given = {override.get_key_element(): override for override in overrides}
    seeds = [job[0] for job in union(None, [given[SEED]])] if SEED in given else []
    seeded = next((o for point in points or () for o in point.split() if key_of(o) == SEED), None)
    if seeded is not None and SEED not in given:
        remedy = f"Say {seeded} on the command line, or in hydra.sweeper.params"
        raise UserError("hydra.sweeper.points", seeded, "the seeds of a search are those of all its models", remedy)
    rate = given.get(RATE)
    if rate is not None and rate.is_sweep_override():
        grid = listed(rate)
    else:
        jobs = union(points, [*others, *([] if rate is None else [rate])])
        own = {rate_of(config) for config in map(compose, map(list, jobs))}
        if len(own) > 1:
            remedy = "List the rates of one grid, such as optimizer.lr=1e-4,1e-3,1e-2"
            raise UserError(RATE, ", ".join(sorted(map(str, own))), "a grid for all lies around one rate", remedy)
        (center,) = own
        if not isinstance(center, int | float) or not 0 < center < math.inf:
            remedy = "Give it one, or list the grid: optimizer.lr=1e-4,1e-3,1e-2"
            raise UserError(RATE, "null" if center is None else center, "must be a number above 0", remedy)
        grid = [rounded(center * ratio ** (i - rates // 2)) for i in range(rates)]
    on_grid = [f"{RATE}={','.join(map(str, grid))}", *seeds[:1]]
    return [*others, *OverridesParser.create().parse_overrides(on_grid)], seeds


def rate_of(config: DictConfig) -> Any:
    """The learning rate of a composed job."""
    with hydra_of(config):
        return config.optimizer.lr


def listed(rate: Override) -> list[float]:
    """The grid that a command line lists.

    Raises:
        UserError: it is not two numbers above 0 or more.
    """
    try:
        grid = sorted({float(value) for value in rate.sweep_string_iterator()}) if rate.is_discrete_sweep() else []
    except ValueError:
        grid = []
    if len(grid) < 2 or not all(0 < value < math.inf for value in grid):
        rule, remedy = (
            "is no grid, which has two rates or more, each a number above 0",
            "For example optimizer.lr=1e-4,1e-3,1e-2",
        )
        raise UserError(RATE, parse(rate.input_line)[1], rule, remedy)
    return grid


def check(*, rates: Any, ratio: Any, most: Any) -> None:
    """Refuse numbers with which there is no grid.

    Raises:
        UserError: names the first of them.
    """
    for key, value in (("rates", rates), ("most", most)):
        if type(value) is not int or not 2 <= value <= 99:
            raise UserError(f"hydra.sweeper.{key}", value, "must be a whole number from 2 to 99", "Give it one")
    if not isinstance(ratio, int | float) or not 1.01 <= ratio <= 1000:  # nearer rates are equal in three digits
        raise UserError("hydra.sweeper.ratio", ratio, "must be a number from 1.01 to 1000", "For example 3.1623")


class Run(NamedTuple):
    """What became of a job: its folder within the sweep's, its status once it ended, and its losses."""

    folder: str = ""
    status: str | None = None
    validation: float = math.inf  # the best one; infinite unless it completed
    test: float = math.inf


class RateSearch:
    """The jobs of a search, one round at a time.

    Args:
        sweep: its folder.
        jobs: those of the first round, every model at each rate with the first seed.
        seeds: overrides of all seeds; none leaves the one that the configuration has.
        most: how many rates the grid may have.
    """

    def __init__(self, sweep: Path, jobs: Sequence[list[str]], seeds: Sequence[str], most: int):
        self.sweep, self.most = sweep, most
        self.first_seed, self.further_seeds = list(seeds[:1]), list(seeds[1:])
        self.rates = sorted({float(parse(override)[1]) for job in jobs for override in job if key_of(override) == RATE})
        self.models = list(dict.fromkeys(tuple(o for o in job if key_of(o) not in (RATE, SEED)) for job in jobs))
        self.runs: dict[frozenset[str], Run] = {}
        self.ended = False

    def job(self, model: Sequence[str], rate: float, seed: Sequence[str]) -> list[str]:
        """The overrides of a job."""
        return [*model, f"{RATE}={rate}", *seed]

    def run(self, *job: Any) -> Run:
        """What became of a job."""
        return self.runs.get(frozenset(self.job(*job)), Run())

    def on_grid(self, model: Sequence[str]) -> list[Run]:
        """A model's run at each rate."""
        return [self.run(model, rate, self.first_seed) for rate in self.rates]

    def best(self, model: Sequence[str]) -> int | None:
        """The index of a model's rate; ``None`` if no run has a loss."""
        losses = [run.validation for run in self.on_grid(model)]
        return losses.index(min(losses)) if min(losses) < math.inf else None

    def next_round(self) -> tuple[list[list[str]], list[str]]:
        """The jobs that the results so far ask for, and lines that say why; none at the end.

        None either where a job has not ended: the same command goes on with it.
        """
        self.runs = dict(runs_in(self.sweep))
        if self.ended or any(run.status is None for model in self.models for run in self.on_grid(model)):
            return [], []
        if new := self.widened():
            why = "A model is best at an end of the grid, or diverged at all of it"
            note = f"{why}: {' and '.join(map(str, new))} too, for every model."
            return [self.job(model, rate, self.first_seed) for rate in new for model in self.models], [note]
        self.ended = True
        chosen = [(model, self.rates[best]) for model in self.models if (best := self.best(model)) is not None]
        return [self.job(*one, [seed]) for seed in self.further_seeds for one in chosen], []

    def widened(self) -> list[float]:
        """Add a rate at each end where a model is best, as far as there may be more; returns the new ones.

        A model of which every run diverged is taken for best below.
        """
        best = [self.best(model) for model in self.models]
        diverged = any(all(run.status == DIVERGED for run in self.on_grid(model)) for model in self.models)
        lowest, highest = self.rates[0], self.rates[-1]
        ratio = (highest / lowest) ** (1 / (len(self.rates) - 1))
        new = [rounded(lowest / ratio)] * (0 in best or diverged)
        new += [rounded(highest * ratio)] * (len(self.rates) - 1 in best)
        new = [rate for rate in new if 0 < rate < math.inf][: max(0, self.most - len(self.rates))]
        self.rates = sorted([*self.rates, *new])
        return new

    def write(self) -> None:
        """Write ``rates.json``, and a link to each run at a chosen rate."""
        self.runs = dict(runs_in(self.sweep))
        vary = varying(self.models)
        models = [
            {"name": name_of(model, vary), "overrides": list(model)} | self.outcome(model) for model in self.models
        ]
        dump(self.sweep / RATES, {"rates": self.rates, "most": self.most, "models": models})
        link(self.sweep / CHOSEN, [run["folder"] for model in models for run in model["chosen"]])

    def outcome(self, model: Sequence[str]) -> dict[str, Any]:
        """A model's part of ``rates.json``: every run on the grid, and those of all seeds at the chosen rate."""
        best, on_grid = self.best(model), self.on_grid(model)
        seeds = [self.first_seed, *([seed] for seed in self.further_seeds)] if best is not None else []
        chosen = [run for seed in seeds if (run := self.run(model, self.rates[best], seed)).status is not None]
        return {
            "rate": None if best is None else self.rates[best],
            "below": best,  # how many rates of the grid are lower, and how many higher
            "above": None if best is None else len(self.rates) - 1 - best,
            "on_grid": [in_json(run) for run in on_grid],
            "chosen": [in_json(run) for run in chosen],
        }


def name_of(model: Sequence[str], vary: Sequence[str]) -> str:
    """A model by what tells it from the others, ``mamba`` or ``mamba size=small``."""
    own = [override for override in model if key_of(override) in vary] or [o for o in model if key_of(o) == "model"]
    own.sort(key=lambda override: key_of(override) != "model")
    return " ".join(override.removeprefix("model=") for override in own) or "the model"


def in_json(run: Run) -> dict[str, Any]:
    """A run with null for a loss that it does not have."""
    return {key: finite(value) for key, value in run._asdict().items()}


def runs_in(sweep: Path) -> Iterator[tuple[frozenset[str], Run]]:
    """What became of each job of a sweep, by its overrides."""
    for entry in read(sweep):
        status = entry.outcome if entry.outcome in (COMPLETED, DIVERGED, FAILED) else None
        losses = []
        if status == COMPLETED:
            summary = load(sweep / entry.folder / "summary.json")
            losses = [summary.get("best_validation_loss"), (summary.get("test") or {}).get("loss")]
        yield frozenset(entry.overrides), Run(entry.folder, status, *(math.inf if x is None else x for x in losses))


def link(folder: Path, runs: Sequence[str]) -> None:
    """Make a folder of links to run folders beside it, and to no others; not where there are no links."""
    with contextlib.suppress(OSError):
        folder.mkdir(exist_ok=True)
        for path in filter(Path.is_symlink, list(folder.iterdir())):
            path.unlink()
        for name in runs:
            (folder / name.replace("/", "_")).symlink_to(Path("..") / name, target_is_directory=True)
