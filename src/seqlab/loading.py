"""Models outside a training run: the one that a run left, and one from the configuration with fresh weights."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from seqlab.config import CONFIG_FOLDER, check
from seqlab.errors import UserError, nearest
from seqlab.experiment import build_model
from seqlab.resume import CONFIG
from seqlab.training import checkpoint


class Trained(NamedTuple):
    """What a run left."""

    cfg: DictConfig
    data: Any
    model: nn.Module  # with the best weights by validation, in evaluation mode
    step: int  # of those weights


class TokenWidths(NamedTuple):
    """What a model asks of a data object, for a model that is to see none."""

    d_input: int
    d_output: int
    length: int
    tokens: bool = True


def load_run(folder: Path, device: torch.device, *, data: dict[str, Any] | None = None) -> Trained:
    """Build the model of a run folder as the run did, with its best weights.

    Args:
        folder: what a run left; it may have ended early or run still.
        device: where the model goes.
        data: settings of the data that differ here, for example where its files are (``dir``).

    Raises:
        UserError: the folder is no run's, or holds no whole checkpoint.
    """
    cfg = config_of(folder)
    weights = best_checkpoint(folder)
    for part in ("data", "model"):
        check(OmegaConf.to_container(cfg[part], resolve=True), key=part)
    for key, value in (data or {}).items():
        OmegaConf.update(cfg, f"data.{key}", value)
    known = instantiate(cfg.data, _convert_="all")
    model = build_model(cfg, known, torch.device("cpu"))
    checkpoint.load_weights(weights, model)
    return Trained(cfg, known, model.to(device).eval(), checkpoint.step_of(weights))


def config_of(folder: Path) -> DictConfig:
    """The configuration that a run folder keeps."""
    remedy = "Name a folder that a training run left in outputs/"
    try:
        cfg = OmegaConf.load(folder / CONFIG)
        if "model" in cfg and "data" in cfg:
            return cfg
        why = f"its {CONFIG} describes no run"
    except FileNotFoundError:
        why = f"there is no {CONFIG} in it" if folder.is_dir() else "there is no such folder"
    except (OSError, yaml.YAMLError, OmegaConfBaseException) as error:
        why = f"{CONFIG} cannot be read ({type(error).__name__})"
    raise UserError("run", folder, f"is no run folder: {why}", remedy)


def best_checkpoint(folder: Path) -> Path:
    """The newest whole checkpoint that was the best by validation when one was written."""
    for path in reversed(checkpoint.existing(folder / "checkpoints")):
        best = checkpoint.manifest_of(path).get("best_step")
        chosen = path if best is None else checkpoint.path_of(path.parent, best)
        if checkpoint.damage(chosen) is None:
            return chosen
    rule = "has no whole checkpoint in checkpoints/"
    raise UserError("run", folder, rule, "Train it first, or wait until the run has written one")


def fresh_model(
    name: str, size: str | None, *, vocabulary: int, max_length: int, usual_size: str = "small"
) -> nn.Module:
    """A language model of a configuration by name, with weights as at the start of training.

    Args:
        name: of a file in ``conf/model``.
        size: of a file in ``conf/size``; None for the one that the model names itself, or ``usual_size``.
        vocabulary: how many tokens there are.
        max_length: the longest sequence, which sizes learned positions.
    """
    for group, option in {"model": name, "size": size}.items():
        options = sorted(path.stem for path in (CONFIG_FOLDER / group).glob("*.yaml"))
        if option not in (*options, None):
            raise UserError(f"--{group}", option, f"is no option of {group}", nearest(option, options))
    if size is None and size_of() == size_of(f"model={name}"):
        size = usual_size
    cfg = composed(f"model={name}", *([f"size={size}"] if size else []))
    check(OmegaConf.to_container(cfg.model, resolve=True), key="model")
    return build_model(cfg, TokenWidths(vocabulary, vocabulary, max_length), torch.device("cpu")).eval()


def size_of(*overrides: str) -> str:
    """Which size a command line chooses."""
    return composed(*overrides, return_hydra_config=True).hydra.runtime.choices["size"]


def composed(*overrides: str, **settings: Any) -> DictConfig:
    """The configuration of a command line, outside ``hydra.main``."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return compose("config", list(overrides), **settings)
