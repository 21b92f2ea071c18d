"""Training, prefill and generation beside mamba_ssm, in one process on one GPU.

    python scripts/benchmark_against_mamba_ssm.py                               # everything, five minutes
    python scripts/benchmark_against_mamba_ssm.py --sizes small,large --prompts none --batch none
    python scripts/benchmark_scan.py --shapes targets --backends triton --against mamba_ssm     # the scan alone

mamba_ssm has to be built for the GPU, with causal_conv1d: download the source distributions of mamba-ssm 2.3.2.post1
and causal-conv1d 1.6.2.post1, leave in each setup.py the -gencode of your GPU alone (sm_90 of an H100), and

    MAMBA_FORCE_BUILD=TRUE CAUSAL_CONV1D_FORCE_BUILD=TRUE MAX_JOBS=8 pip install --no-build-isolation --no-deps ./<each>

which takes two minutes and six on sixteen cores.

A training step is an update in bf16 of a vocabulary of 10,000: ours as train.py makes it, captured as a CUDA graph;
theirs by the same recipe, which is not captured. Prefill and generation are of a model of width 768 with 24 layers and
a vocabulary of 50,277, in bf16: greedy, with the captured graphs of both; their time includes the prompt's.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from command_line import Parser, command, names_of, whole, wholes
from seqlab.benchmarks import peer
from seqlab.errors import UserError


def or_none(read: Callable[[str, str], list]) -> Callable[[str, str], list]:
    """What ``read`` reads, or nothing where ``none`` is written."""
    return lambda key, text: [] if text == "none" else read(key, text)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options.

    Raises:
        UserError: there is no GPU, or no mamba_ssm.
    """
    parser = Parser("benchmark_against_mamba_ssm", __doc__)
    add, plain = parser.option, parser.add_argument
    sizes = or_none(names_of(peer.SIZES))
    add("--sizes", sizes, default=list(peer.SIZES), help="of the training steps; none for no training")
    add("--prompts", or_none(wholes), default=[128, 1024, 65536], help="lengths of the prefills")
    add("--batch", or_none(wholes), default=[1, 64], help="sequences that are generated at a time")
    add("--new", whole, default=128, help="tokens that are generated; default 128")
    plain("--out", type=Path, help="a JSON file for the results; the table goes beside it in Markdown")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise UserError("device", "none", "mamba_ssm needs a CUDA device", "Run it where torch sees one")
    if find_spec("mamba_ssm") is None:
        raise UserError("mamba_ssm", "none", "is not installed", "Build it as --help says")
    return args


main = command(parse, peer.run)

if __name__ == "__main__":
    sys.exit(main())
