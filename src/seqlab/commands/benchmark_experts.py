"""A mixture of experts forward and backward: grouped matrix products beside a loop over the experts.

    seqlab benchmark experts                            # 32 x 256 tokens at size=small, on a GPU if any
    seqlab benchmark experts --tokens 1024 --threads 2  # what takes less time on a CPU
    seqlab benchmark experts --width 512 --d-ff 2048 --precision bf16 --out experts.json
    seqlab benchmark experts --model mamba_moe --size small  # the whole training step of a model

Both are the layer of conf/model/mamba_moe.yaml in training, router, auxiliary loss and dropout included, with the same
weights. The loop takes one expert after the other: find its tokens, copy them, two products, add the result to the
output. In every round each layer has its turn, so that other load on the machine affects both alike; times are medians
over rounds.

With --model it is the update that train.py makes of batches of 256 random tokens out of 10,000, by AdamW: replayed as a
CUDA graph where that can be, which a loop that waits for the device is not.
"""

import argparse
from collections.abc import Sequence

from seqlab.benchmarks import experts
from seqlab.commands.options import Parser, command, file_to_write, whole
from seqlab.training.precision import DTYPES


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = Parser("benchmark experts", __doc__)
    add, plain = parser.option, parser.add_argument
    plain("--device", default="auto", help="auto, cpu or cuda")
    add("--tokens", whole, default=32 * 256)
    add("--width", whole, default=256, help="d_model")
    add("--d-ff", whole, default=1024)
    add("--experts", whole, default=8)
    add("--top-k", whole, default=2)
    plain("--precision", choices=list(DTYPES), default="float32")
    add("--threads", whole, help="of a CPU; default: what PyTorch chooses")
    plain("--model", help="of conf/model: its whole training step; sizes are its own then")
    plain("--size", help="of conf/size, for --model")
    add("--rounds", whole, default=7)
    plain("--least", type=float, default=0.2, help="seconds for each layer in each round, at least; default 0.2")
    add("--out", file_to_write, help="a JSON file for the results; the table goes beside it in Markdown")
    return parser.parse_args(argv)


main = command(parse, experts.run)
