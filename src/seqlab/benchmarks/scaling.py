"""How training grows with the number of GPUs: torchrun for each number, the same steps in each, beside plain DDP."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seqlab import console
from seqlab.benchmarks import report, scaling_on_paper
from seqlab.benchmarks.results import facts
from seqlab.benchmarks.scaling_points import (
    BARE,
    GRAPH,
    NO_GRAPH,
    OURS,
    Case,
    Point,
    as_dict,
    failures,
    panels,
    series,
    tables,
)
from seqlab.benchmarks.scaling_step import Trained
from seqlab.benchmarks.session import OUT_OF_MEMORY
from seqlab.config.schema import cores
from seqlab.config.without_effect import own_size
from seqlab.formatting import counted
from seqlab.jsonio import dump

FILE = "scaling.json"
STEP = "seqlab.benchmarks.scaling_step"
INTERVAL = 0.2  # seconds between two looks

MODELS = {
    "large": Trained(["model=mamba", "size=large"], 33_278),
    "130m": Trained(["model=mamba", "size.d_model=768", "size.n_layers=24"], 50_280),
    "1.4b": Trained(["model=mamba", "size.d_model=2048", "size.n_layers=48"], 50_280, "fsdp", True),
}
"""Mamba with WikiText-2's words; and two of the paper's (Gu and Dao 2023, arXiv:2312.00752, table 12), whose vocabulary
of 50,277 its authors fill up to 50,280."""


def trained_of(name: str, args: argparse.Namespace) -> Trained:
    """A model of ``MODELS``, or of conf/model at ``--size`` with the vocabulary of PTB."""
    size = args.size or own_size(name) or "small"
    found = MODELS.get(name) or Trained([f"model={name}", f"size={size}"], 10_000)
    return found._replace(parallel=args.parallel or found.parallel)


def as_words(trained: Trained) -> str:
    """How a model is trained."""
    again = ", layers computed again" if trained.checkpoint_layers else ""
    return f"{trained.parallel}{again}, vocabulary {trained.vocabulary:,}"


def cases_of(args: argparse.Namespace, gpus: int) -> list[Case]:
    """The steps to measure on so many GPUs; what belongs to both scalings once."""
    rows = [args.batch, *([args.global_batch // gpus] if args.global_batch % gpus == 0 else [])]
    found = []
    for model in args.models:
        graphs = args.device.type == "cuda" and args.trained[model].parallel != "fsdp"
        contestants = [OURS, *([NO_GRAPH if gpus == 1 else GRAPH] if graphs else []), BARE]
        found += [Case(model, contestant, gpus, share) for share in dict.fromkeys(rows) for contestant in contestants]
    return found


def measure(args: argparse.Namespace, show: Callable[[Case], None]) -> Iterator[Point]:
    """Measure all cases; after a failure the processes are started again for those that are left.

    Args:
        args: the options of scripts/benchmark_scaling.py.
        show: called with each case when it begins.
    """
    for gpus in args.gpus:
        left = cases_of(args, gpus)
        while left:
            found = yield from launched(args, gpus, left, show)
            left = left[found:]


def launched(
    args: argparse.Namespace, gpus: int, cases: Sequence[Case], show: Callable[[Case], None]
) -> Iterator[Point]:
    """Have torchrun start the processes, and give out what they measure; returns of how many cases."""
    log = args.out / f"processes-{gpus}.log"
    threads = str(max(1, cores() // max(args.gpus)))  # of each process, whatever their number
    own = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": threads}
    with tempfile.TemporaryDirectory(prefix="seqlab_scaling_") as folder, log.open("ab") as output:
        settings, results = Path(folder, "settings.json"), Path(folder, "results")
        results.touch()
        dump(settings, as_settings(args, cases) | {"results": str(results)})
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}"]
        command += ["-m", STEP, str(settings)]
        child = subprocess.Popen(
            command,
            env=own | os.environ | {"PYTHONPATH": own["PYTHONPATH"]},
            stdout=output,
            stderr=output,
            start_new_session=True,  # a Ctrl-C comes from here, once
        )
        found = 0
        try:
            with results.open() as lines:
                while found < len(cases):
                    show(cases[found])
                    point = next_point(lines, found, child)
                    if point is None:
                        break
                    yield point
                    found += 1
                    if point.status != "measured":
                        break
        finally:
            if found < len(cases):
                child.terminate()
            child.wait()
    if point is None:  # they ended without a word: those left would do the same if none has come so far
        for case in cases[found:] if found == 0 else cases[found : found + 1]:
            yield Point(*case, args.length, status="failed", reason=f"the processes ended; {log} says why")
            found += 1
    return found


def next_point(lines: Any, place: int, child: subprocess.Popen) -> Point | None:
    """Wait for the result of the case number ``place``; ``None`` if the processes end without it.

    Several processes may say why a case failed: the first is heard.
    """
    ended = False
    while True:
        at = lines.tell()
        line = lines.readline()
        if not line.endswith("\n"):
            lines.seek(at)
            if ended:
                return None
            ended = child.poll() is not None  # and look once more
            time.sleep(0 if ended else INTERVAL)
            continue
        number, found = json.loads(line)
        if number == place:
            return Point(**found)


def as_settings(args: argparse.Namespace, cases: Sequence[Case]) -> dict[str, Any]:
    """What the processes are told."""
    return {
        **{key: getattr(args, key) for key in ("length", "steps", "precision", "seed")},
        "device": args.device.type,
        "models": {name: trained._asdict() for name, trained in args.trained.items()},
        "cases": cases,
    }


def run(args: argparse.Namespace) -> int:
    """Measure, write and show what scripts/benchmark_scaling.py is asked for.

    Returns:
        The exit status.

    Raises:
        UserError: a model cannot be built.
    """
    report.make_folder(args.out)
    args.trained = {name: trained_of(name, args) for name in args.models}
    for trained in args.trained.values():
        scaling_on_paper.built_of(trained, args.length)  # one that cannot be built is refused at once
    if args.paper:
        scaling_on_paper.show(args)
        return 0
    results = measured(args)
    points = [Point(**row) for row in results["points"]]
    found = series(points, args.batch, args.global_batch)
    results["series"] = list(map(as_dict, found))
    what = {name: as_words(one) for name, one in args.trained.items()}
    where = f"{results['device_name']}, {args.precision}"
    title = f"Tokens/s of a GPU beside the fewest; {args.batch} x {args.length:,} a GPU (weak), "
    title += f"{args.global_batch} x {args.length:,} in all (strong); {where}"
    shown = panels(found)
    drawn = report.write_picture(args.out / "scaling.png", title, shown, "GPUs", columns=len(shown)) if shown else []
    lines = failures(points)
    for gpus in args.gpus:
        if args.global_batch % gpus:
            lines.append(f"{counted(gpus, 'GPU')}: {args.global_batch} sequences do not divide, so no strong scaling")
    report.finish(args.out / FILE, results, tables(found, what, where), lines, also=drawn)
    if results["interrupted"]:
        console.say("Stopped at once; what was measured is written.")
        return 130
    return int(any(point.status == "failed" and point.reason != OUT_OF_MEMORY for point in points))


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """The results of a measurement, which are written after each case."""
    asked = {key: getattr(args, key) for key in ("models", "gpus", "steps", "length", "batch", "global_batch", "seed")}
    results = facts(args.device, ("numba", "matplotlib")) | {
        "settings": asked | {"trained": {name: one._asdict() for name, one in args.trained.items()}},
        "precision": args.precision,
        "interrupted": True,  # until it is at its end
        "points": [],
    }
    with console.progress() as progress:
        task = progress.add_task("", total=sum(len(cases_of(args, gpus)) for gpus in args.gpus))

        def show(case: Case) -> None:
            progress.update(task, description=f"{case.model}, {case.contestant}, {case.gpus} x {case.rows}")

        try:
            for point in measure(args, show):
                results["points"].append(asdict(point))
                dump(args.out / FILE, results)
                progress.advance(task)
            results["interrupted"] = False
        except KeyboardInterrupt:
            pass
    return results
