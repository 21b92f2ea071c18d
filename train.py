"""Train one model on one data set: python train.py model=mamba data=wikitext2 (python train.py --help lists all)."""

import hydra
from omegaconf import DictConfig

from seqlab import cli


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float:
    """Train one model, as a run alone or as a job of a sweep; returns its best validation loss."""
    with cli.importing():
        from seqlab import experiment  # imports torch, which --help and a mistyped option need not wait for

    return cli.job(experiment.run, cfg)


if __name__ == "__main__":
    cli.run(main)
