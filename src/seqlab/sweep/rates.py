"""A search of each model's learning rate at equal budgets: every model is trained once at each rate of a grid.

The grid is logarithmic, around the model's own rate or as the command line lists it. The best validation loss chooses a
model's rate; a run that diverged is worse than any other. Where some model's choice lies at an end, all grids get one
rate more there, so that all models have had as many runs. The further seeds, if several are given, come last and at the
chosen rates alone.

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
) -> tuple[list[list[str]], list[str]]:
    """The jobs of every model at each rate of its first grid with the first seed, and the overrides of all seeds.

    Args:
        points: those of the sweep, to which the overrides are added.
        overrides: the command line's.
        compose: a job's configuration.
        rates: how many lie around each model's own rate, unless the command line lists them.
        ratio: of neighbouring ones.

    Raises:
        UserError: the command line's rates are no grid, a model has several rates of its own or one that is no number
            above 0, or a point has a seed.
    """
    others = [override for override in overrides if override.get_key_element() not in (RATE, SEED)]
    given = {override.get_key_element(): override for override in overrides}
    seeds = [job[0] for job in union(None, [given[SEED]])] if SEED in given else []
    seeded = next((o for point in points or () for o in point.split() if key_of(o) == SEED), None)
    if seeded is not None and SEED not in given:
        remedy = f"Say {seeded} on the command line, or in hydra.sweeper.params"
        raise UserError("hydra.sweeper.points", seeded, "the seeds of a search are those of all its models", remedy)
    rate = given.get(RATE)
    first_seed = OverridesParser.create().parse_overrides(seeds[:1])
    jobs = union(points, [*others, *([] if rate is None else [rate]), *first_seed])
    listing = rate is not None and rate.is_sweep_override()
    grids: dict[tuple[str, ...], list[float]] = {}
    for job in jobs:
        model = tuple(override for override in job if key_of(override) not in (RATE, SEED))
        grid = listed(rate) if listing else around(rate_of(compose(list(job))), rates, ratio)
        if grids.setdefault(model, grid) != grid:
            remedy = "List the rates of one grid, such as optimizer.lr=1e-4,1e-3,1e-2"
            own = ", ".join(str(one[rates // 2]) for one in sorted((grids[model], grid)))
            raise UserError(RATE, own, "a model's grid lies around one rate", remedy)
    return [[*model, f"{RATE}={value}", *seeds[:1]] for model, grid in grids.items() for value in grid], seeds


def around(center: Any, rates: int, ratio: float) -> list[float]:
    """So many rates, of which the one in the middle is ``center``.

    Raises:
        UserError: that is no number above 0.
    """
    if not isinstance(center, int | float) or not 0 < center < math.inf:
        remedy = "Give it one, or list the grid: optimizer.lr=1e-4,1e-3,1e-2"
        raise UserError(RATE, "null" if center is None else center, "must be a number above 0", remedy)
    return [rounded(center * ratio ** (i - rates // 2)) for i in range(rates)]


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
        jobs: those of the first round, every model at each rate of its grid with the first seed.
        seeds: overrides of all seeds; none leaves the one that the configuration has.
        most: how many rates a grid may have.
    """

    def __init__(self, sweep: Path, jobs: Sequence[list[str]], seeds: Sequence[str], most: int):
        self.sweep, self.most = sweep, most
        self.first_seed, self.further_seeds = list(seeds[:1]), list(seeds[1:])
        self.grids: dict[tuple[str, ...], list[float]] = {}
        for job in jobs:
            model = tuple(o for o in job if key_of(o) not in (RATE, SEED))
            rate = next(float(parse(override)[1]) for override in job if key_of(override) == RATE)
            self.grids[model] = sorted([*self.grids.get(model, []), rate])
        self.runs: dict[frozenset[str], Run] = {}
        self.ended = False

    @property
    def size(self) -> int:
        """The number of rates, which all models have alike."""
        return len(next(iter(self.grids.values())))

    @property
    def shared(self) -> list[float] | None:
        """The grid, if all models have the same."""
        first, *others = self.grids.values()
        return first if all(grid == first for grid in others) else None

    def job(self, model: Sequence[str], rate: float, seed: Sequence[str]) -> list[str]:
        """The overrides of a job."""
        return [*model, f"{RATE}={rate}", *seed]

    def run(self, *job: Any) -> Run:
        """What became of a job."""
        return self.runs.get(frozenset(self.job(*job)), Run())

    def on_grid(self, model: tuple[str, ...]) -> list[Run]:
        """A model's run at each rate."""
        return [self.run(model, rate, self.first_seed) for rate in self.grids[model]]

    def best(self, model: tuple[str, ...]) -> int | None:
        """The index of a model's rate; ``None`` if no run has a loss."""
        losses = [run.validation for run in self.on_grid(model)]
        return losses.index(min(losses)) if min(losses) < math.inf else None

    def next_round(self) -> tuple[list[list[str]], list[str]]:
        """The jobs that the results so far ask for, and lines that say why; none at the end.

        None either where a job has not ended: the same command goes on with it.
        """
        self.runs = dict(runs_in(self.sweep))
        if self.ended or any(run.status is None for model in self.grids for run in self.on_grid(model)):
            return [], []
        if new := self.widened():
            why = "A model is best at an end of the grid, or diverged at all of it"
            added = " and ".join(str(next(iter(rates.values()))) for rates in new)
            what = f"{added} too" if self.shared else "a rate more there"
            jobs = [self.job(model, rate, self.first_seed) for rates in new for model, rate in rates.items()]
            return jobs, [f"{why}: {what}, for every model."]
        self.ended = True
        chosen = [(model, grid[best]) for model, grid in self.grids.items() if (best := self.best(model)) is not None]
        return [self.job(*one, [seed]) for seed in self.further_seeds for one in chosen], []

    def widened(self) -> list[dict[tuple[str, ...], float]]:
        """Add a rate to all grids at each end where a model is best, as far as there may be more; returns the new ones.

        A model of which every run diverged is taken for best below.
        """
        best = [self.best(model) for model in self.grids]
        diverged = any(all(run.status == DIVERGED for run in self.on_grid(model)) for model in self.grids)
        ends = [0] * (0 in best or diverged) + [-1] * (self.size - 1 in best)
        new = [{model: beyond(grid, end) for model, grid in self.grids.items()} for end in ends]
        new = [rates for rates in new if all(0 < rate < math.inf for rate in rates.values())]
        new = new[: max(0, self.most - self.size)]
        self.grids = {model: sorted([*grid, *(rates[model] for rates in new)]) for model, grid in self.grids.items()}
        return new

    def write(self) -> None:
        """Write ``rates.json``, and a link to each run at a chosen rate."""
        self.runs = dict(runs_in(self.sweep))
        vary = varying(list(self.grids))
        models = [
            {"name": name_of(model, vary), "overrides": list(model), "rates": grid} | self.outcome(model)
            for model, grid in self.grids.items()
        ]
        dump(self.sweep / RATES, {"rates": self.shared, "most": self.most, "models": models})
        link(self.sweep / CHOSEN, [run["folder"] for model in models for run in model["chosen"]])

    def outcome(self, model: tuple[str, ...]) -> dict[str, Any]:
        """A model's part of ``rates.json``: every run on the grid, and those of all seeds at the chosen rate."""
        best, on_grid, grid = self.best(model), self.on_grid(model), self.grids[model]
        seeds = [self.first_seed, *([seed] for seed in self.further_seeds)] if best is not None else []
        chosen = [run for seed in seeds if (run := self.run(model, grid[best], seed)).status is not None]
        return {
            "rate": None if best is None else grid[best],
            "below": best,  # how many rates of the grid are lower, and how many higher
            "above": None if best is None else len(grid) - 1 - best,
            "on_grid": [in_json(run) for run in on_grid],
            "chosen": [in_json(run) for run in chosen],
        }


def beyond(grid: Sequence[float], end: int) -> float:
    """The rate that follows the lowest (``end`` 0) or the highest (-1) in the same ratio."""
    ratio = (grid[-1] / grid[0]) ** (1 / (len(grid) - 1))
    return rounded(grid[0] / ratio if end == 0 else grid[-1] * ratio)


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
