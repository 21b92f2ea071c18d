"""Where Hydra tells that a sweep begins."""

from pathlib import Path
from typing import Any

import rich
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from seqlab.model_choice import size_note
from seqlab.sweep import watch

BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


class ShowSweep(Callback):
    """Starts the display in the process that was called; ``seqlab.cli.run`` ends it, however the sweep ends.

    It keeps nothing itself, since launchers send it to other processes.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        typed = OmegaConf.to_container(config.hydra.overrides.task)
        if folder.is_dir() and any(folder.iterdir()):
            named = any(override.startswith("hydra.sweep.dir=") for override in config.hydra.overrides.hydra)
            anew = "another hydra.sweep.dir" if named else "sweep.resume=false"
            said = f"Going on with the sweep in {folder} ({anew} starts anew)."
        else:
            said = f"A new sweep in {folder}."
        models = [name for o in typed if o.startswith("model=") for name in o.removeprefix("model=").split(",")]
        for line in filter(None, (said, size_note(models, typed))):
            rich.get_console().print(line, soft_wrap=True, markup=False, highlight=False)
        watch.begin(watch.Watch(folder, typed, choices(config)))


def choices(config: DictConfig) -> dict[str, int] | None:
    """How many values Hydra's own sweeper will give to each setting, ``None`` for another sweeper."""
    if config.hydra.sweeper.get("_target_") != BASIC_SWEEPER:
        return None
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    return {
        override.get_key_element(): len(list(override.sweep_string_iterator())) if override.is_discrete_sweep() else 1
        for override in parser.parse_overrides(params + OmegaConf.to_container(config.hydra.overrides.task))
    }
