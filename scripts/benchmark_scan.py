"""Time and peak memory of the selective scan: every backend of ours, other packages', attention, and the roofline.

    python scripts/benchmark_scan.py                                  # a sweep over L on whatever is there
    python scripts/benchmark_scan.py --shapes targets                 # the published rows, beside the published figures
    python scripts/benchmark_scan.py --shapes targets --captured      # the same, and the GPU's time alone
    python scripts/benchmark_scan.py --shapes 32x256x512,1x4096x1536 --backends parallel --against none

Leaves scan.json (everything), scan.csv (a line for each row) and scan.png in --out.

"forward" is a call without gradients; "forward+backward" one with the gradients of all eight tensors. Shapes are
B x L x D: batch, length, channels; N is the state size of a channel.
"""

import argparse
import math
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import rich
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from seqlab import console
from seqlab.benchmarks.scan import report
from seqlab.benchmarks.scan.contestants import OTHERS, Contestant, Shape, ours, why_other_is_out
from seqlab.benchmarks.scan.results import OFFICIAL, OFFICIAL_SOURCE, PASSES, compare
from seqlab.benchmarks.scan.session import Session, Settings
from seqlab.benchmarks.timing import DeviceLimits, device_limits
from seqlab.errors import UserError
from seqlab.formatting import counted
from seqlab.ops import backends
from seqlab.ops.selective_scan import BACKENDS
from seqlab.runs.summary import cpu_model, environment, package_version

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "float32": torch.float32}
DEFAULTS = {
    "cuda": {"dtype": "bf16", "batch": 1, "d_inner": 1536, "lengths": [4**n for n in range(5, 11)]},
    "cpu": {"dtype": "float32", "batch": 8, "d_inner": 256, "lengths": [2**n for n in range(7, 13)]},
}
"""Of the sweep. A batch of 1 on a GPU: there only L is left to fill it, up to 2^20 positions."""


class Parser(argparse.ArgumentParser):
    """One whose complaints are a line or two, like every other mistake's."""

    def error(self, message: str) -> NoReturn:
        remedy = f"python {self.prog} --help lists what there is"
        raise UserError("arguments", shlex.join(sys.argv[1:]), message, remedy)


def to_whole(key: str, text: str, least: int = 1) -> int:
    if not text.strip().isdecimal() or int(text) < least:
        raise UserError(key, text, f"has to be a whole number from {least} on", f"For example {key} 16")
    return int(text)


def to_names(key: str, allowed: Sequence[str], text: str) -> list[str]:
    """Names separated by commas, each once."""
    chosen = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in chosen:
        if name not in allowed:
            raise UserError(key, name, "is not among the names it takes", f"Choose from {', '.join(allowed)}")
    return chosen


def to_dtype(text: str) -> torch.dtype:
    if text not in DTYPES:
        raise UserError("--dtype", text, "is no dtype that is measured", f"Choose from {', '.join(DTYPES)}")
    return DTYPES[text]


def to_device(text: str) -> torch.device:
    try:
        device = torch.device(text)
    except RuntimeError:
        device = None
    if device is None or device.type not in DEFAULTS:
        rule = "only CUDA devices and the CPU can be measured"
        raise UserError("--device", text, rule, "Use cuda, cuda:1, ... or cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        rule = f"torch sees {torch.cuda.device_count()} CUDA devices here, counted from 0"
        raise UserError("--device", text, rule, "Use --device cpu, or install a torch that fits the driver")
    return device


def to_lengths(text: str) -> list[int]:
    return sorted({to_whole("--lengths", part) for part in text.split(",")})


def to_shapes(text: str) -> list[Shape]:
    if text == "targets":
        return list(OFFICIAL)
    found = []
    for part in text.split(","):
        sizes = part.strip().split("x")
        if len(sizes) != 3:
            rule = "a shape is B x L x D, three whole numbers"
            raise UserError("--shapes", part, rule, "For example --shapes 32x256x512,8x2048x1536, or --shapes targets")
        found.append(Shape(*(to_whole("--shapes", size) for size in sizes)))
    return list(dict.fromkeys(found))


def to_seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UserError("--limit", text, "has to be a number of seconds above 0", "For example --limit 2")
    return value


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The settings, with the defaults of the device filled in."""
    description, _, more = __doc__.partition("\n\n")
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=description, epilog=more, formatter_class=formatter, prog="scripts/benchmark_scan.py")
    add = parser.add_argument
    add("--device", type=to_device, help="cuda or cpu; default: cuda if there is one")
    add("--dtype", type=to_dtype, help=f"{', '.join(DTYPES)}; default: bf16 on a GPU, float32 on a CPU")
    add("--batch", type=partial(to_whole, "--batch"), help="B of the sweep over L; default 1 (GPU), 8 (CPU)")
    add("--d-inner", type=partial(to_whole, "--d-inner"), help="D of the sweep; default 1536 (GPU), 256 (CPU)")
    add("--d-state", type=partial(to_whole, "--d-state"), default=16, help="N; default 16")
    add(
        "--lengths", type=to_lengths, help="L of the sweep: 256,1024,...; default 1024 to 2^20 (GPU), 128 to 4096 (CPU)"
    )
    add("--shapes", type=to_shapes, help="BxLxD,... in place of the sweep, or targets: those with published figures")
    add("--backends", type=partial(to_names, "--backends", BACKENDS), help="of ours; default: all that can run")
    add("--against", type=partial(to_names, "--against", [*OTHERS, "none"]), help="default: all others; or none")
    add("--limit", type=to_seconds, default=2.0, help="seconds: longer calls are left out; default 2")
    add("--captured", action="store_true", help="on a GPU: calls as CUDA graphs, without what Python adds to them")
    add("--out", type=Path, help="folder for the results; default outputs/benchmarks/scan-<time>")
    add("--seed", type=partial(to_whole, "--seed", least=0), default=0)
    args = parser.parse_args(argv)
    args.device = args.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    defaults = DEFAULTS[args.device.type]
    args.dtype = args.dtype or DTYPES[defaults["dtype"]]
    args.against = [name for name in args.against or OTHERS if name != "none"]
    args.out = args.out or Path("outputs", "benchmarks", f"scan-{datetime.now():%Y-%m-%d_%H-%M-%S}")
    if args.captured and args.device.type != "cuda":
        raise UserError("--captured", args.device, "only a GPU has CUDA graphs", "Leave it out")
    args.sweep, args.targets = args.shapes is None, args.shapes == list(OFFICIAL)
    if args.sweep:
        batch, d_inner = args.batch or defaults["batch"], args.d_inner or defaults["d_inner"]
        args.shapes = [Shape(batch, length, d_inner) for length in args.lengths or defaults["lengths"]]
    elif args.batch or args.d_inner or args.lengths:
        rule = "stands in place of the sweep that --batch, --d-inner and --lengths describe"
        raise UserError("--shapes", ",".join(map(str, args.shapes)), rule, "Give the one or the other")
    return args


def choose(args: argparse.Namespace) -> tuple[list[Contestant], dict[str, str]]:
    """Who takes part, and why the others do not. A backend asked for by name takes part or is an error."""
    chosen, left_out = [], {}
    for name in args.backends or BACKENDS:
        why = backends.load("seqlab.ops.selective_scan", name).why_unavailable(args.device, args.dtype)
        if why is not None and args.backends:
            rule = f"cannot run on {args.device} with {args.dtype} ({why})"
            raise UserError("--backends", name, rule, "Leave it out, or change --device or --dtype")
        if why is None and name == "triton" and args.device.type == "cpu" and not args.backends:
            why = "runs on a CPU only through an interpreter for tests (--backends triton measures that)"
        if why is None:
            chosen.append(ours(name))
        else:
            left_out[name] = why
    for name in args.against:
        if why := why_other_is_out(name, args.device):
            left_out[name] = why
        else:
            chosen.append(OTHERS[name])
    return chosen, left_out


def make_folder(path: Path) -> None:
    """Before anything is measured, so that a mistake here costs no time."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError("--out", path, f"cannot be a folder ({error.strerror})", "Name another folder") from error


def measure(args: argparse.Namespace, contestants: list[Contestant]) -> tuple[Session, DeviceLimits, bool]:
    """The session, the device's limits, and whether Ctrl-C cut it short."""
    settings = Settings(args.device, args.dtype, args.d_state, args.seed, args.limit, args.captured)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    log = rich.get_console()
    with Progress(*columns, console=log, transient=True, disable=not log.is_terminal) as progress:
        total = len(args.shapes) * len(contestants) * len(PASSES)
        task = progress.add_task("copy bandwidth", total=total)
        session = Session(settings, contestants, advance=lambda shape: progress.advance(task))
        limits = device_limits(args.device)
        try:
            for shape in args.shapes:
                progress.update(task, description=str(shape))
                session.measure(shape)
        except KeyboardInterrupt:
            return session, limits, True
    return session, limits, False


def where_and_what(args: argparse.Namespace, limits: DeviceLimits) -> dict[str, Any]:
    """The machine, the versions, the command and the settings."""
    facts = environment(args.device)
    if args.device.type == "cpu":
        facts["device_name"] = f"{cpu_model() or platform.machine()}, {counted(torch.get_num_threads(), 'thread')}"
    facts["versions"] |= {name: package_version(name) for name in ("numba", "mamba_ssm", "mambapy", "matplotlib")}
    facts["date"] = datetime.now().astimezone().isoformat(timespec="seconds")
    facts["settings"] = {
        "dtype": str(args.dtype).removeprefix("torch."),
        "d_state": args.d_state,
        "shapes": [list(shape) for shape in args.shapes],
        "seed": args.seed,
        "limit_s": args.limit,
        "captured": args.captured,
    }
    facts["roofline"] = limits._asdict()
    facts["official"] = OFFICIAL_SOURCE if args.targets else None
    return facts


def run(args: argparse.Namespace) -> int:
    """Measure, write and show. Returns the exit status."""
    contestants, left_out = choose(args)
    make_folder(args.out)
    for name, why in left_out.items():
        console.say(f"{name} left out: {why}")
    if args.device.type == "cuda":
        torch.cuda.set_device(args.device.index or 0)
    session, limits, interrupted = measure(args, contestants)
    rows = session.whole_shapes()
    compare(rows, limits, args.dtype.itemsize, args.targets)
    facts = {**where_and_what(args, limits), "interrupted": interrupted, "left_out": left_out}
    title = f"Selective scan on {facts['device_name']}, {facts['settings']['dtype']}, N = {args.d_state}"
    if args.captured:
        title += ", captured as CUDA graphs"
    report.write_json(args.out / "scan.json", {**facts, "rows": list(map(asdict, rows))})
    report.write_csv(args.out / "scan.csv", rows)
    written = ["scan.json", "scan.csv"]
    if report.write_png(args.out / "scan.png", rows, title, args.sweep):
        written.append("scan.png")
    else:
        console.say("No plot without matplotlib: pip install 'seqlab[plots]' adds it.")
    for line in report.gaps(rows):
        console.say(line)
    out = console.output()
    if not out.is_terminal:
        out.width = max(out.width, 180)  # a table in a file need not fit a screen
    out.print(report.results_table(rows, title))
    if args.targets:
        out.print(report.targets_table(rows, facts["device_name"]))
    out.print(f"Written to {args.out}: {', '.join(written)}", soft_wrap=True, markup=False, highlight=False)
    if interrupted:
        console.say("Stopped at once; the shapes that were measured to their end are written.")
    return 130 if interrupted else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    try:
        return run(parse(argv))
    except UserError as error:
        console.complain(str(error))
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
