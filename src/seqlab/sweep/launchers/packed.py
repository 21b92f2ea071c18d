"""A job of a sweep, packed to run in a process of its own: composed here, run there by ``seqlab.commands.job``."""

import copy
import math
import os
import pickle
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from seqlab.config import CONFIG_FOLDER
from seqlab.config.overrides import hydra_of
from seqlab.sweep.entries import ENTRIES, RUNNING, Entry
from seqlab.sweep.jobs import INTERRUPTED

COMMAND = ("-m", "seqlab.commands.job")
"""Arguments of Python that run a packed job: of the file that follows, or else of standard input."""


@dataclass(frozen=True)
class Packed:
    """A job that is to run, or runs, in a process of its own.

    Args:
        config: its configuration, with ``hydra``.
        written: modification time of its entry when it was composed, 0 without one.
    """

    config: DictConfig
    written: int = 0

    @property
    def entry(self) -> Entry:
        """As the job itself writes it when it begins."""
        hydra = self.config.hydra
        folder = os.path.relpath(hydra.runtime.output_dir, hydra.sweep.dir)
        return Entry(hydra.job.num, folder, list(hydra.overrides.task))

    @property
    def processes(self) -> int:
        """On each machine."""
        return self.config.sweep.processes or 1

    @cached_property
    def log(self) -> Path:
        """The file for what its processes write to their streams: little, unless one dies."""
        path = Path(self.config.hydra.sweep.dir) / ENTRIES / f"{self.config.hydra.job.num}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.absolute()

    def pack(self) -> bytes:
        """What ``run`` takes: the configuration, in which the folder's name is settled.

        The types of a plugin's settings cannot be pickled plainly, since Hydra imports plugins twice.
        """
        config = copy.deepcopy(self.config)
        with read_write(config.hydra), open_dict(config.hydra):
            for part in ("launcher", "sweeper"):
                config.hydra[part] = OmegaConf.to_container(config.hydra[part])
            config.hydra.sweep.dir, config.hydra.sweep.subdir = config.hydra.sweep.dir, self.entry.folder
        return pickle.dumps(config)

    def shown(self) -> "Packed":
        """The same job, which is queued or running: if it has begun, its entry says so, for the table of this sweep."""
        sweep = Path(self.config.hydra.sweep.dir)
        path = self.entry.path(sweep)
        if path.exists() and self.entry.now(sweep).outcome in (RUNNING, INTERRUPTED):
            self.entry.write(sweep)
        return replace(self, written=modified(path))

    def over(self, log: Path | None = None) -> JobReturn:
        """What Hydra is told when the job's process has ended; how it did, sweepers read from the files that it left.

        A process that ended before the job began left none: its entry then says so.

        Args:
            log: what the process wrote, if not to the file above.
        """
        hydra, entry = self.config.hydra, self.entry
        sweep = Path(hydra.sweep.dir)
        if modified(entry.path(sweep)) == self.written:
            Path(hydra.runtime.output_dir).mkdir(parents=True, exist_ok=True)  # by which it keeps its name
            entry.end(sweep, "failed", f"Its process ended before the job began; what it said is in {log or self.log}")
        config = OmegaConf.create({"hydra": hydra})
        return JobReturn(entry.overrides, hydra_cfg=config, status=JobStatus.COMPLETED, _return_value=math.nan)


def composed(launcher: Launcher, overrides: Sequence[str], number: int) -> Packed:
    """A job, whose folder has its name from now on.

    Args:
        launcher: Hydra's, which has been set up.
        overrides: the job's.
        number: its place in the sweep.
    """
    config = launcher.hydra_context.config_loader.load_sweep_config(launcher.config, list(overrides))
    with open_dict(config.hydra.job):
        config.hydra.job.id, config.hydra.job.num = f"job_id_for_{number}", number
    with hydra_of(config):
        name = str(config.hydra.sweep.subdir)
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.sweep.subdir = name
        config.hydra.runtime.output_dir = str((Path(config.hydra.sweep.dir) / name).absolute())
    return Packed(config, modified(Packed(config).entry.path(Path(config.hydra.sweep.dir))))


def modified(path: Path) -> int:
    """A file's modification time in nanoseconds, 0 if there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def run(packed: bytes, task: TaskFunction) -> float:
    """Run a packed job as Hydra's launchers run theirs, and return what ``task`` does, its best validation loss.

    Of several processes that torchrun started, the first alone comes here; ``.hydra`` is there already.
    """
    config = pickle.loads(packed)
    setup_globals()
    hydra = hydra_for(config)
    JobRuntime.instance().set("name", config.hydra.job.name)
    if "RANK" in os.environ:
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.output_subdir = None
    result = run_job(
        task_function=task,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
        hydra_context=HydraContext(hydra.config_loader, Callbacks(config)),
    )
    return result.return_value  # or raises what the task did


def hydra_for(config: DictConfig) -> Hydra:
    """A Hydra that looks where the sweep's does, for a job that composes another configuration beside its own."""
    places = create_config_search_path(str(CONFIG_FOLDER))
    for source in config.hydra.runtime.config_sources:
        if source.provider == "command-line":  # the user's own folder (--config-dir)
            places.append(source.provider, f"{source.schema}://{source.path}")
    return Hydra.create_main_hydra2(config.hydra.job.name, places)


def environment(**own: str) -> dict[str, str]:
    """The environment of a job's process: this one's, the same modules, and what is the job's own."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **own}
