"""What models cost in use, against the length of the context: prefill, one token more, state and peak memory.

    seqlab benchmark inference                                  # mamba, transformer and lstm
    seqlab benchmark inference --models mamba,transformer_vanilla --contexts 1024:131072 --batch 1,16
    seqlab benchmark inference --models outputs/<run folder> outputs/<another> --device cpu
    seqlab benchmark inference --models <checkpoint's folder, or its name on the hub>

Contexts double from the first to the last. A model's curve ends before, and the output says why, where it runs out of
memory, where prefill would take longer than --limit, or where its learned positions end.

Leaves inference.json (everything), inference.md (the tables) and inference.png in --out.

"token" is one step of the model after the context; "graph" is the same step launched as one CUDA graph, without the
time that Python takes to launch it operation by operation. "state" is what a sequence needs to go on: recurrent state,
or keys and values. An exponent is the slope of a curve on logarithmic axes over the longest contexts.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from seqlab.benchmarks import inference
from seqlab.commands.options import Parser, command, doubling, results_folder, seconds, whole, wholes
from seqlab.runs.build import choose_device
from seqlab.training.precision import DTYPES

DEFAULTS = {
    "cuda": {"dtype": "bf16", "contexts": "1024:1048576", "limit": 20.0},
    "cpu": {"dtype": "float32", "contexts": "128:131072", "limit": 5.0},
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The settings, with the defaults of the device filled in."""
    parser = Parser("benchmark inference", __doc__)
    add, plain = parser.option, parser.add_argument
    plain(
        "--models", nargs="+", default=["mamba,transformer,lstm"], help="names in conf/model, run folders, checkpoints"
    )
    plain("--size", help="a name in conf/size for the models by name; default: small, or what a model says itself")
    add("--vocabulary", whole, default=10_000, help="of the models by name; default 10000")
    add("--contexts", doubling, help="first:last, doubling, or n,n,...; default 1024:1048576 (GPU), 128:131072")
    add("--batch", wholes, default=[1], help="sequences at a time: n,n,...; default 1")
    plain("--device", choices=["auto", "cpu", "cuda"], default="auto")
    plain("--dtype", choices=DTYPES, help="of parameters and activations; default: bf16 on a GPU, float32 on a CPU")
    add("--limit", seconds, help="seconds for a prefill; default 20 (GPU), 5 (CPU)")
    add("--budget", seconds, default=0.3, help="seconds to repeat a call; default 0.3")
    plain("--out", type=Path, help="folder for the results; default outputs/benchmarks/inference-<time>")
    plain("--trust", action="append", default=[], help="a package of yours that run folders may name parts of")
    add("--seed", partial(whole, least=0), default=0)
    args = parser.parse_args(argv)
    args.device = choose_device(args.device)
    defaults = DEFAULTS[args.device.type]
    args.dtype = DTYPES[args.dtype or defaults["dtype"]]
    args.contexts = args.contexts or doubling("--contexts", defaults["contexts"])
    args.limit = args.limit or defaults["limit"]
    args.out = args.out or results_folder("inference")
    args.models = [name for text in args.models for name in ([text] if Path(text).is_dir() else text.split(","))]
    return args


main = command(parse, inference.run)
