"""What models cost in use, against the length of the context: prefill, one token more, state and peak memory.

    python scripts/benchmark_inference.py                                  # mamba, transformer and lstm
    python scripts/benchmark_inference.py --models mamba,transformer_vanilla --contexts 1024:131072 --batch 1,16
    python scripts/benchmark_inference.py --models outputs/<run folder> outputs/<another> --device cpu

Contexts double from the first to the last. A model's curve ends before, and the output says why, where it runs out of
memory, where prefill would take longer than --limit, or where its learned positions end.

Leaves inference.json (everything) and inference.png in --out.

"token" is one step of the model after the context; "graph" is the same step launched as one CUDA graph, without the
time that Python takes to launch it operation by operation. "state" is what a sequence needs to go on: recurrent state,
or keys and values. An exponent is the slope of a curve on logarithmic axes over the longest contexts.
"""

import argparse
import itertools
import platform
import shlex
import sys
from collections.abc import Container, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import rich
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from seqlab import console
from seqlab.benchmarks.inference import report
from seqlab.benchmarks.inference.session import LAST_STEPS, Contestant, Session, Settings
from seqlab.config.exceptions import translate
from seqlab.errors import UserError
from seqlab.formatting import counted
from seqlab.models.counting import scan_backend
from seqlab.runs.build import choose_device
from seqlab.runs.load import fresh_model, load_run
from seqlab.runs.process import reset_global_state
from seqlab.runs.summary import cpu_model, environment, package_version

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "float32": torch.float32}
DEFAULTS = {
    "cuda": {"dtype": "bf16", "contexts": "1024:1048576", "limit": 20.0},
    "cpu": {"dtype": "float32", "contexts": "128:131072", "limit": 5.0},
}


class Parser(argparse.ArgumentParser):
    """One whose complaints are a line or two, like every other mistake's."""

    def error(self, message: str) -> NoReturn:
        remedy = f"python {self.prog} --help lists what there is"
        raise UserError("arguments", shlex.join(sys.argv[1:]), message, remedy)


def to_wholes(key: str, text: str) -> list[int]:
    """Whole numbers from 1 on, separated by commas."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(key, text, "has to be whole numbers from 1 on", f"For example {key} 1,16")
    return sorted(set(map(int, parts)))


def to_contexts(text: str) -> list[int]:
    """``first:last`` doubles from the first to the last; or numbers separated by commas."""
    first, colon, last = text.partition(":")
    if not colon:
        return to_wholes("--contexts", text)
    (start,), (end,) = to_wholes("--contexts", first), to_wholes("--contexts", last)
    if end < start:
        raise UserError("--contexts", text, "ends before it begins", "For example --contexts 1024:131072")
    return [start << power for power in range((end // start).bit_length())]


def to_seconds(key: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UserError(key, text, "has to be a number of seconds above 0", f"For example {key} 2")
    return value


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The settings, with the defaults of the device filled in."""
    description, _, more = __doc__.partition("\n\n")
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        description=description, epilog=more, formatter_class=formatter, prog="scripts/benchmark_inference.py"
    )
    add = parser.add_argument
    add("--models", nargs="+", default=["mamba,transformer,lstm"], help="names in conf/model, or run folders")
    add("--size", help="a name in conf/size for the models by name; default: small, or what a model says itself")
    add("--vocabulary", type=int, default=10_000, help="of the models by name; default 10000")
    add("--contexts", type=to_contexts, help="first:last, doubling, or n,n,...; default 1024:1048576 (GPU), 128:131072")
    add("--batch", type=partial(to_wholes, "--batch"), default=[1], help="sequences at a time: n,n,...; default 1")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add("--dtype", choices=DTYPES, help="of parameters and activations; default: bf16 on a GPU, float32 on a CPU")
    add("--limit", type=partial(to_seconds, "--limit"), help="seconds for a prefill; default 20 (GPU), 5 (CPU)")
    add("--budget", type=partial(to_seconds, "--budget"), default=0.3, help="seconds to repeat a call; default 0.3")
    add("--out", type=Path, help="folder for the results; default outputs/benchmarks/inference-<time>")
    add("--trust", action="append", default=[], help="a package of yours that run folders may name parts of")
    add("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    args.device = choose_device(args.device)
    defaults = DEFAULTS[args.device.type]
    args.dtype = DTYPES[args.dtype or defaults["dtype"]]
    args.contexts = args.contexts or to_contexts(defaults["contexts"])
    args.limit = args.limit or defaults["limit"]
    args.out = args.out or Path("outputs", "benchmarks", f"inference-{datetime.now():%Y-%m-%d_%H-%M-%S}")
    args.models = [name for text in args.models for name in ([text] if Path(text).is_dir() else text.split(","))]
    if args.vocabulary < 1:
        raise UserError("--vocabulary", args.vocabulary, "has to be at least 1", "For example --vocabulary 10000")
    return args


def contestant(name: str, args: argparse.Namespace) -> Contestant:
    """A model by name with fresh weights, whose values do not change the time; or the one that a run left."""
    if Path(name).is_dir():
        trained = load_run(Path(name), torch.device("cpu"), trust=args.trust, untrained=True)
        label, kind, model = f"{trained.cfg.name} ({shortened(Path(name).name)})", trained.cfg.name, trained.model
    else:
        longest = args.contexts[-1] + LAST_STEPS
        label, kind = name, name
        model = fresh_model(name, args.size, vocabulary=args.vocabulary, max_length=longest)
    return Contestant(label, kind, model.to(args.device, args.dtype))


def shortened(folder: str, most: int = 32) -> str:
    """A folder's name for a table; those of a sweep tell all that differs, and are long."""
    return folder if len(folder) <= most else f"…{folder[1 - most :]}"


def unique(name: str, taken: Container[str]) -> str:
    """The name, with a number if it is taken."""
    numbered = itertools.chain([name], (f"{name} #{number}" for number in itertools.count(2)))
    return next(label for label in numbered if label not in taken)


def measure(args: argparse.Namespace, session: Session, facts: dict[str, Any]) -> bool:
    """Run the whole session; returns whether Ctrl-C cut it short."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    log = rich.get_console()
    total = len(args.models) * len(args.batch) * len(args.contexts)
    with Progress(*columns, console=log, transient=True, disable=not log.is_terminal) as progress:
        task = progress.add_task("", total=total)
        session.advance = lambda: progress.advance(task)
        try:
            for name in args.models:
                reset_global_state(args.seed)
                entrant = contestant(name, args)
                entrant = entrant._replace(name=unique(entrant.name, facts["models"]))
                facts["models"][entrant.name] = {
                    "parameters": sum(p.numel() for p in entrant.model.parameters()),
                    "scan_backend": scan_backend(entrant.model, args.device),
                }
                for batch in args.batch:
                    for context in session.measure(entrant, batch, args.contexts):
                        progress.update(task, description=f"{entrant.name}, batch {batch}, context {context:,}")
        except KeyboardInterrupt:
            return True
    return False


def where_and_what(args: argparse.Namespace) -> dict[str, Any]:
    """The machine, the versions, the command and the settings."""
    facts = environment(args.device)
    if args.device.type == "cpu":
        facts["device_name"] = f"{cpu_model() or platform.machine()}, {counted(torch.get_num_threads(), 'thread')}"
    facts["versions"] |= {name: package_version(name) for name in ("numba", "matplotlib")}
    facts["date"] = datetime.now().astimezone().isoformat(timespec="seconds")
    facts["settings"] = {
        "dtype": str(args.dtype).removeprefix("torch."),
        "size": args.size,
        "vocabulary": args.vocabulary,
        "contexts": args.contexts,
        "batch": args.batch,
        "limit_s": args.limit,
        "budget_s": args.budget,
        "seed": args.seed,
    }
    return facts | {"models": {}}


def run(args: argparse.Namespace) -> int:
    """Measure, write and show. Returns the exit status."""
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError("--out", args.out, f"cannot be a folder ({error.strerror})", "Name another folder") from error
    facts = where_and_what(args)
    session = Session(Settings(args.device, args.dtype, args.seed, args.limit, args.budget), advance=lambda: None)
    interrupted = measure(args, session, facts)
    curves = session.curves
    title = f"Inference on {facts['device_name']}, {facts['settings']['dtype']}"
    report.write_json(args.out / "inference.json", {**facts, "interrupted": interrupted}, curves)
    written = ["inference.json"]
    if report.write_png(args.out / "inference.png", curves, title):
        written.append("inference.png")
    else:
        console.say("No picture without matplotlib: pip install 'seqlab[plots]' adds it.")
    out = console.output()
    if not out.is_terminal:
        out.width = max(out.width, 180)  # a table in a file need not fit a screen
    out.print(report.results_table(curves, title))
    out.print(report.exponents_table(curves))
    for line in report.endings(curves):
        out.print(line, soft_wrap=True, markup=False, highlight=False)
    out.print(f"Written to {args.out}: {', '.join(written)}", soft_wrap=True, markup=False, highlight=False)
    if interrupted:
        console.say("Stopped at once; what was measured is written.")
    return 130 if interrupted else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    try:
        return run(parse(argv))
    except Exception as error:
        ending = translate(error)
        if ending is None:
            raise
        console.complain(str(ending))
        return ending.exit_status


if __name__ == "__main__":
    sys.exit(main())
