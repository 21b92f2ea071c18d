"""What a training step costs as work grows: time and peak memory against batch, length, width, depth and vocabulary.

    seqlab benchmark growth                              # mamba, mamba2, transformer and hybrid, every axis
    seqlab benchmark growth --models mamba --axes length --length 256:1048576
    CUDA_VISIBLE_DEVICES=0 seqlab benchmark growth --models mamba,mamba2 --out a &
    CUDA_VISIBLE_DEVICES=1 seqlab benchmark growth --models transformer,hybrid --out b; wait
    seqlab benchmark growth --merge a/growth.json b/growth.json --out both

A step is an update as train.py makes it, on random tokens, replayed as a CUDA graph where that can be. Each axis starts
from the base point and changes that size alone; with width, d_ff (4 x) and n_heads (one for 64) go. Sizes
double from the first to the last (first:last), or are listed (n,n,...). A curve ends before, and the output says why,
where it runs out of memory or a step would take longer than --limit; sizes that a model cannot have are left out, such
as a depth less than a hybrid's pattern.

Leaves growth.json (everything, written after each point), growth.md (the tables) and growth.png in --out. "peak" is all
that was allocated: weights, gradients, the optimizer's state and activations. "time a FLOP" is a step's time over its
FLOPs, beside that of the base point, and an exponent is the slope of a curve on logarithmic axes over its largest
sizes; "grows" marks where the time grows faster than the FLOPs.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from seqlab.benchmarks import growth
from seqlab.benchmarks.growth_curves import AXES, Sizes
from seqlab.commands.options import Parser, command, doubling, names_of, results_folder, seconds, whole
from seqlab.config.options import options_of
from seqlab.errors import UserError
from seqlab.runs.build import choose_device
from seqlab.training.precision import DTYPES

BASE = {"cuda": Sizes(8, 1024, 256, 4, 1024), "cpu": Sizes(4, 128, 64, 4, 256)}
VALUES = {
    "cuda": Sizes("8:512", "256:262144", "128:4096", "2:64", "256:131072"),
    "cpu": Sizes("1:16", "32:1024", "32:256", "2:16", "64:4096"),
}
LIMIT = {"cuda": 5.0, "cpu": 2.0}


def base(key: str, text: str) -> dict[str, int]:
    """Sizes by axis: ``batch=8,length=1024``, those that differ from the defaults.

    Raises:
        UserError: a part is not an axis and a whole number.
    """
    found = {}
    for part in text.split(","):
        axis, _, size = part.strip().partition("=")
        if axis not in AXES:
            raise UserError(key, part, f"is not one of {', '.join(AXES)} and its size", f"For example {key} batch=8")
        found[axis] = whole(f"{key} {axis}", size)
    return found


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The settings, with the defaults of the device filled in."""
    parser = Parser("benchmark growth", __doc__)
    add, plain = parser.option, parser.add_argument
    models = ["mamba", "mamba2", "transformer", "hybrid"]
    add("--models", names_of(options_of("model")), default=models, help="names in conf/model; default: those four")
    add("--axes", names_of(AXES), default=list(AXES), help="default: all five")
    add("--base", base, default={}, help=f"sizes that differ from {shown(BASE['cuda'])} (GPU), {shown(BASE['cpu'])}")
    for axis in AXES:
        defaults = (getattr(VALUES[device], axis) for device in ("cuda", "cpu"))
        add(f"--{axis}", doubling, help="first:last, doubling, or n,n,...; default {} (GPU), {}".format(*defaults))
    plain("--device", choices=["auto", "cpu", "cuda"], default="auto")
    plain("--precision", choices=DTYPES, help="default: bf16 on a GPU, float32 on a CPU")
    add("--limit", seconds, help="seconds of a step; default 5 (GPU), 2 (CPU)")
    plain(
        "--merge",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="make one report of these growth.json, and measure nothing",
    )
    plain("--out", type=Path, help="folder for the results; default outputs/benchmarks/growth-<time>")
    add("--seed", partial(whole, least=0), default=0)
    args = parser.parse_args(argv)
    args.device = choose_device(args.device)
    kind = args.device.type
    args.base = BASE[kind]._replace(**args.base)
    args.values = {
        axis: getattr(args, axis) or doubling(f"--{axis}", default) for axis, default in VALUES[kind]._asdict().items()
    }
    args.precision = args.precision or ("bf16" if kind == "cuda" else "float32")
    args.limit = args.limit or LIMIT[kind]
    args.out = args.out or results_folder("growth")
    return args


def shown(sizes: Sizes) -> str:
    """Sizes as ``--base`` takes them."""
    return ",".join(f"{axis}={size}" for axis, size in sizes._asdict().items())


main = command(parse, growth.run)
