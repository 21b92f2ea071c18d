"""How training grows with the number of GPUs: tokens/s, time of a step and memory, weak and strong, beside plain DDP.

    seqlab benchmark scaling                             # 1, 2, 4, ... of this machine's GPUs
    seqlab benchmark scaling --models 130m --gpus 1,4 --steps 50
    seqlab benchmark scaling --models mamba,transformer --size tiny --device cpu --length 64    # two processes on a CPU
    seqlab benchmark scaling --paper 0.3                 # to 1,024 GPUs on paper, computing at 0.3 of the GPU's peak
    seqlab benchmark scaling --paper <folder>/scaling.json      # the same, computing as long as measured there

Models are large (Mamba of 8 layers at width 768), 130m and 1.4b (the paper's Mamba; the latter with its weights shared
out, and with its layers' activations computed again), or names in conf/model. torchrun starts the processes for each
number of GPUs, and each trains on random tokens by the trainer's own update. --batch sequences a GPU are weak scaling,
--global-batch shared among all strong scaling. "plain DDP" is a bare loop around torch's DistributedDataParallel and
AdamW with the same model, loss, precision and batch, in the same processes.

Efficiency is the tokens/s of a GPU beside that of the fewest GPUs, which in "ours" replays steps as a CUDA graph where
that can be. Several GPUs do so only if told to (trainer.cuda_graph=true), so one GPU is measured without, "ours, no
graph", and several with, "ours, graph", too.

Leaves scaling.json (everything, written after each case), scaling.md, scaling.png and what the processes said
(processes-<number>.log) in --out.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from seqlab.benchmarks import scaling
from seqlab.commands.options import Parser, command, names_of, number, results_folder, whole, wholes
from seqlab.config.options import options_of
from seqlab.config.schema import cores
from seqlab.errors import UserError
from seqlab.runs.build import choose_device


def paper(key: str, text: str) -> float | Path:
    """How long computing takes: a share of a GPU's peak, or a file with what was measured.

    Raises:
        UserError: it is neither.
    """
    if Path(text).is_file():
        return Path(text)
    share = number(key, text, "a file, or a share of a GPU's peak")
    if share > 1:
        raise UserError(key, text, "is more than all of a GPU's peak", f"For example {key} 0.3")
    return share


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The settings, with the defaults of the device filled in.

    Raises:
        UserError: there are not so many GPUs.
    """
    parser = Parser("benchmark scaling", __doc__)
    add, plain = parser.option, parser.add_argument
    models = list(scaling.MODELS)
    names = names_of([*models, *options_of("model")])
    add("--models", names, default=models, help=f"{', '.join(models)} (default: all three), or names in conf/model")
    plain("--size", choices=options_of("size"), help="of models in conf/model; default: their own, or small")
    add("--gpus", wholes, help="numbers of GPUs; default 1,2,4,... as far as there are; of processes on a CPU, 1,2")
    add("--steps", whole, default=20, help="that are timed, after a warm-up; default 20")
    add("--length", whole, default=2048)
    add("--batch", whole, default=8, help="sequences of each GPU, weak scaling; default 8")
    add("--global-batch", whole, help="sequences of all GPUs together, strong scaling; default: --batch")
    plain("--parallel", choices=["ddp", "fsdp"], help="default: fsdp for 1.4b, ddp for the others")
    plain("--precision", choices=["float32", "bf16"], help="default: bf16 on a GPU, float32 on a CPU")
    plain("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add("--paper", paper, help="measure nothing: a table on paper, from a share of a GPU's peak or a scaling.json")
    plain("--out", type=Path, help="folder for the results; default outputs/benchmarks/scaling-<time>")
    add("--seed", partial(whole, least=0), default=0)
    args = parser.parse_args(argv)
    args.device = choose_device(args.device)
    gpu = args.device.type == "cuda"
    there = torch.cuda.device_count() if gpu else cores()
    args.gpus = args.gpus or [1 << power for power in range(there.bit_length() if gpu else 2)]
    if args.gpus[-1] > there:
        what = "torch sees no more GPUs" if gpu else "this machine has no more cores"
        raise UserError("--gpus", args.gpus[-1], f"{what} than {there}", f"Ask for {there} or fewer")
    args.precision = args.precision or ("bf16" if gpu else "float32")
    args.global_batch = args.global_batch or args.batch
    args.out = args.out or results_folder("scaling")
    return args


main = command(parse, scaling.run)
