"""Models outside a training run: that of a run folder, and a configured one with untrained weights."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from seqlab.config.options import options_of
from seqlab.config.overrides import compose
from seqlab.config.schema import check
from seqlab.config.without_effect import own_size
from seqlab.data import DataSet
from seqlab.errors import UserError, nearest
from seqlab.runs.build import build_data, build_model
from seqlab.runs.resume import saved_in
from seqlab.runs.trust import trusted
from seqlab.training import checkpoint

log = logging.getLogger(__name__)


class Trained(NamedTuple):
    """The trained model of a run folder."""

    cfg: DictConfig
    data: DataSet
    model: nn.Module  # with the best weights by validation, in evaluation mode
    step: int  # of those weights


class TokenWidths(NamedTuple):
    """The widths that a model takes from a data object, for a model of tokens without one."""

    d_input: int
    d_output: int
    length: int
    tokens: bool = True


def load_run(
    folder: Path,
    device: torch.device,
    *,
    data: dict[str, Any] | None = None,
    trust: Sequence[str] = (),
    untrained: bool = False,
) -> Trained:
    """Build the model of a run folder as the run did, with its best weights.

    Args:
        folder: of a run that is completed, has ended early or still trains.
        device: where the model goes.
        data: settings of the data that differ here, for example where its files are (``dir``).
        trust: the user's own packages whose parts the folder may name (``seqlab.runs.trust``).
        untrained: accept the weights of step 0, if there are no others.

    Raises:
        UserError: the folder is no run's, names code that is not trusted, or has no undamaged checkpoint but that of
            step 0, and ``untrained`` is false; or its data lack one of the settings.
    """
    cfg = trusted(saved_in(folder, "run"), trust)
    step, weights = best_weights(folder)
    if step == 0 and not untrained:
        rule = "its best whole weights are those of step 0, which nothing has trained"
        raise UserError("run", folder, rule, "Train it further, or ask for them with untrained=true")
    for part in ("data", "model"):
        check(OmegaConf.to_container(cfg[part], resolve=True), key=part)
    for key, value in (data or {}).items():
        if key not in cfg.data:
            raise UserError(f"data.{key}", value, "the data of this run have no such setting", "Leave it out")
        OmegaConf.update(cfg, f"data.{key}", value)
    source = build_data(cfg, folder)
    model = build_model(cfg, source, torch.device("cpu"))
    checkpoint.put_weights(weights, model)
    return Trained(cfg, source, model.to(device).eval(), step)


def refuse_no_text(trained: Trained, folder: str | Path) -> None:
    """Refuse to sample text from a model of other data.

    Raises:
        UserError: the data of the run in ``folder`` cannot decode tokens.
    """
    if not hasattr(trained.data, "decode"):
        rule = f"was trained on {trained.data.description}, which is no text"
        raise UserError("run", folder, rule, "Name a run on a corpus, for example data=tiny_shakespeare")


def best_weights(folder: Path) -> tuple[int, dict[str, Tensor]]:
    """The step and weights that were the best by validation when the newest checkpoint was written.

    Where they are damaged, those of an older checkpoint, with a warning that names their step. The weights are by
    parameter name, each of its parameter's shape.

    Raises:
        UserError: no checkpoint is undamaged.
    """
    checkpoints = checkpoint.existing(folder / "checkpoints")
    damaged: set[Path] = set()
    for path in reversed(checkpoints):
        best = checkpoint.manifest_of(path).get("best_step")
        chosen = path if best is None else checkpoint.path_of(path.parent, best)
        if chosen in damaged:
            continue
        try:
            weights = checkpoint.whole_weights(chosen)
        except UserError as error:
            if checkpoints != checkpoint.existing(folder / "checkpoints"):
                return best_weights(folder)  # a run that goes on has deleted it, having written newer ones
            log.warning("Checkpoint %s: %s; trying the one before it.", chosen, error.rule)
            damaged.add(chosen)
            continue
        step = checkpoint.step_of(chosen)
        if damaged:
            log.warning("The weights of step %d are used, and not the best ones of this run.", step)
        return step, weights
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

    Raises:
        UserError: no file has that name.
    """
    for group, option in {"model": name, "size": size}.items():
        if option not in (*options_of(group), None):
            raise UserError(f"--{group}", option, f"is no option of {group}", nearest(option, options_of(group)))
    cfg = compose(f"model={name}", f"size={size or own_size(name) or usual_size}")
    check(OmegaConf.to_container(cfg.model, resolve=True), key="model")
    return build_model(cfg, TokenWidths(vocabulary, vocabulary, max_length), torch.device("cpu")).eval()
