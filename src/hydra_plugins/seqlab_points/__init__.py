"""Hydra's sweepers for a list of products of settings, and for a search of learning rates.

Hydra looks for plugins in this namespace alone.
"""

import itertools
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override
from typing_extensions import override

from seqlab.sweep.points import refuse_empty, representatives, union


class PointsSweeper(BasicSweeper):
    """Runs a union of products of settings, such as one around each setting that a panel of a figure varies.

    Args:
        points: each a product as on the command line, ``model=mamba,lstm size.n_layers=1,2``. The command line adds to
            them and wins over them. Of the models that it names, a point that names some has its own and those that no
            point names, and one that names none has all; points of other models alone are left out, unless that leaves
            none. A job that several points describe is run once. None is the command line's product alone.
        params: as for Hydra's own sweeper.
        max_batch_size: likewise.
    """

    def __init__(
        self,
        points: Sequence[str] | None = None,
        params: dict[str, str] | None = None,
        max_batch_size: int | None = None,
    ):
        super().__init__(max_batch_size, params)
        self.points = points

    @override
    def split_arguments(self, overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        """The overrides of every job, in batches; a sweep that cannot start is refused."""
        refuse_empty(overrides)
        return self.in_batches(union(self.points, overrides), max_batch_size)

    def in_batches(self, jobs: list[list[str]], max_batch_size: int | None) -> list[list[list[str]]]:
        """The jobs, each once; a sweep of them that cannot start is refused."""
        from seqlab import cli
        from seqlab.sweep import stopping, watch  # import rich, which Hydra's search for plugins need not wait for
        from seqlab.sweep.duplicates import without_duplicates
        from seqlab.sweep.workers import check_workers

        compose = partial(self.hydra_context.config_loader.load_sweep_config, self.config)
        is_group = cache(self.is_group)  # Hydra lists the folder again each time
        jobs, notes = without_duplicates(jobs, compose, is_group)
        check_workers(self.config, len(jobs))
        composed = [compose(list(job)) for job in representatives(jobs, is_group)]  # refuses unknown names
        with cli.importing():
            from seqlab.sweep.shared_mistakes import refuse_shared_mistake  # imports torch

        apart_from_seeds = {frozenset(o for o in job if not o.startswith("seed=")): job for job in jobs}
        refuse_shared_mistake(itertools.chain(composed, map(compose, apart_from_seeds.values())))
        watch.expect(len(jobs), notes)
        stopping.shield(self.launcher)
        return list(self.split_overrides_to_chunks(jobs, max_batch_size))

    @override
    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Do nothing, since ``split_arguments`` has checked all batches."""

    def is_group(self, key: str) -> bool:
        """Whether a key chooses an option of a group; a group's name has no dots."""
        return "." not in key and bool(self.hydra_context.config_loader.get_group_options(key))


class RatesSweeper(PointsSweeper):
    """Runs every model at each rate of a grid, wider ones while a model is best at an end, then further seeds.

    ``seqlab.sweep.rates`` decides on them, round by round.

    Args:
        rates: how many rates the first grid has.
        ratio: of neighbouring ones.
        most: how many rates the grid may have.
        others: as for ``PointsSweeper``.
    """

    def __init__(self, rates: int, ratio: float, most: int, **others: Any):
        super().__init__(**others)
        self.rates, self.ratio, self.most = rates, ratio, most

    @override
    def split_arguments(self, overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        """The overrides of the first round's jobs, in batches."""
        from seqlab.sweep.rates import RateSearch, check, first_round

        check(rates=self.rates, ratio=self.ratio, most=self.most)
        refuse_empty(overrides)
        compose = partial(self.hydra_context.config_loader.load_sweep_config, self.config)
        jobs, seeds = first_round(self.points, overrides, compose, rates=self.rates, ratio=self.ratio)
        batches = self.in_batches(jobs, max_batch_size)
        jobs = [job for batch in batches for job in batch]
        self.search = RateSearch(Path(self.config.hydra.sweep.dir), jobs, seeds, self.most)
        return batches

    @override
    def is_done(self) -> bool:
        """Whether all jobs have been given out; after each round the search may have more."""
        from seqlab.sweep import watch

        if super().is_done():
            jobs, notes = self.search.next_round()
            if jobs:
                watch.expect(sum(map(len, self.overrides)) + len(jobs), notes)
                self.overrides += self.split_overrides_to_chunks(jobs, self.max_batch_size)
            self.search.write()
        return super().is_done()
