"""The callback that Hydra calls when a run or a sweep begins."""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from typing_extensions import override

from seqlab.config.exceptions import report
from seqlab.config.overrides import hydra_of
from seqlab.config.without_effect import size_note
from seqlab.runs import leftovers
from seqlab.runs.folder import SWEEP
from seqlab.sweep import watch
from seqlab.sweep.entries import ENTRIES


class ShowSweep(Callback):
    """Starts the display in the process that the user started; ``seqlab.cli.main.run`` ends it.

    It also lists what is in the folder of the run or sweep beforehand, for ``seqlab.runs.leftovers``.

    Args:
        varies: the keys that differ between the sweep's jobs; read from the configuration, where jobs find them too.
    """

    def __init__(self, varies: Sequence[str] = ()):
        pass

    @override
    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        # Hydra makes the folder next, and raises the same error then.
        with contextlib.suppress(Exception), hydra_of(config):  # the folder's name refers to it
            folder, typed = Path(config.hydra.run.dir), list(config.hydra.overrides.task)
            leftovers.note(folder, typed, config.hydra.output_subdir)

    @override
    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            self.begin(config)
        except Exception as error:  # Hydra would only warn, and run the jobs without a display
            sys.exit(report(error, debug=config.debug is True))

    def begin(self, config: DictConfig) -> None:
        """Start the display, which names the sweep's folder when the first job is about to start."""
        folder = Path(config.hydra.sweep.dir)
        typed = OmegaConf.to_container(config.hydra.overrides.task)
        leftovers.note(folder, typed)
        if any((folder / name).exists() for name in (SWEEP, ENTRIES, "multirun.yaml")):
            named = any(override.startswith("hydra.sweep.dir=") for override in config.hydra.overrides.hydra)
            anew = "another hydra.sweep.dir" if named else "sweep.resume=false"
            where = f"Going on with the sweep in {folder} ({anew} starts anew)."
        else:
            where = f"A new sweep in {folder}."
        models = [name for o in typed if o.startswith("model=") for name in o.removeprefix("model=").split(",")]
        notes = filter(None, (where, size_note(models, typed)))
        watch.begin(folder, typed, list(config.hydra.callbacks.show_sweep.varies), list(notes))
