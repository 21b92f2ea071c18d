"""The table of a search's results, of the best trial of each architecture; nothing here needs Optuna."""

from collections import Counter
from typing import Any

from rich.table import Column, Table

from seqlab.console import output
from seqlab.formatting import counted

RESULTS = "search.json"


def show(results: dict[str, Any]) -> None:
    """Print the best trial of each study; the test split has no part in choosing it."""
    title = f"The best of {counted(results['trials'], 'trial')} each, by validation loss"
    losses = (Column(name, justify="right", no_wrap=True) for name in ("validation", "its test"))
    study, settings, folder = (Column(name, overflow="fold") for name in ("study", "settings", "run folder"))
    table = Table(study, "trials", *losses, settings, folder, title=title, title_justify="left")
    for study in results["studies"]:
        count = Counter(trial["status"] for trial in study["trials"])
        trials = "\n".join(f"{number} {status}" for status, number in sorted(count.items()))
        best = study["best"] or {"validation": None, "test": None, "settings": {}, "folder": ""}
        losses = [best["validation"], (best["test"] or {}).get("loss")]
        shown = ["" if loss is None else f"{loss:.4f}" for loss in losses]
        settings = "\n".join(f"{key.split('.')[-1]}={value}" for key, value in best["settings"].items())
        table.add_row(study["name"], trials, *shown, settings, best["folder"])
    output().print(table)
