"""Training, prefill and generation beside mamba_ssm, in one process on one GPU.

    seqlab benchmark against_mamba_ssm --out peer.json               # everything, and a picture
    seqlab benchmark against_mamba_ssm --sizes small,large --lengths none --mamba2 none --mamba3 none
    seqlab benchmark against_mamba_ssm --merge peer.json later.json --out both.json    # needs no GPU
    seqlab benchmark scan --shapes targets,odd --eager --captured --backends triton --against mamba_ssm

The last one is the scan by itself. Every task is measured alone and written to --out when it is done; --merge shows
several such files as one, where a task of a later file replaces that of an earlier one.

mamba_ssm has to be built for the GPU, with causal_conv1d: download the source distributions of mamba-ssm 2.3.2.post1
and causal-conv1d 1.6.2.post1, leave in each setup.py the -gencode of your GPU alone (sm_90 of an H100), and

    MAMBA_FORCE_BUILD=TRUE CAUSAL_CONV1D_FORCE_BUILD=TRUE MAX_JOBS=8 pip install --no-build-isolation --no-deps ./<each>

which takes two minutes and six on sixteen cores.

A training step is an update in bf16 of a vocabulary of 10,000: ours as train.py makes it, captured as a CUDA graph;
theirs by the same recipe, which is not captured. Over length a step has 16,384 tokens and the size is small. Their
Mamba-2 has the state, heads and groups of conf/model/mamba2.yaml; it tunes its kernels at the first call, and so does
its Mamba-3, of which a layer is measured, forward and backward, a kernel at a time on both sides. Prefill and
generation are of a model of width 768 with 24 layers and a vocabulary of 50,277, in bf16: greedy, with the captured
graphs of both; their time includes the prompt's. Ours reads a short prompt by a graph too, from the third of
a shape on; mamba_ssm has none for it.
"""

import argparse
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from seqlab.benchmarks import peer
from seqlab.benchmarks.peer_tasks import HEAD, LENGTHS, SIZES, TOKENS
from seqlab.commands.options import Parser, command, file_to_write, names_of, whole, wholes
from seqlab.errors import UserError


def or_none(read: Callable[[str, str], list]) -> Callable[[str, str], list]:
    """What ``read`` reads, or nothing where ``none`` is written."""
    return lambda key, text: [] if text == "none" else read(key, text)


def lengths(key: str, text: str) -> list[int]:
    """Divisors of the tokens of a step.

    Raises:
        UserError: a length is none.
    """
    found = wholes(key, text)
    for length in found:
        if TOKENS % length:
            raise UserError(key, length, f"must divide the {TOKENS:,} tokens of a step", "Use powers of two")
    return found


def widths(key: str, text: str) -> list[int]:
    """Widths of which Mamba-3 has whole heads.

    Raises:
        UserError: one has none.
    """
    found = wholes(key, text)
    for width in found:
        if 2 * width % HEAD:
            raise UserError(key, width, f"must be a multiple of {HEAD // 2}, half a head", "Use 768 or 1536")
    return found


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options.

    Raises:
        UserError: there is no GPU, or no mamba_ssm.
    """
    parser = Parser("benchmark against_mamba_ssm", __doc__)
    add, plain = parser.option, parser.add_argument
    sizes = or_none(names_of(SIZES))
    add("--sizes", sizes, default=list(SIZES), help="of Mamba's training steps at 32 x 256 and 8 x 2,048; or none")
    add("--lengths", or_none(lengths), default=list(LENGTHS), help="of its steps of 16,384 tokens; or none")
    add("--mamba2", sizes, default=list(SIZES), help="sizes of Mamba-2's training steps at 8 x 2,048; or none")
    add("--mamba3", or_none(widths), default=[1536], help="widths of a layer of Mamba-3 at 8 x 2,048; or none")
    add("--prompts", or_none(wholes), default=[128, 1024, 65536], help="lengths of the prefills; or none")
    add("--batch", or_none(wholes), default=[1, 64], help="sequences that are generated at a time; or none")
    add("--new", whole, default=128, help="tokens that are generated; default 128")
    plain("--merge", nargs="+", type=Path, metavar="FILE", help="show these results in place of measuring")
    add("--out", file_to_write, help="a JSON file for the results; table and picture go beside it")
    args = parser.parse_args(argv)
    if args.merge:
        return args
    if not torch.cuda.is_available():
        raise UserError("device", "none", "mamba_ssm needs a CUDA device", "Run it where torch sees one")
    if find_spec("mamba_ssm") is None:
        raise UserError("mamba_ssm", "none", "is not installed", "Build it as --help says")
    return args


main = command(parse, peer.run)
