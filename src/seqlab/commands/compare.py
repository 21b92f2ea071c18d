"""Runs side by side, grouped over seeds: tables, pictures and a page, with 95 % intervals.

    seqlab compare                                    # everything under outputs/
    seqlab compare outputs/sweep_2026-01-31*          # run folders, sweeps, or globs of them
    seqlab compare outputs/sweep --at flops           # at an equal budget, read from the curves
    seqlab compare outputs/sweep --strict             # refuse runs that differ in data, tokens, device ...

Leaves comparison.csv (every number), differences.csv, comparison.md, comparison.tex (booktabs), pictures (PNG and SVG)
and index.html in --out; where a model has three budgets or more, fits.csv and equal_flops.csv too.
"""

import argparse
import gc
from collections.abc import Callable, Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import rich

from seqlab import console
from seqlab.commands.options import Parser, command, folder_to_write
from seqlab.errors import UserError
from seqlab.invocation import program
from seqlab.report import print_tables
from seqlab.report.budgets import UNITS, parse_at
from seqlab.report.compare import Comparison, compare, first_few, mismatches_in_words
from seqlab.report.runs import Skipped, read
from seqlab.report.write_tables import write as write_tables

OUTPUTS = Path("outputs")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, with the default folders filled in.

    Raises:
        UserError: an option is wrong, or no folder is named and there is no outputs/.
    """
    parser = Parser("compare", __doc__)
    add = parser.add_argument
    add("paths", nargs="*", type=Path, metavar="folder", help="run folders, sweeps, globs; default: outputs/")
    add("--at", type=parse_at, metavar="AXIS[=BUDGET]", help=f"an equal budget of {', '.join(UNITS)}")
    add("--strict", action="store_true", help="refuse runs that differ in data, split, tokens, precision or device")
    parser.option("--out", folder_to_write, help="folder for the results; default: outputs/comparisons/<time>")
    args = parser.parse_args(argv)
    if not args.paths:
        if not OUTPUTS.is_dir():
            raise UserError("outputs/", "missing", "there are no runs here", "Name the folders that hold runs")
        args.paths = [OUTPUTS]
    args.out = args.out or OUTPUTS / "comparisons" / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    return args


def refuse_nothing(skipped: Sequence[Skipped], paths: Sequence[Path]) -> NoReturn:
    """End where no run completed.

    Raises:
        UserError: always, with the first reasons.
    """
    reasons = "; ".join(f"{one.folder}: {one.why}" for one in skipped[:3])
    more = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    remedy = f"Finish a run, for example with {program()}, or name other folders"
    rule = f"no completed run is there ({reasons or 'nothing at all'}{more})"
    raise UserError("folder", first_few(paths, 3, ", "), rule, remedy)


def refuse_mismatches(comparison: Comparison, paths: Sequence[Path]) -> NoReturn:
    """End where ``--strict`` is given and runs differ.

    Raises:
        UserError: always, with what they differ in.
    """
    differ = "; ".join(line.removeprefix("The runs differ in ") for line in mismatches_in_words(comparison, most=3))
    remedy = "Name runs that do not, or leave out --strict, which refuses such"
    raise UserError("folder", first_few(paths, 3, ", "), f"the runs there differ in {differ}", remedy)


def write(comparison: Comparison, folder: Path, show: Callable[[str], None]) -> list[Path]:
    """Tables, pictures and the page; ``show`` says what is being done. Returns what was written.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    from seqlab.report import page, plots  # not before they are needed: they take a second to import

    try:
        folder.mkdir(parents=True, exist_ok=True)
        show("writing tables")
        written = write_tables(comparison, folder)
        if find_spec("matplotlib") is None:
            console.say("No pictures without matplotlib: pip install 'seqlab[plots]' adds it.")
        else:
            show("drawing pictures")
            written += plots.write(comparison, folder)
        if find_spec("plotly") is None:
            console.say("No page for the browser without plotly: pip install 'seqlab[plots]' adds it.")
        else:
            show("writing the page")
            written.append(page.write(comparison, folder))
        return written
    except OSError as error:
        where = error.filename or folder
        raise UserError("--out", where, f"cannot be written ({error.strerror})", "Name another folder") from error


def run(args: argparse.Namespace) -> int:
    """Read, compare, print and write. Returns the exit status."""
    gc.set_threshold(100_000)  # nearly all objects here last to the end: looking for cycles more often costs a tenth
    with console.progress() as progress:
        task = progress.add_task("reading runs", total=None)
        runs, skipped = read(args.paths, lambda done, total: progress.update(task, completed=done, total=total))
    if not runs:
        refuse_nothing(skipped, args.paths)
    with rich.get_console().status("comparing") as status:
        comparison = compare(runs, skipped, at=args.at)
        if args.strict and comparison.mismatches:
            refuse_mismatches(comparison, args.paths)
        written = write(comparison, args.out, status.update)
    out = console.output()
    if not out.is_terminal:
        out.width = max(out.width, 200)  # a table in a file need not fit a screen
    for part in print_tables.screen(comparison, out.width):
        out.print(part)
    names = ", ".join(str(path.relative_to(args.out)) for path in written)
    out.print(f"Written to {args.out}: {names}", soft_wrap=True, markup=False, highlight=False)
    return 0


main = command(parse, run)
