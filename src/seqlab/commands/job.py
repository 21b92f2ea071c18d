"""One job of a sweep in a process of its own, for launchers and torchrun; nobody types this."""

import math
import os
import sys
from pathlib import Path

from omegaconf import DictConfig

from seqlab import cli
from seqlab.invocation import processes
from seqlab.sweep.launchers.packed import run


def task(cfg: DictConfig) -> float:
    """Train one model, as a job of a sweep; returns its best validation loss."""
    with cli.importing():
        from seqlab import experiment

    return cli.job(experiment.run, cfg)


def main() -> None:
    """Run the job that is packed in the file of the first argument, or else comes by standard input.

    Under torchrun, its other processes take part in what the first one does.
    """
    rank, size = processes()
    if rank:
        from seqlab import experiment

        cli.followed(experiment.follow)
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        loss = run(Path(sys.argv[1]).read_bytes() if sys.argv[1:] else sys.stdin.buffer.read(), task)
    except SystemExit as ending:
        cli.end(ending.code)
    cli.end(1 if size > 1 and math.isnan(loss) else 0)  # torchrun then ends those that still wait for this one


if __name__ == "__main__":
    main()
