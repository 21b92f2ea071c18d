"""Train one model on one data set, or a sweep of them."""

import hydra
from omegaconf import DictConfig

from seqlab import cli
from seqlab.config import CONFIG_FOLDER
from seqlab.invocation import processes


def main() -> None:
    """Train what the command line says; under torchrun, its other processes take part in what the first one does."""
    if processes()[0] == 0:
        composed()
        return
    from seqlab import experiment

    cli.followed(experiment.follow)


@hydra.main(version_base="1.3", config_path=str(CONFIG_FOLDER), config_name="config")
def composed(cfg: DictConfig) -> float:
    """Train one model, as a run alone or as a job of a sweep; returns its best validation loss."""
    with cli.importing():
        from seqlab import experiment  # imports torch, which --help and a mistyped option need not wait for

    return cli.job(experiment.run, cfg)
