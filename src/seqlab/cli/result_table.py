"""The table at the end of a run."""

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from seqlab.formatting import counted
from seqlab.runs.targets import changes_of, verdict

Summary = dict[str, Any]


def scaled(number: float, unit: str = "") -> str:
    """Three significant digits and a prefix: 1234567 -> 1.23 M."""
    prefixes = ["", "k", "M", "G", "T", "P", "E"]
    power = min(len(prefixes) - 1, int(math.log10(abs(number)) // 3)) if abs(number) >= 1 else 0
    return f"{number / 1000**power:.4g} {prefixes[power]}{unit}".rstrip()


def show(console: Console, summary: Summary) -> None:
    """Print a run's results, and below them its folder in a line that is not wrapped, to be copied."""
    console.print(table(summary))
    console.print(f"Run folder: {summary['folder']}", soft_wrap=True, markup=False, highlight=False)


def table(summary: Summary) -> Table:
    """The results of a run, one row each."""
    rows = Table(title=f"{summary['model']} on {summary['data']}", show_header=False, title_justify="left")
    rows.add_column(style="bold")
    rows.add_column(overflow="fold")
    reason = summary["stop_reason"]
    facts = {
        "model": summary["model"],
        "parameters": parameters(summary),
        "training FLOPs": scaled(summary["flops"], "FLOP"),
        "steps": f"{summary['steps']:,}" + (f" (stopped early: {reason})" if reason else ""),
        "seen": f"{counted(summary['tokens'], 'token')} in {counted(summary['samples'], 'sample')}",
        "wall time": wall_time(summary),
        "throughput": f"{scaled(summary['tokens_per_second'])} tokens/s, {waiting(summary)}",
        "scan backend": summary["scan_backend"] or "none (no selective scan)",
        **({"experts backend": summary["experts_backend"]} if "experts_backend" in summary else {}),
        "device": f"{summary['device_name']}, {summary['precision']}",
    }
    if summary["skipped_steps"]:
        facts["skipped steps"] = f"{summary['skipped_steps']:,} (loss or gradient not finite, or past fp16's range)"
    facts |= left_out(summary)
    if load := summary.get("expert_load"):
        busiest, dead = load["largest_share"], load["dead"]
        facts["expert load"] = (
            f"at most {busiest:.1%} of a layer's visits to one expert, {counted(dead, 'expert')} without any"
        )
    for name, value in facts.items():
        rows.add_row(name, value)
    rows.add_section()
    for name, value in results(summary):
        rows.add_row(Text(name), Text(value))
    if summary["targets"]:
        rows.add_section()
    for target in summary["targets"]:
        rows.add_row("target", Text(verdict(target)))
    return rows


def left_out(summary: Summary) -> dict[str, str]:
    """Rows for the evaluation that the trainer's settings left out."""
    facts = {}
    if (most := summary.get("evaluation_batches")) is not None:
        facts["evaluation"] = f"at most {most:,} batches of validation and test (trainer.evaluation_batches)"
    if names := summary.get("further_tests_left_out"):
        facts["further tests"] = f"left out (trainer.further_tests=false): {', '.join(names)}"
    return facts


def parameters(summary: Summary) -> str:
    """The number of all parameters, of those that are trained, that a token uses, and outside lookup tables."""
    total = summary["parameters"]
    parts = {word: summary.get(f"{word}_parameters", total) for word in ("trainable", "active")}
    said = "".join(f"{number:,} {word}, " for word, number in parts.items() if number != total)
    return f"{total:,} ({said}{summary['parameters_without_embeddings']:,} without embeddings)"


def wall_time(summary: Summary) -> str:
    """The whole, of which the training steps, and after it the further tests."""
    further = f", then {seconds:.1f} s in further tests" if (seconds := summary["further_seconds"]) else ""
    return f"{summary['wall_seconds']:.1f} s ({summary['seconds']:.1f} s in training steps){further}"


def waiting(summary: Summary) -> str:
    """The share of training time spent waiting for data."""
    share = summary["data_wait_share"]
    return "no training step" if share is None else f"{100 * share:.1f} % of the time waiting for data"


def results(summary: Summary) -> Iterator[tuple[str, str]]:
    """Metrics of test and best validation, then a line for each kind of difficulty and of further tests."""
    best, test = summary["best_validation"], summary["test"]
    for name, value in test.items():
        yield name, f"{value:.4f} test   {best[name]:.4f} best validation (step {summary['best_step']:,})"
    for name, values in summary["test_slices"].items():
        if len(values) > 1:
            yield f"accuracy by {name}", in_one_line({value: row["accuracy"] for value, row in values.items()})
    metric = "accuracy" if "accuracy" in test else "loss"
    further: dict[str, dict[str, float | None]] = defaultdict(dict)
    for name, row in summary["further_tests"].items():  # length=512
        key, value = changes_of(name)
        further[key][value] = row.get(metric)
    for key, values in further.items():
        yield f"{metric} at {key}", in_one_line(values)


def in_one_line(values: dict[str, float | None], most: int = 24) -> str:
    """``8: 1.000  16: 0.998``; at most ``most`` of them, evenly spaced, with the last."""
    names = list(values)
    step = -(-len(names) // most)
    chosen = names[::-1][::step][::-1]
    return "  ".join(f"{name}: " + ("–" if (v := values[name]) is None else f"{v:.4f}") for name in chosen)  # noqa: RUF001
