"""Applying a ``match`` overlay: the reference's configuration is composed, then the width or the steps adjusted."""

import copy
import logging
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import MissingConfigException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from seqlab.config.options import all_options_of
from seqlab.config.overrides import compose_in_job, hydra_of, parse
from seqlab.config.renamed import up_to_date
from seqlab.data import DataSet
from seqlab.errors import UserError, nearest
from seqlab.runs.build import build_model

log = logging.getLogger(__name__)

META = torch.device("meta")


def matched(cfg: DictConfig, data: DataSet | None) -> DictConfig:
    """The configuration with its ``match`` overlay applied; unchanged without one.

    Args:
        cfg: a job's configuration, interpolations unresolved; ``HydraConfig`` must be that job's.
        data: the job's data object; not needed without an overlay.
    """
    if OmegaConf.select(cfg, "match") is None:
        return cfg
    match = instantiate(cfg.match)
    reference = compose_with(match.reference)

    def model_of(cfg: DictConfig) -> nn.Module:
        with META:
            return build_model(cfg, data, META)

    cfg = copy.deepcopy(cfg)
    record = match(cfg, reference, data, model_of)
    log.info("%s", in_words(record))
    with open_dict(cfg):
        cfg.matched = record
    return cfg


def in_words(record: dict[str, Any]) -> str:
    """One line on what was adjusted and the result."""
    adjusted = {record["key"]: record} | record.get("also", {})
    changes = ", ".join(f"{key} from {one['from']} to {one['value']}" for key, one in adjusted.items())
    what = record.get("counted", record["to"]).replace("_", " ")
    target, reached = record["target"], record["reached"]
    difference = 100 * (reached / target - 1)
    return (
        f"Matched to {record['reference']} with {target:,} {what}: {changes} gives {reached:,} ({difference:+.2f} %)."
    )


def compose_with(model: str) -> DictConfig:
    """The running job's configuration with ``model`` as its file in ``conf/model/`` has it, resolved.

    Raises:
        UserError: there is no such file.
        MissingConfigException: another file that the command names is missing.
    """
    own = ("model", "match", "resume")
    shared = [o for o in HydraConfig.get().overrides.task if parse(o)[0].partition(".")[0] not in own]
    try:
        cfg = compose_in_job(*shared, f"model={model}", with_hydra=True)
    except MissingConfigException as error:
        if error.missing_cfg_file != f"model/{model}":
            raise
        raise UserError(
            "match.reference", model, "is no option of model", nearest(model, all_options_of("model"))
        ) from error
    with hydra_of(cfg):
        with open_dict(cfg):
            del cfg["hydra"]
        return OmegaConf.create(OmegaConf.to_container(up_to_date(cfg), resolve=True))
