"""Where Hydra tells that a run or a sweep begins."""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from seqlab.config.exceptions import report
from seqlab.config.without_effect import size_note
from seqlab.runs import leftovers
from seqlab.runs.folder import SWEEP
from seqlab.sweep import watch
from seqlab.sweep.entries import ENTRIES
from seqlab.sweep.naming import jobs_of


class ShowSweep(Callback):
    """Starts the display in the process that was called; ``seqlab.cli.main.run`` ends it, however the sweep ends.

    It also notes the folder, that of a single run too, as it was before, for ``seqlab.runs.leftovers``. It keeps
    nothing itself, since launchers send it to other processes.

    Args:
        varies: the keys that tell the sweep's jobs apart.
    """

    def __init__(self, varies: Sequence[str] = ()):
        pass  # it is the configuration that they are kept in

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        hydra = HydraConfig.instance()
        before = hydra.cfg
        with contextlib.suppress(Exception):  # Hydra makes the folder next, and whatever is amiss is said then
            hydra.set_config(config)  # the folder's name refers to it
            folder, typed = Path(config.hydra.run.dir), list(config.hydra.overrides.task)
            leftovers.note(folder, typed, config.hydra.output_subdir)
        hydra.cfg = before

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            self.begin(config)
        except Exception as error:  # Hydra would make a warning of it, and run the jobs unseen
            sys.exit(report(error, debug=config.debug is True))

    def begin(self, config: DictConfig) -> None:
        """Say which folder the sweep is in, and start to watch it."""
        folder = Path(config.hydra.sweep.dir)
        typed = OmegaConf.to_container(config.hydra.overrides.task)
        leftovers.note(folder, typed)
        if any((folder / name).exists() for name in (SWEEP, ENTRIES, "multirun.yaml")):
            named = any(override.startswith("hydra.sweep.dir=") for override in config.hydra.overrides.hydra)
            anew = "another hydra.sweep.dir" if named else "sweep.resume=false"
            said = f"Going on with the sweep in {folder} ({anew} starts anew)."
        else:
            said = f"A new sweep in {folder}."
        models = [name for o in typed if o.startswith("model=") for name in o.removeprefix("model=").split(",")]
        _ = config.hydra.callbacks.show_sweep.varies  # kept from this reading on, for jobs do not know of each other
        watched = watch.Watch(folder, typed, jobs_of(typed, config.hydra.sweeper))
        for line in filter(None, (said, size_note(models, typed))):
            rich.get_console().print(line, soft_wrap=True, markup=False, highlight=False)
        watch.begin(watched)
