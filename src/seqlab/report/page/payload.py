"""Everything that the page shows, as plain containers: tables, charts and configurations."""

from datetime import datetime
from typing import Any

from seqlab import __version__
from seqlab.formatting import counted
from seqlab.report.compare import Comparison, warnings_of
from seqlab.report.page.cells import extra_tables, results_table
from seqlab.report.page.charts import charts_of, is_logarithmic
from seqlab.report.page.settings import settings_of
from seqlab.report.plots.dataset import DataSet, best_of_models, data_sets
from seqlab.report.plots.panels import COSTS
from seqlab.report.tables import INTERVAL_NOTE, chance_notes


def payload(comparison: Comparison) -> dict[str, Any]:
    """Everything that the page shows."""
    groups = comparison.groups
    data = data_sets(comparison)
    runs = [run for group in groups for run in group.runs]
    largest = max(data, key=lambda one: len(one.rows))
    chances = [note for one in data for note in chance_notes(one.rows, one.name if len(data) > 1 else "")]
    return {
        "version": __version__,
        "written": f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        "counts": f"{counted(len(runs), 'run')} in {counted(len(groups), 'group')}",
        "warnings": warnings_of(comparison),
        "skipped": [[str(one.folder), one.why] for one in comparison.skipped],
        "note": " ".join([INTERVAL_NOTE, *chances]),
        "table": results_table(comparison),
        "extra": extra_tables(comparison),
        "costs": COSTS,
        "fits": len(comparison.fits),
        "largest": largest.name,
        "is_logarithmic": is_logarithmic(largest),
        "groups": [described for one in data for described in described_groups(one)],
        "charts": {one.name: charts_of(one, len(groups)) for one in data},
        "runs": [[str(run.folder), i, run.summary["seed"]] for i, group in enumerate(groups) for run in group.runs],
        "settings": settings_of(runs),
    }


def described_groups(data: DataSet) -> list[dict[str, Any]]:
    """Each group's name and look, whether it is shown at first, and whether it is its model's best."""
    shown, best = set(data.prominent), set(best_of_models(data.rows))
    return [
        {
            "label": group.label,
            "model": group.model,
            "data": group.data,
            "seeds": len(group.runs),
            "style": style,
            "shown": i in shown,
            "best": i in best,
        }
        for i, (group, style) in enumerate(zip(data.groups, data.styles, strict=True))
    ]
