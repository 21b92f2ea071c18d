"""The parts of a run from its configuration: the device, the data, the model."""

from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from seqlab.errors import UserError


def choose_device(name: str) -> torch.device:
    """The device that a setting names; ``auto`` is the GPU where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device", name, "torch sees no CUDA device here", "Use device=auto or device=cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def build_model(cfg: DictConfig, data: Any, device: torch.device) -> nn.Module:
    """The configured model at the widths of the data, initialised on the CPU: the same weights on every device."""
    model = instantiate(
        cfg.model,
        tokens=data.tokens,
        d_input=data.d_input,
        d_output=data.d_output,
        max_length=data.length,
        _convert_="all",
    )
    return model.to(device)


def build_data(cfg: DictConfig) -> Any:
    """The configured data object, which tells the model its widths."""
    return instantiate(cfg.data, _convert_="all")
