"""Train one model on one data set: python train.py model=mamba data=wikitext2 (python train.py --help lists all)."""

from seqlab import cli
from seqlab.commands.train import main

if __name__ == "__main__":
    cli.run(main)
