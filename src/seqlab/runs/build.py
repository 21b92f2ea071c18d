"""The parts of a run from its configuration: the device, the data, the model, the trainer."""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from seqlab.config import CONFIG_FOLDER
from seqlab.config.options import options_of
from seqlab.data.protocol import DataSet, Widths, completed
from seqlab.errors import UserError, nearest, under
from seqlab.jsonio import write_whole
from seqlab.models.mixture_of_softmaxes import MixtureOfSoftmaxes
from seqlab.models.parametrisation import parametrise
from seqlab.models.sequence_model import SequenceModel
from seqlab.runs.folder import TOKENIZER
from seqlab.training.parallel import ALONE, World
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


def build_data(cfg: DictConfig, folder: Path | None = None) -> DataSet:
    """The configured data object, which tells the model its widths.

    Args:
        cfg: resolved or not.
        folder: of the run that began with it, whose tokenizer is then the data's if it kept one.

    Raises:
        UserError: a setting cannot be used, or the class lacks a part of the contract.
    """
    kept = folder is not None and (folder / TOKENIZER).is_file()
    with under("data", cfg.data):
        return completed(built(cfg, "data", **({"tokenizer": str(folder / TOKENIZER)} if kept else {})))


def find_data(cfg: DictConfig) -> None:
    """Check that the files of the data are there, if their class has a ``find`` that says so without reading them.

    Args:
        cfg: resolved or not.

    Raises:
        UserError: they are not.
    """
    find = getattr(get_class(cfg.data._target_), "find", None)
    if find is not None:
        with under("data", cfg.data):
            find(OmegaConf.to_container(cfg.data, resolve=True))


def keep_tokenizer(data: DataSet, folder: Path) -> None:
    """Copy the tokenizer of the data to the run folder, from where the run goes on with exactly that one."""
    path = getattr(data, "tokenizer_file", None)
    if path is not None and path != folder / TOKENIZER:
        write_whole(folder / TOKENIZER, path.read_text(encoding="utf-8"))


def build_model(cfg: DictConfig, data: Widths, device: torch.device) -> nn.Module:
    """The configured model at the widths of the data, initialised on the CPU: the same weights on every device.

    Raises:
        UserError: a setting does not fit, or the model cannot do what the data ask for.
    """
    longest = max(data.length, cfg.model.get("max_length") or 0)  # of a checkpoint, which may have more positions
    widths = {"tokens": data.tokens, "d_input": data.d_input, "d_output": data.d_output, "max_length": longest}
    with shared_settings(cfg):
        model = built(cfg, "model", **widths)
    head, loss = getattr(model, "head", None), getattr(data, "loss", None)  # widths alone have no loss
    if isinstance(head, MixtureOfSoftmaxes) and loss is not None and not getattr(loss, "is_cross_entropy", False):
        rule = "is for a loss that is the cross-entropy of each position's logits, and this data has another"
        raise UserError("model.softmaxes", head.softmaxes, rule, "Leave it out")
    if OmegaConf.select(cfg, "base_model") is not None:  # its get would keep this frame, and with it the model
        parametrise(model, built_base(cfg, widths), cfg.parametrisation.get("depths"))
    if (separator := getattr(data, "separator", None)) is not None:
        if not isinstance(model, SequenceModel):
            rule = f"{type(model).__name__} is no SequenceModel, which can tell documents apart"
            raise UserError("data.separate_documents", True, rule, "Choose another model, or leave it out")
        model.separate(separator)
    return model.to(device)


def built_base(cfg: DictConfig, widths: dict[str, Any]) -> nn.Module:
    """The base model that a parametrisation compares with, without memory.

    Raises:
        UserError: the model cannot be built at the base's size.
    """
    try:
        with torch.device("meta"):
            return built(cfg, "base_model", **widths)
    except UserError as error:
        setting = f"{error.key.replace('base_model.', 'model.')}={error.value}"
        rule = f"at that size {setting} {error.rule}"
        raise UserError("parametrisation.base", cfg.parametrisation.base, rule, "Choose another base") from error


def with_base_model(cfg: DictConfig) -> DictConfig:
    """The configuration with the base model that its parametrisation compares with; unchanged without one.

    Args:
        cfg: a job's, with its interpolations.

    Raises:
        UserError: the base is no size, or the rule none.
    """
    if (given := OmegaConf.select(cfg, "parametrisation")) is None:
        return cfg
    if given.rule not in ("mup", "completep"):
        raise UserError("parametrisation.rule", given.rule, "must be mup or completep", "Set parametrisation= alone")
    deep = given.rule == "completep"
    names = ("d_model", "n_heads", "d_ff", *(["n_layers"] if deep else []))
    if isinstance(given.base, str) and given.base not in options_of("size"):
        raise UserError("parametrisation.base", given.base, "is no size", nearest(given.base, options_of("size")))
    base = OmegaConf.load(CONFIG_FOLDER / "size" / f"{given.base}.yaml") if isinstance(given.base, str) else given.base
    if not OmegaConf.is_dict(base) or not all(isinstance(base.get(name), int) and base[name] > 0 for name in names):
        rule = f"must be a size, or have whole numbers above 0 for all of {', '.join(names)}"
        raise UserError("parametrisation.base", given.base, rule, "For example parametrisation.base=tiny")
    cfg, at_base = copy.deepcopy(cfg), copy.deepcopy(cfg)
    for key, change in changes_of_match(cfg).items():
        if key.startswith("model."):  # inner widths, which otherwise follow the size
            OmegaConf.update(at_base, key, change["from"])
    for name in names[:3]:  # the base model has as many layers, so that every parameter has its counterpart
        OmegaConf.update(at_base, f"size.{name}", base[name])
    with open_dict(cfg):
        cfg.base_model = OmegaConf.to_container(at_base.model, resolve=True)
        if deep:
            cfg.parametrisation.depths = cfg.model.n_layers / base.n_layers
    return cfg


def changes_of_match(cfg: DictConfig) -> dict[str, Any]:
    """What ``match`` has changed in a configuration, by key, each with its value before, ``from``."""
    record = OmegaConf.to_container(OmegaConf.select(cfg, "matched") or OmegaConf.create())
    return {record["key"]: record} | record.get("also", {}) if record else {}


@contextmanager
def shared_settings(cfg: DictConfig) -> Iterator[None]:
    """Name the setting in ``size`` in a ``UserError`` about a model's setting of the same name and value.

    That is where a user changes it for all parts together; a resolved configuration no longer has the interpolation.

    Raises:
        UserError: the one raised within.
    """
    size = OmegaConf.select(cfg, "size") or {}

    def origin(match: re.Match[str]) -> str:
        name = match[0].rpartition(".")[2]
        return f"size.{name}" if name in size and OmegaConf.select(cfg, match[0]) == size[name] else match[0]

    try:
        yield
    except UserError as error:
        error.key, error.remedy = (re.sub(r"model\.[\w.\[\]]+\b", origin, text) for text in (error.key, error.remedy))
        raise


def build_trainer(
    cfg: DictConfig, model: nn.Module, data: DataSet, *, device: torch.device, folder: Path, world: World = ALONE
) -> Trainer:
    """The trainer of a model on a device, whose checkpoints go into the run folder."""
    config = built(cfg, "trainer")
    with under("trainer", cfg.trainer.keys() - {"optimizer", "schedule", "regularisation"}):  # groups of their own
        return Trainer(config, model, data, device=device, seed=cfg.seed, folder=folder, world=world)
