"""How far a model's activations move in a few steps, against its width: flat under muP, growing without.

    seqlab benchmark coordinates                                      # mamba, standard beside mup
    seqlab benchmark coordinates --model transformer --widths 64:1024 --optimizer muon
    seqlab benchmark coordinates --rules mup,completep --layers 8

The model trains on one batch of random tokens with one learning rate at every width; the base of the parametrisation is
the least width. The table has the power of the width with which each part's change grows, over the largest widths: 0
is flat. Leaves coordinate_check.json, .md and .png in --out.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from seqlab.benchmarks import coordinates
from seqlab.commands.options import Parser, command, doubling, names_of, number, results_folder, whole
from seqlab.config.options import options_of


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The settings."""
    parser = Parser("benchmark coordinates", __doc__)
    add, plain = parser.option, parser.add_argument
    plain("--model", choices=options_of("model"), default="mamba", metavar="NAME", help="of a file in conf/model")
    rules = options_of("parametrisation")
    add("--rules", names_of(rules), default=["standard", "mup"], help=f"among {', '.join(rules)}; default: two")
    add("--widths", doubling, default=[64, 128, 256, 512], help="first:last, doubling, or n,n,...; default 64:512")
    add("--layers", whole, help="default 2, or what a hybrid's pattern needs")
    plain("--optimizer", choices=options_of("optimizer"), default="adamw")
    add("--lr", number, default=1e-2, help="the learning rate; default 0.01")
    add("--steps", whole, default=4, help="default 4")
    add("--seeds", whole, default=2, help="means over so many; default 2")
    plain("--out", type=Path, help="folder for the results; default outputs/benchmarks/coordinate_check-<time>")
    args = parser.parse_args(argv)
    args.out = args.out or results_folder("coordinate_check")
    return args


main = command(parse, coordinates.run)
