"""The parts of a run from its configuration: the device, the data, the model, the trainer."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from seqlab.data.protocol import DataSet, Widths, completed
from seqlab.errors import UserError, under
from seqlab.training.trainer import Trainer


def choose_device(name: str) -> torch.device:
    """The device that a setting names; ``auto`` is the GPU where there is one.

    Raises:
        UserError: ``cuda`` without a GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device", name, "torch sees no CUDA device here", "Use device=auto or device=cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def built(cfg: DictConfig, part: str, **given: Any) -> Any:
    """The object that the group ``part`` of the configuration describes.

    Raises:
        UserError: the constructor's, which Hydra wraps in another exception, with the keys that a user types.
        InstantiationException: the constructor raised another exception.
    """
    with under(part, cfg[part]):
        try:
            return instantiate(cfg[part], **given, _convert_="all")
        except InstantiationException as error:
            refusal = error.__cause__
            if not isinstance(refusal, UserError):
                raise
        raise refusal


def build_data(cfg: DictConfig) -> DataSet:
    """The configured data object, which tells the model its widths.

    Raises:
        UserError: a setting cannot be used, or the class lacks a part of the contract.
    """
    with under("data", cfg.data):
        return completed(built(cfg, "data"))


def build_model(cfg: DictConfig, data: Widths, device: torch.device) -> nn.Module:
    """The configured model at the widths of the data, initialised on the CPU: the same weights on every device."""
    widths = {"tokens": data.tokens, "d_input": data.d_input, "d_output": data.d_output, "max_length": data.length}
    with shared_settings(cfg):
        return built(cfg, "model", **widths).to(device)


@contextmanager
def shared_settings(cfg: DictConfig) -> Iterator[None]:
    """Name the setting in ``size`` in a ``UserError`` about a model's setting of the same name and value.

    That is where a user changes it for all parts together; a resolved configuration no longer has the interpolation.

    Raises:
        UserError: the one raised within.
    """
    size = cfg.get("size") or {}

    def origin(match: re.Match[str]) -> str:
        name = match[0].rpartition(".")[2]
        return f"size.{name}" if name in size and OmegaConf.select(cfg, match[0]) == size[name] else match[0]

    try:
        yield
    except UserError as error:
        error.key, error.remedy = (re.sub(r"model\.[\w.\[\]]+\b", origin, text) for text in (error.key, error.remedy))
        raise


def build_trainer(cfg: DictConfig, model: nn.Module, data: DataSet, *, device: torch.device, folder: Path) -> Trainer:
    """The trainer of a model on a device, whose checkpoints go into the run folder."""
    config = built(cfg, "trainer")
    with under("trainer", cfg.trainer):
        return Trainer(config, model, data, device=device, seed=cfg.seed, folder=folder)
