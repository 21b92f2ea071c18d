"""The comparison of many runs as an object: its tables as data frames, its pictures inline."""

from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from seqlab.api.run import Run
from seqlab.commands.compare import refuse_nothing, write
from seqlab.invocation import typed_as
from seqlab.places import check_place
from seqlab.report import compare as of_report
from seqlab.report.budgets import parse_at
from seqlab.report.inline import html
from seqlab.report.runs import read
from seqlab.report.write_tables import difference_cells, group_cells


class Comparison:
    """Runs side by side, grouped over seeds; a notebook shows its tables and the picture of losses.

    Args:
        content: what all tables and pictures show.
    """

    def __init__(self, content: of_report.Comparison):
        self._content = content

    @property
    def table(self) -> pd.DataFrame:
        """A row for each group of runs that differ in their seeds alone: the numbers of ``comparison.csv``.

        A metric such as ``test_loss`` is in five columns: its ``_mean``, ``_std``, the ``_low`` and ``_high`` of the
        95 % interval, and ``_n``, the number of seeds.
        """
        return pd.DataFrame(list(map(group_cells, self._content.rows)))

    @property
    def differences(self) -> pd.DataFrame:
        """A row for each pair of groups of the same data, paired on the seeds: the numbers of ``differences.csv``."""
        return pd.DataFrame(list(map(difference_cells, self._content.differences)))

    @property
    def warnings(self) -> list[str]:
        """How runs that are side by side differ in what should be equal: data, tokens, precision, device."""
        return of_report.warnings_of(self._content)

    @property
    def skipped(self) -> pd.DataFrame:
        """``folder`` and ``why`` of what was passed over."""
        rows = [(str(one.folder), one.why) for one in self._content.skipped]
        return pd.DataFrame(rows, columns=["folder", "why"])

    @cached_property
    def pictures(self) -> dict[str, "Picture"]:
        """Every picture that the runs have values for, by name, such as ``wikitext2_loss`` and ``wikitext2_cost``.

        Raises:
            UserError: matplotlib is not installed (``pip install 'seqlab[plots]'``).
        """
        from seqlab.report import plots

        return {name: Picture(png) for name, png in plots.as_png(self._content).items()}

    def write(self, folder: str | Path) -> list[Path]:
        """Write what ``seqlab compare --out`` does: tables, pictures and a page; returns the files.

        Raises:
            UserError: the folder cannot be made or written to.
        """
        check_place("folder", Path(folder))
        return write(self._content, Path(folder), lambda doing: None)

    def __repr__(self) -> str:
        columns = ["data", "label", "seeds", "parameters", "test_loss_mean"]
        return self.table[columns].to_string(index=False)

    def _repr_html_(self) -> str:
        from seqlab.report import plots

        drawn = plots.as_png(self._content, "loss") if find_spec("matplotlib") else {}
        return html(self._content, drawn)


class Picture(bytes):
    """A PNG file, which a notebook shows."""

    def _repr_png_(self) -> bytes:
        return bytes(self)

    def __repr__(self) -> str:
        return f"<PNG of {len(self):,} bytes>"


def compare(*runs: str | Path | Run, at: str | None = None) -> Comparison:
    """Compare runs as ``seqlab compare`` does.

    Args:
        runs: runs, their folders, sweeps, folders above them, or globs of these; without any, ``outputs``.
        at: an equal budget, ``tokens``, ``flops``, ``seconds`` or ``params``, or one such as ``tokens=1e6``.

    Raises:
        UserError: a folder does not exist, no run there is completed, or the budget cannot be used.
    """
    paths = [run.folder if isinstance(run, Run) else Path(run) for run in runs or ("outputs",)]
    budget = None if at is None else parse_at(at)
    found, skipped = read(paths)
    if not found:
        with typed_as(["seqlab", "compare"], []):
            refuse_nothing(skipped, paths)
    return Comparison(of_report.compare(found, skipped, at=budget))
