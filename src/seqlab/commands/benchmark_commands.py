"""What whole commands cost, of this checkout and of another one: processor seconds, wall seconds and peak memory.

    seqlab benchmark commands                                  # this checkout alone, every case
    seqlab benchmark commands --before ../seqlab-of-yesterday --rounds 5 --out commands.json
    seqlab benchmark commands --cases help,first-step          # these cases

Each command is a process of its own. The checkouts take turns, so that other load on the machine affects both alike,
and a first round, which fills the caches, is left out. Values are medians over the rounds; so are ratios.

    help         python train.py --help
    cfg          python train.py --cfg job
    typo         python train.py optimizer.lrr=1, which is refused
    first-step   python train.py, until its first step is recorded
    sweep-80     python train.py -m with 80 jobs, until the first of them begins
    sweep-500    the same with 500
    resume       a run with a million lines of metrics goes on for a step
    compare      python scripts/compare.py over 2,000 runs, with pictures and page
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from rich.table import Table

from seqlab import console
from seqlab.benchmarks.report import finish, table
from seqlab.benchmarks.run_trees import write_many
from seqlab.commands.options import Parser, command, file_to_write, names_of, whole
from seqlab.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
"""The clone; where seqlab is installed, a folder without scripts."""
LINES, RUNS = 1_000_000, 2_000
SMALL = ["model=linear", "trainer=smoke", "trainer.steps=2"]
SWEPT = "-m model=mamba,transformer,lstm,gru"
PEAK_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes of ``ru_maxrss``."""


class Sample(NamedTuple):
    """One execution of a command: seconds on all processors, elapsed seconds, and peak memory in bytes."""

    cpu_seconds: float
    wall_seconds: float
    peak_bytes: int


class Case(NamedTuple):
    """A command to measure.

    Args:
        command: its arguments to Python; ``{work}`` stands for its working folder.
        prepare: called with the checkout and the working folder, to put there what the command needs.
        until: whether the command has come far enough to be stopped; ``None`` to let it end.
        status: the exit status expected.
    """

    command: str
    prepare: Callable[[Path, Path], None] = lambda root, work: None
    until: Callable[[Path], bool] | None = None
    status: int = 0


def made_a_step(work: Path) -> bool:
    """Whether a run has recorded its first training step."""
    path = work / "run" / "metrics.jsonl"
    return path.exists() and b'"train"' in path.read_bytes()


def began_a_job(work: Path) -> bool:
    """Whether the first job of a sweep has begun."""
    return next(work.glob("sweep/*/.hydra/*"), None) is not None


def long_run(root: Path, work: Path) -> None:
    """A completed run of two steps, with a million lines of metrics before its own."""
    subprocess.run(
        [*program_in(root, "train.py"), *SMALL, f"hydra.run.dir={work}/run"],
        env=environment_of(root),
        check=True,
        capture_output=True,
    )
    path = work / "run" / "metrics.jsonl"
    own = path.read_text().splitlines(keepends=True)
    line = next(line for line in own if '"train"' in line)
    with path.open("w") as file:
        file.writelines(line for _ in range(LINES))
        file.writelines(own)


def sweep(jobs: int) -> Case:
    """A sweep of so many jobs over four models, measured until the first begins."""
    seeds = ",".join(map(str, range(jobs // 4)))
    return Case(f"train.py {SWEPT} seed={seeds} hydra.sweep.dir={{work}}/sweep", until=began_a_job)


CASES = {
    "help": Case("train.py --help"),
    "cfg": Case("train.py --cfg job"),
    "typo": Case("train.py optimizer.lrr=1", status=2),
    "first-step": Case("train.py trainer.log_every=1 hydra.run.dir={work}/run", until=made_a_step),
    "sweep-80": sweep(80),
    "sweep-500": sweep(500),
    "resume": Case("train.py resume={work}/run trainer.steps=3", long_run),
    "compare": Case(
        "scripts/compare.py {work}/runs --out {work}/compared",
        lambda root, work: write_many(work / "runs", runs=RUNS, steps=100),
    ),
}


def environment_of(root: Path) -> dict[str, str]:
    """This process's environment variables, with the package imported from the checkout."""
    return os.environ | {"PYTHONPATH": str(root / "src")}


def program_in(root: Path, script: str) -> list[str | Path]:
    """How to call a checkout's script, or its command where it has no scripts because it is installed."""
    path = root / script
    return [sys.executable, path] if path.is_file() else [sys.executable, "-m", "seqlab", path.stem]


def measure(case: Case, root: Path, ready: Path) -> Sample:
    """Run a case's command on a copy of the folder that was prepared for it.

    Raises:
        SystemExit: the command failed, or ended before it was to be stopped.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = shutil.copytree(ready, Path(folder) / "work")
        script, *arguments = case.command.format(work=work).split()
        with (Path(folder) / "log").open("w+") as log:
            start = time.perf_counter()
            process = subprocess.Popen(
                [*program_in(root, script), *arguments],
                cwd=work,
                env=environment_of(root),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                reached = case.until is not None and wait_for(case.until, work, process.pid)
                wall = time.perf_counter() - start
                if reached:
                    os.killpg(process.pid, signal.SIGKILL)
                _, status, used = os.wait4(process.pid, 0)
            except BaseException:  # Ctrl-C does not reach a process in a session of its own
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise
            process.returncode = os.waitstatus_to_exitcode(status)
            wall = wall if reached else time.perf_counter() - start
            log.seek(0)
            if not reached and (case.until is not None or process.returncode != case.status):
                sys.exit(f"{case.command} ended with {process.returncode}:\n{log.read()[-2000:]}")
    return Sample(used.ru_utime + used.ru_stime, wall, used.ru_maxrss * PEAK_UNIT)


def wait_for(reached: Callable[[Path], bool], work: Path, pid: int) -> bool:
    """Whether ``reached`` was true before the process ended; the process is left for the caller to wait for."""
    while not reached(work):
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return reached(work)
        time.sleep(0.005)
    return True


def measure_all(names: list[str], roots: dict[str, Path], rounds: int) -> dict[str, dict[str, list[Sample]]]:
    """The samples of each case by checkout, round by round."""
    samples: dict[str, dict[str, list[Sample]]] = {name: {build: [] for build in roots} for name in names}
    with console.progress() as progress:
        task = progress.add_task("", total=len(names) * len(roots) * (rounds + 1))
        for name, by_build in samples.items():
            with tempfile.TemporaryDirectory() as folder:
                for build, root in roots.items():
                    progress.update(task, description=f"{name}: making ready")
                    (ready := Path(folder) / build).mkdir()
                    CASES[name].prepare(root, ready)
                for turn in range(rounds + 1):
                    for build, root in roots.items():
                        what = f"round {turn} of {rounds}" if turn else "filling caches"
                        progress.update(task, description=f"{name}: {what}, {build}")
                        sample = measure(CASES[name], root, Path(folder) / build)
                        by_build[build] += [sample] * (turn > 0)
                        progress.advance(task)
    return samples


def rows_of(samples: dict[str, dict[str, list[Sample]]]) -> list[dict[str, Any]]:
    """A row for each case and kind of cost: medians, samples, and the ratio of the costs before and after."""
    rows = []
    for name, by_build in samples.items():
        for kind in Sample._fields:
            values = {build: [getattr(sample, kind) for sample in taken] for build, taken in by_build.items()}
            row = {"case": name, "cost": kind, "samples": values}
            row |= {build: median(taken) for build, taken in values.items()}
            if "before" in values:
                row["times"] = median(b / a for b, a in zip(values["before"], values["after"], strict=True))
            rows.append(row)
    return rows


def table_of(rows: list[dict[str, Any]], title: str) -> Table:
    """The rows as a table: the median of each checkout with its range."""
    lines = []
    for row in rows:
        scale, unit = (2**-20, "MiB") if row["cost"] == "peak_bytes" else (1, "s")
        cells = {"case": row["case"], "cost": row["cost"].rpartition("_")[0]}
        for build, taken in row["samples"].items():
            low, middle, high = (f"{value * scale:,.3g}" for value in (min(taken), row[build], max(taken)))
            cells[build] = f"{middle} {unit} ({low} to {high})"
        lines.append(cells | ({"times": f"{row['times']:.2f}"} if "times" in row else {}))
    return table(title, lines, names=2)


def checkout(key: str, text: str) -> Path:
    """A folder with another version of this repository.

    Raises:
        UserError: it has no train.py.
    """
    if not Path(text, "train.py").is_file():
        raise UserError(
            key, text, "is no checkout, it has no train.py", "Name a folder with another version of this one"
        )
    return Path(text).resolve()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = Parser("benchmark commands", __doc__)
    parser.option("--before", checkout, metavar="CHECKOUT", help="another checkout, to compare this one with")
    parser.option("--cases", names_of(CASES), default=list(CASES), help="default: all")
    parser.option("--rounds", whole, default=5, help="default 5")
    parser.option("--out", file_to_write, help="a JSON file for the results; the table goes beside it in Markdown")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """Measure, write and show what the options ask for. Returns the exit status."""
    roots = ({"before": args.before} if args.before else {}) | {"after": ROOT}
    rows = rows_of(measure_all(args.cases, roots, args.rounds))

    import torch  # only now: a process is charged with the memory of the one that starts it

    from seqlab.benchmarks.results import facts

    results = facts(torch.device("cpu")) | {"rounds": args.rounds, "rows": rows}
    versions = ", ".join(f"{name} {results['versions'][name]}" for name in ("python", "torch"))
    finish(args.out, results, [table_of(rows, f"{results['device_name']}, {versions}, {results['date'][:10]}")])
    return 0


main = command(parse, run)
