"""The folder of a sweep, found again by its overrides, and of each job, named by the settings that vary."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig

from seqlab.config.influence import UNNAMED, WITHOUT_INFLUENCE
from seqlab.config.overrides import sets_any
from seqlab.sweep.entries import read
from seqlab.sweep.jobs import RATE, key_of, varying
from seqlab.sweep.points import union

POINTS = "hydra_plugins.seqlab_points.PointsSweeper"
"""The sweeper that knows its jobs before the first one runs. It replaces Hydra's own, which composes every job twice,
once only to see whether that is possible."""

RATES = "hydra_plugins.seqlab_points.RatesSweeper"
"""The sweeper whose jobs differ in their learning rates too."""

LONGEST = 128
"""Bytes of a folder's name; file systems take 255, some with encryption 143."""

SEARCH = ("hydra/sweeper", "hydra.sweeper")
"""Of Hydra's own settings, those that choose the jobs."""

HOW_FAR = ("hydra.sweeper.trials", "hydra.sweeper.most", "hydra.sweeper.max_batch_size")
"""Of these, the number of jobs and of those at a time: a search may be continued with more."""


def sweep_folder(resume: bool, overrides: Mapping[str, Sequence[str]], fresh: str) -> str:
    """The folder of a sweep.

    Args:
        resume: whether to go on with an earlier sweep of the same overrides.
        overrides: ``task`` and ``hydra``, as typed.
        fresh: what a new folder is called, without the mark of its overrides.
    """
    jobs = [o for o in overrides["task"] if not sets_any(o, WITHOUT_INFLUENCE)]
    jobs += [o for o in overrides["hydra"] if sets_any(o, SEARCH) and not sets_any(o, HOW_FAR)]
    parent, name, mark = Path(fresh).parent, Path(fresh).name.partition("_")[0], mark_of(jobs)
    earlier = sorted(path for path in parent.glob(f"{name}_*_{mark}") if path.is_dir()) if resume else []
    return str(earlier[-1] if earlier else f"{fresh}_{mark}")


def mark_of(overrides: Iterable[str]) -> str:
    """A hash of overrides in eight characters, independent of their order."""
    return hashlib.sha256(json.dumps(sorted(overrides)).encode()).hexdigest()[:8]


def varying_keys(typed: Sequence[str], sweeper: DictConfig) -> list[str]:
    """The keys that differ between a sweep's jobs; none for a single job, or where only the sweeper knows the jobs.

    Args:
        typed: the command line's overrides.
        sweeper: ``hydra.sweeper``.
    """
    if sweeper.get("_target_") not in (POINTS, RATES):
        return []
    params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    try:
        keys = varying(union(sweeper.get("points"), parser.parse_overrides([*params, *typed])))
        return list(dict.fromkeys([*keys, *([RATE] if sweeper.get("_target_") == RATES else [])]))
    except HydraException:
        return []  # the sweeper refuses it with a message of its own


def job_folder(sweep: str, overrides: Sequence[str], dirname: str, varies: Sequence[str]) -> str:
    """The name of a job's folder, beneath its sweep's.

    A job that has one in the sweep's folder keeps it, whatever it is called: its entry names it, or, where there is
    none, its name is made of all overrides, as was once done. Otherwise it gets a name that no other job has.

    Args:
        sweep: the sweep's folder.
        overrides: the job's.
        dirname: all of them as Hydra makes a name of them.
        varies: the keys that differ between the sweep's jobs; without any, all overrides are the name.
    """
    entries = read(Path(sweep))
    for entry in entries:
        differing = set(overrides).symmetric_difference(entry.overrides)
        if not any(names_job(override, varies) for override in differing) and (Path(sweep) / entry.folder).is_dir():
            return entry.folder
    others = {entry.folder for entry in entries}
    if dirname and dirname not in others and len(dirname.encode()) < 256 and (Path(sweep) / dirname).is_dir():
        return dirname
    own = sorted(override for override in overrides if names_job(override, varies))
    parts = [override for override in own if key_of(override) in varies] if varies else own
    name = named(parts, mark_of(own))
    return name if name not in others else named(parts, mark_of(own), always=True)


def names_job(override: str, varies: Sequence[str]) -> bool:
    """Whether jobs that differ in an override are different ones."""
    return key_of(override) in varies or not sets_any(override, UNNAMED)


def named(parts: Sequence[str], mark: str, *, always: bool = False) -> str:
    """A name of ``parts``, as many as there is room for; the ``mark`` stands for what a name cannot hold."""
    name = ",".join(parts)
    if name and "/" not in name and len(name.encode()) <= LONGEST and not always:
        return name
    room, kept = LONGEST - len(mark), set()
    for part in sorted((part for part in parts if "/" not in part), key=len):
        room -= len(part.encode()) + 1
        if room >= 0:
            kept.add(part)
    return ",".join([*(part for part in parts if part in kept), mark])
