"""Train one model on one data set, or a sweep of them."""

import hydra
from omegaconf import DictConfig

from seqlab import cli
from seqlab.config import CONFIG_FOLDER


@hydra.main(version_base="1.3", config_path=str(CONFIG_FOLDER), config_name="config")
def main(cfg: DictConfig) -> float:
    """Train one model, as a run alone or as a job of a sweep; returns its best validation loss."""
    with cli.importing():
        from seqlab import experiment  # imports torch, which --help and a mistyped option need not wait for

    return cli.job(experiment.run, cfg)
