"""Time and peak memory of the selective scan: every backend of ours, other packages', attention, and the roofline.

    seqlab benchmark scan                                  # a sweep over L on whatever is there
    seqlab benchmark scan --shapes targets                 # the published rows, beside the published figures
    seqlab benchmark scan --shapes targets --captured      # the same, and the GPU's time alone
    seqlab benchmark scan --shapes odd --eager --captured  # prime lengths, odd widths, other states
    seqlab benchmark scan --shapes 32x256x512,1x4096x1536x64 --backends parallel --against none

Leaves scan.json (everything), scan.csv (a line for each row), scan.md (the tables) and scan.png in --out.

"forward" is a call without gradients; "forward+backward" one with the gradients of all eight tensors. Shapes are
B x L x D x N: batch, length, channels, states of a channel.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from seqlab.benchmarks import scan
from seqlab.benchmarks.scan_contestants import OTHERS
from seqlab.benchmarks.scan_shapes import LISTS, OFFICIAL, STATES, Shape
from seqlab.commands.options import Parser, command, names_of, results_folder, seconds, whole, wholes
from seqlab.errors import UserError
from seqlab.ops.selective_scan import BACKENDS
from seqlab.training.precision import DTYPES

DEFAULTS = {
    "cuda": {"dtype": "bf16", "batch": 1, "d_inner": 1536, "lengths": [4**n for n in range(5, 11)]},
    "cpu": {"dtype": "float32", "batch": 8, "d_inner": 256, "lengths": [2**n for n in range(7, 13)]},
}
"""Of the sweep. A batch of 1 on a GPU: there only L is left to fill it, up to 2^20 positions."""


def device(key: str, text: str) -> torch.device:
    """A CUDA device that torch sees, or the CPU.

    Raises:
        UserError: it is neither.
    """
    try:
        found = torch.device(text)
    except RuntimeError:
        found = torch.device("meta")
    if found.type not in DEFAULTS:
        raise UserError(key, text, "only CUDA devices and the CPU can be measured", "Use cuda, cuda:1, ... or cpu")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        rule = f"torch sees {torch.cuda.device_count()} CUDA devices here, counted from 0"
        raise UserError(key, text, rule, "Use --device cpu, or install a torch that fits the driver")
    return found


def shapes(key: str, text: str, d_state: int | None) -> list[Shape]:
    """Shapes ``BxLxDxN``, or ``BxLxD`` with ``d_state`` (or 16), and names of ``LISTS``, by commas; each once.

    Raises:
        UserError: a part is none of these, or no shape lacks the state size that is given.
    """
    found, lacking = [], False
    for part in map(str.strip, text.split(",")):
        if part in LISTS:
            found += LISTS[part]
            continue
        sizes = part.split("x")
        if len(sizes) not in (3, 4):
            remedy = f"For example {key} 32x256x512,8x2039x1531x64, or {key} {','.join(LISTS)}"
            raise UserError(key, part, "a shape is B x L x D or B x L x D x N, whole numbers", remedy)
        lacking |= len(sizes) == 3
        found.append(Shape(*([whole(key, size) for size in sizes] + [d_state or STATES])[:4]))
    if d_state and not lacking:
        raise UserError("--d-state", d_state, f"every shape of {key} has a state size of its own", "Leave it out")
    return list(dict.fromkeys(found))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, with the defaults of the device filled in.

    Raises:
        UserError: an option is wrong, or two of them contradict each other.
    """
    parser = Parser("benchmark scan", __doc__)
    add, plain = parser.option, parser.add_argument
    add("--device", device, help="cuda or cpu; default: cuda if there is one")
    plain("--dtype", choices=DTYPES, help="default: bf16 on a GPU, float32 on a CPU")
    add("--batch", whole, help="B of the sweep over L; default 1 (GPU), 8 (CPU)")
    add("--d-inner", whole, help="D of the sweep; default 1536 (GPU), 256 (CPU)")
    add("--d-state", whole, help="N of the sweep and of shapes BxLxD; default 16")
    add("--lengths", wholes, help="L of the sweep: 256,1024,...; default 1024 to 2^20 (GPU), 128 to 4096 (CPU)")
    plain(
        "--shapes", help="BxLxD,BxLxDxN,... for the sweep; or targets (with published figures), odd (no powers of two)"
    )
    add("--backends", names_of(BACKENDS), help="of ours; default: all that can run")
    add("--against", names_of([*OTHERS, "none"]), default=list(OTHERS), help="default: all others; or none")
    add("--limit", seconds, default=2.0, help="seconds: longer calls are left out; default 2")
    plain("--captured", action="store_true", help="on a GPU: calls as CUDA graphs, without what Python adds to them")
    plain(
        "--eager", action="store_true", help="calls as Python makes them, which is the default; with --captured, both"
    )
    plain("--out", type=Path, help="folder for the results; default outputs/benchmarks/scan-<time>")
    add("--seed", partial(whole, least=0), default=0)
    args = parser.parse_args(argv)
    args.device = args.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    defaults = DEFAULTS[args.device.type]
    args.dtype = DTYPES[args.dtype or defaults["dtype"]]
    args.against = [name for name in args.against if name != "none"]
    args.out = args.out or results_folder("scan")
    if args.captured and args.device.type != "cuda":
        raise UserError("--captured", args.device, "only a GPU has CUDA graphs", "Leave it out")
    args.launches = [name for name in scan.LAUNCHES if getattr(args, name)] or ["eager"]
    args.sweep = args.shapes is None
    if args.sweep:
        batch, d_inner = args.batch or defaults["batch"], args.d_inner or defaults["d_inner"]
        same = d_inner, args.d_state or STATES
        args.shapes = [Shape(batch, length, *same) for length in args.lengths or defaults["lengths"]]
    elif args.batch or args.d_inner or args.lengths:
        rule = "stands in place of the sweep that --batch, --d-inner and --lengths describe"
        raise UserError("--shapes", args.shapes, rule, "Give the one or the other")
    else:
        args.shapes = shapes("--shapes", args.shapes, args.d_state)
    args.targets = set(OFFICIAL) <= set(args.shapes)
    return args


main = command(parse, scan.run)
