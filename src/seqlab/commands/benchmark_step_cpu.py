"""Training steps on the CPU: Mamba here, mamba.py's, and PyTorch's Transformer, one after the other in one process.

    seqlab benchmark step_cpu                              # batch 64 x 128 characters, width 128, float32
    seqlab benchmark step_cpu --threads 2 --rounds 9 --out step.json
    seqlab benchmark step_cpu --models mamba --profile     # where the time of a step goes

A step is the forward pass, the loss, the backward pass and AdamW. In every round each model takes one step (or as many
as fill --least seconds), so that other load on the machine affects all alike; times are medians over rounds.

    mamba         4 layers of the Mamba of conf/model/mamba.yaml, with the fastest scan that can run
    mambapy       the same sizes in mamba.py (pip install mambapy), with its parallel scan
    transformer   nn.TransformerEncoder: 6 layers, 4 heads, ReLU feed-forward of 4 x width, learned positions
"""

import argparse
from collections.abc import Sequence

from seqlab.benchmarks import step
from seqlab.commands.options import Parser, command, file_to_write, names_of, whole
from seqlab.ops.selective_scan import BACKENDS


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = Parser("benchmark step_cpu", __doc__)
    add, plain = parser.option, parser.add_argument
    models = list(step.MODELS)
    add("--models", names_of(models), default=models, help=f"of {', '.join(models)}; default: all that are installed")
    add("--batch", whole, default=64)
    add("--length", whole, default=128)
    add("--width", whole, default=128, help="d_model")
    plain("--scan", choices=["auto", *BACKENDS], default="auto", help="the backend of mamba's selective scan")
    add("--threads", whole, help="default: what PyTorch chooses")
    add("--rounds", whole, default=7)
    plain("--least", type=float, default=0.5, help="seconds for each model in each round, at least; default 0.5")
    plain("--profile", action="store_true", help="show where the time goes, in place of measuring it")
    add("--out", file_to_write, help="a JSON file for the results; the table goes beside it in Markdown")
    return parser.parse_args(argv)


main = command(parse, step.run)
