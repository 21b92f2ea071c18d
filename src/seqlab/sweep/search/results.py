"""What a search found: ``search.json`` and the best of each architecture as a table."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from seqlab.console import output
from seqlab.formatting import counted
from seqlab.jsonio import dump, load

RESULTS = "search.json"


def write(folder: Path, studies: Sequence[Any]) -> dict[str, Any]:
    """Write what the studies hold so far; returns it."""
    results = {"trials": studies[0].settings["trials"], "studies": [of(study, folder) for study in studies]}
    dump(folder / RESULTS, results)
    return results


def of(study: Any, folder: Path) -> dict[str, Any]:
    """A study's trials, and the one with the lowest validation loss."""
    trials = [
        {
            "number": trial.number,
            "folder": trial.user_attrs.get("folder"),
            "status": trial.user_attrs.get("status", "running"),
            "validation": trial.value if trial.user_attrs.get("status") == "completed" else None,
            "validations": {str(number): loss for number, loss in sorted(trial.intermediate_values.items())},
            "settings": study.arm.settings(trial.params),
        }
        for trial in study.optuna.get_trials(deepcopy=False)
    ]
    completed = [trial for trial in trials if trial["validation"] is not None]
    best = min(completed, key=lambda trial: trial["validation"], default=None)
    if best is not None:
        best = best | {"test": load(folder / best["folder"] / "summary.json").get("test")}
    return {"name": study.arm.name, "overrides": study.arm.fixed, "best": best, "trials": trials}


def show(results: dict[str, Any]) -> None:
    """The best of each study; the test split had no part in choosing it."""
    table = Table(
        title=f"The best of {counted(results['trials'], 'trial')} each, by validation loss", title_justify="left"
    )
    table.add_column("study", overflow="fold")
    table.add_column("trials")
    for name in ("validation", "its test"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("settings", overflow="fold")
    table.add_column("run folder", overflow="fold")
    for study in results["studies"]:
        count = Counter(trial["status"] for trial in study["trials"])
        trials = "\n".join(f"{number} {status}" for status, number in sorted(count.items()))
        best = study["best"] or {"validation": None, "test": None, "settings": {}, "folder": ""}
        losses = [best["validation"], (best["test"] or {}).get("loss")]
        shown = ["" if loss is None else f"{loss:.4f}" for loss in losses]
        settings = "\n".join(f"{key.split('.')[-1]}={value}" for key, value in best["settings"].items())
        table.add_row(study["name"], trials, *shown, settings, best["folder"])
    output().print(table)
