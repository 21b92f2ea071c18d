"""Going on with an earlier run: which folder, and which settings may differ from those that it was started with."""

from datetime import datetime
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from seqlab.errors import UserError, resume_command

CHANGEABLE = {
    "device",
    "debug",
    "data.dir",
    "data.cache_dir",
    *(f"trainer.{name}" for name in ("steps", "epochs", "tokens", "patience", "max_skipped")),
    *(f"trainer.{name}" for name in ("evaluate_every", "checkpoint_every", "log_every", "evaluation_batch_size")),
}
"""Settings that leave the mathematics of the steps alone, and the budget."""

CONFIG = "config.yaml"


def run_folder(resume: str | None, fresh: str) -> str:
    """Where a run writes: its own new folder, or the one that it continues."""
    if resume is None:
        return fresh
    if not (Path(str(resume)) / CONFIG).is_file():
        raise not_a_run(resume, f"there is no {CONFIG} in it")
    return resume


def hydra_folder(resume: str | None) -> str:
    """Where Hydra keeps what it composed; a resumed run adds to what the first one left."""
    return ".hydra" if resume is None else f".hydra/resumed_{datetime.now():%Y-%m-%d_%H-%M-%S}"


def not_a_run(folder: str | Path, why: str) -> UserError:
    return UserError("resume", folder, f"is no run folder: {why}", "Name a folder that an earlier run left in outputs/")


def refuse_used_folder(folder: Path) -> None:
    """A fresh run never writes into the folder of another."""
    if (folder / CONFIG).exists() or (folder / "checkpoints").exists():
        remedy = f"Continue it with {resume_command(folder)}, or name another folder"
        raise UserError("run folder", folder, "holds a run already", remedy)


def continued(cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """The configuration of the run that ``resume`` names, with the changes that the command line may make to it.

    Args:
        cfg: as composed from the command line.
        overrides: the command line's.
    """
    folder = Path(cfg.resume)
    try:
        saved = OmegaConf.load(folder / CONFIG)
    except (OSError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise not_a_run(folder, f"{CONFIG} cannot be read ({type(error).__name__})") from error
    keys = {override.partition("=")[0].lstrip("+~"): override.partition("=")[2] for override in overrides}
    for key, value in keys.items():
        if key not in CHANGEABLE | {"resume", "logger"} and not key.startswith("logger."):
            rule = "a resumed run keeps its model, data, optimizer, batch and seed"
            remedy = f"Leave it out; what may change is {', '.join(sorted(CHANGEABLE))} and logger"
            raise UserError(key, value, rule, remedy)
    if any(key.startswith("logger") for key in keys):
        saved.logger = cfg.logger
    for key in CHANGEABLE & set(keys):
        OmegaConf.update(saved, key, OmegaConf.select(cfg, key))
    return saved


def keep(cfg: DictConfig, folder: Path) -> None:
    """Put the configuration into the run folder, whole or not at all."""
    temporary = folder / f"{CONFIG}.tmp"
    OmegaConf.save(cfg, temporary)
    temporary.replace(folder / CONFIG)


OmegaConf.register_new_resolver("seqlab.run_folder", run_folder, replace=True)
OmegaConf.register_new_resolver("seqlab.hydra_folder", hydra_folder, replace=True)
