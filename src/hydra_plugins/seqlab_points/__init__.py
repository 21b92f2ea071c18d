"""A sweep that is a list of sweeps: Hydra's own sweeper with several products of settings in place of one."""

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override


class PointsSweeper(BasicSweeper):
    """Runs each of ``points``, in settings as on the command line, with what the command line and ``params`` add.

    A panel of a figure varies one setting around a base, and which settings there are depends on the model; a product
    of all would be mostly jobs that nobody asked for, or that differ in nothing.

    Args:
        points: each a product, ``model=mamba,lstm size.n_layers=1,2``. The command line wins over them, and a job that
            several of them describe is run once; where it names models, points of other ones alone are left out, unless
            that leaves none. None leaves the command line alone.
        params: as for Hydra's own sweeper.
        max_batch_size: likewise.
    """

    def __init__(
        self, points: Sequence[str] | None, params: dict[str, str] | None = None, max_batch_size: int | None = None
    ):
        super().__init__(max_batch_size, params)
        self.points = points

    def split_arguments(self, overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        jobs = union(self.points, overrides)
        return list(self.split_overrides_to_chunks(jobs, max_batch_size))


def union(points: Sequence[str] | None, overrides: list[Override]) -> list[list[str]]:
    """The overrides of every job, each job once."""
    given = {override.get_key_element() for override in overrides}
    parser = OverridesParser.create()
    parsed = [parser.parse_overrides(point.split()) for point in points or [""]]
    wanted = models_of(overrides)
    about = [point for point in parsed if not (wanted and models_of(point)) or wanted & models_of(point)]
    jobs: dict[frozenset[str], list[str]] = {}
    for point in about or parsed:
        own = [o for o in point if o.get_key_element() not in given]
        for job in BasicSweeper.split_arguments([*own, *overrides], None)[0]:
            jobs.setdefault(frozenset(job), job)
    return list(jobs.values())


def models_of(overrides: list[Override]) -> set[str]:
    """The models that overrides choose, none if they leave that open."""
    chosen = [override for override in overrides if override.get_key_element() == "model"]
    return {job[0].partition("=")[2] for job in BasicSweeper.split_arguments(chosen, None)[0] if job}
