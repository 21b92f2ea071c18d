"""Results of evaluations: tables for the terminal, and ``evaluation.json``."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from seqlab import places
from seqlab.errors import UserError
from seqlab.jsonio import dump, finite

FIGURES = {
    "perplexity_per_token": "perplexity per token",
    "perplexity_per_word": "perplexity per word",
    "bits_per_byte": "bits per byte",
    "loss": "loss per token, in nats",
    "tokens": "tokens predicted",
    "unknown_tokens": "of them unknown ones",
    "words": "words",
    "bytes": "bytes",
}
WINDOWS = {"sliding": "sliding window", "carried": "state carried on"}
DIRECTIONS = {True: "higher", False: "lower"}


def figures_table(title: str, figures: dict[str, dict[str, float]], contexts: dict[str, str]) -> Table:
    """The figures of a text, a column for each kind of window, and in words what was predicted from what."""
    table = Table(title=title, title_justify="left")
    table.add_column("", style="bold")
    for window in figures:
        table.add_column(WINDOWS[window], overflow="fold")
    for key, name in FIGURES.items():
        if key != "unknown_tokens" or any(each[key] for each in figures.values()):
            table.add_row(name, *(number(each[key]) for each in figures.values()))
    table.add_row("predicted", *contexts.values())
    return table


def tasks_table(title: str, results: dict[str, Any]) -> Table:
    """The metrics of tasks, a row each, as lm-evaluation-harness gives them."""
    table = Table(title=title, title_justify="left")
    for name in ("task", "version", "examples", "few-shot", "metric", "better", "value", "±"):
        table.add_column(name, justify="right" if name in ("examples", "value", "±") else "left")
    for task, metrics in results["results"].items():
        count = results["n-samples"].get(task, {}).get("effective", metrics.get("sample_len", ""))
        version, shots = (str(results[key].get(task, "")) for key in ("versions", "n-shot"))
        row = [metrics.get("alias", task), version, str(count), shots]
        better = results["higher_is_better"].get(task) or {}
        for metric, filtered, value, error in metrics_of(metrics):
            name = metric if filtered == "none" else f"{metric} ({filtered})"
            table.add_row(*row, name, DIRECTIONS.get(better.get(metric), ""), number(value), number(error))
            row = [""] * 4
    return table


def metrics_of(values: dict[str, Any]) -> Iterator[tuple[str, str, Any, Any]]:
    """Each metric of a task: its name, its filter's, its value and the standard error, ``None`` without one."""
    for key, value in values.items():
        metric, comma, filtered = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            error = values.get(f"{metric}_stderr,{filtered}")
            yield metric, filtered, value, error if isinstance(error, int | float) else None


def number(value: Any) -> str:
    """Four decimals for a fraction, or five digits if it is large; thousands apart for a whole number."""
    if value is None:
        return ""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:,.4f}" if abs(value) < 1e6 else f"{value:.5g}"
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def add(path: Path, evaluation: dict[str, Any]) -> None:
    """Add an evaluation to those in the file, the newest last; the file is written whole or not at all.

    Raises:
        UserError: what is there is no file of evaluations.
        OSError: it cannot be written.
    """
    before = earlier(path)
    dump(path, {"evaluations": [*before, plain(evaluation)]})


def check_place(path: Path) -> None:
    """Check that evaluations can be added to a file, which need not exist, nor its folder.

    Raises:
        UserError: its folder cannot be written, or what is there is no file of evaluations.
    """
    earlier(path)
    places.check_place("out", path.parent)


def earlier(path: Path) -> list[Any]:
    """The evaluations in a file, none where there is no file.

    Raises:
        UserError: what is there is no file of evaluations.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except ValueError:
        content = None
    found = content.get("evaluations") if isinstance(content, dict) else None
    if not isinstance(found, list):
        raise UserError("out", path, "is there and holds no evaluations", "Move it away, or set out=<another folder>")
    return found


def plain(value: Any) -> Any:
    """A copy for JSON: ``None`` for numbers that are not finite, text for what JSON lacks, at any depth."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, int | float | str | None):
        return finite(value)
    return plain(value.item()) if hasattr(value, "item") else str(value)
