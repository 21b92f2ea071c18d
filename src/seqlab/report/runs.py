"""Runs read back from the folders that they left; whatever cannot be compared is listed with its reason."""

import json
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from seqlab.report import configs
from seqlab.report.curves import Damaged, is_number, read_curves
from seqlab.report.folders import find
from seqlab.runs.targets import are_judged

LARGE = 2**28
"""Bytes of metrics from which several processes read sooner than one. Each takes a second to begin, and what it read
has to be sent."""


@dataclass(frozen=True)
class Run:
    """A completed run.

    Args:
        folder: where it is.
        config: ``config.yaml`` as plain containers.
        summary: ``summary.json``.
        curves: by split and column, float64 arrays in the order of the steps; see ``seqlab.report.curves``.
    """

    folder: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    curves: dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Skipped:
    """A folder that takes no part, and why; what is known of a run that did not complete."""

    folder: Path
    why: str
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)


def read(paths: Sequence[Path], advance: Callable[[int, int], None] | None = None) -> tuple[list[Run], list[Skipped]]:
    """Every completed run below the paths, in the order of their folders, and what was passed over.

    Args:
        paths: folders of runs, sweeps, folders above them, or globs of any of these.
        advance: told (folders read, folders in all) as the reading goes on.

    Raises:
        UserError: nothing is there by the name of a path.
    """
    folders, passed_over = find(paths)
    results: list[Run | Skipped] = []
    for result in read_all(folders):
        results.append(result)
        if advance is not None:
            advance(len(results), len(folders))
    runs = [result for result in results if isinstance(result, Run)]
    skipped = [result for result in results if isinstance(result, Skipped)]
    return runs, skipped + [Skipped(folder, why) for folder, why in passed_over]


def processes() -> int:
    """How many processes may read at once."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, 8)


def read_all(folders: Sequence[Path]) -> Iterator[Run | Skipped]:
    """``read_folder`` of each, in order; in several processes where there is much to read."""
    workers = processes()
    if workers == 1 or sum(map(metrics_size, folders)) < LARGE:
        yield from map(read_folder, folders)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=follow) as pool:
        yield from pool.map(read_folder, folders, chunksize=8)


def follow() -> None:
    """In a process that reads for another one: only that one answers to Ctrl-C, and this one ends when that one has."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, name="parent's end", daemon=True).start()


def end_with_parent() -> None:
    """Killed, it could not end its workers, and these would wait for more for good."""
    parent_process().join()
    os._exit(1)


def metrics_size(folder: Path) -> int:
    try:
        return (folder / "metrics.jsonl").stat().st_size
    except OSError:
        return 0


def read_folder(folder: Path) -> Run | Skipped:
    """One run, or why it is none that can be compared. Never raises for what the folder holds."""
    summary: dict[str, Any] = {}
    config: dict[str, Any] = {}
    try:
        summary = read_summary(folder)
        check_summary(summary)
        if summary["status"] == "failed" and not (folder / "config.yaml").exists():  # before it began
            return Skipped(folder, unfinished(summary), config, summary)
        config = read_config(folder)
        if summary["status"] != "completed":
            return Skipped(folder, unfinished(summary), config, summary)
        check_results(summary)
        curves = part(folder, "metrics.jsonl", read_curves)
        check_curves(curves, summary)
    except Foreign as error:
        return Skipped(folder, str(error))
    except Damaged as error:
        return Skipped(folder, f"damaged: {error}", config, summary)
    return Run(folder, config, summary, curves)


class Foreign(ValueError):
    """Files of another project, by the names of ours."""


def part(folder: Path, name: str, parse: Callable[[bytes], Any]) -> Any:
    """A file of a run, parsed; every way in which it can be unusable becomes ``Damaged``."""
    try:
        return parse((folder / name).read_bytes())
    except FileNotFoundError:
        raise Damaged(f"there is no {name}") from None
    except OSError as error:
        raise Damaged(f"{name} cannot be read ({error.strerror})") from None
    except Damaged as error:
        raise Damaged(f"{name}: {error}") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise Damaged(f"{name} cannot be parsed ({str(error).splitlines()[0]})") from None


def loads(text: str | bytes) -> Any:
    """JSON in which a number that is not finite is nothing."""

    def number(literal: str) -> float | None:
        return value if math.isfinite(value := float(literal)) else None

    return json.loads(text, parse_constant=lambda _: None, parse_float=number)


def read_summary(folder: Path) -> dict[str, Any]:
    if not (folder / "summary.json").exists() and not (folder / "metrics.jsonl").exists():
        raise Foreign("no summary.json: a job that did not begin, or another project's")
    summary = part(folder, "summary.json", loads)
    if not isinstance(summary, dict):
        raise Damaged("summary.json is no mapping")
    if not {"status", "model", "data", "seed"} & set(summary):
        raise Foreign("another project's: summary.json has no status, model, data or seed")
    return summary


def read_config(folder: Path) -> dict[str, Any]:
    config = part(folder, "config.yaml", configs.load)
    if not isinstance(config, dict):
        raise Damaged("config.yaml is no mapping")
    for name in ("data", "model", "trainer"):
        if not isinstance(config.get(name), dict):
            raise Damaged(f"config.yaml: {name} is no mapping")
    return config


TEXT = ("status", "model", "data")
NUMBERS = ("parameters", "parameters_without_embeddings", "tokens", "flops", "wall_seconds", "steps")
OPTIONAL_TEXT = ("scan_backend", "precision", "device", "device_name", "data_fingerprint", "data_description")
OPTIONAL_NUMBERS = (
    *("active_parameters", "tokens_per_second", "peak_memory_bytes", "state_bytes"),
    *("seconds", "further_seconds", "length", "chance"),
)


def check_summary(summary: dict[str, Any]) -> None:
    """Refuse a summary that does not say whose it is."""
    for name in TEXT:
        demand(summary, name, lambda value: isinstance(value, str), "text")
    demand(summary, "seed", lambda value: isinstance(value, int) and not isinstance(value, bool), "a whole number")


def check_results(summary: dict[str, Any]) -> None:
    """Refuse a completed run's summary without what every comparison needs."""
    for name in NUMBERS:
        demand(summary, name, is_number, "a number")
    for name in OPTIONAL_NUMBERS:
        demand(summary, name, lambda value: value is None or is_number(value), "a number")
    for name in OPTIONAL_TEXT:
        demand(summary, name, lambda value: value is None or isinstance(value, str), "text")
    for name in ("test", "best_validation"):
        demand(summary, name, is_metrics, "a mapping of numbers")
        if not is_number(summary[name].get("loss")) or not np.isfinite(summary[name]["loss"]):
            raise Damaged(f"summary.json: the {name.replace('_', ' ')} loss is not a number")
    demand(summary, "test_slices", lambda value: value is None or is_table(value, 2), "a table of numbers")
    demand(summary, "further_tests", lambda value: value is None or is_table(value, 1), "a table of numbers")
    demand(summary, "targets", lambda value: value is None or are_judged(value), "a list of judged targets")
    positions = summary.get("test_loss_by_position")
    if positions is not None and not (isinstance(positions, list) and is_metrics(dict(enumerate(positions)))):
        raise Damaged("summary.json: test_loss_by_position is no list of numbers")


def is_metrics(value: Any) -> bool:
    return isinstance(value, dict) and all(item is None or is_number(item) for item in value.values())


def is_table(value: Any, depth: int) -> bool:
    """Whether mappings of mappings hold metrics at a depth, or why there are none."""
    if not isinstance(value, dict):
        return False
    if depth:
        return all(is_table(below, depth - 1) for below in value.values())
    return is_metrics(value) or set(value) == {"error"}


def demand(summary: dict[str, Any], name: str, fits: Callable[[Any], bool], kind: str) -> None:
    if not fits(summary.get(name)):
        raise Damaged(f"summary.json: {name} is {json.dumps(summary.get(name))[:40]}, not {kind}")


def check_curves(curves: dict[str, dict[str, np.ndarray]], summary: dict[str, Any]) -> None:
    """Refuse a completed run's metrics that stop before the run did."""
    if "validation" not in curves or "loss" not in curves["validation"]:
        raise Damaged("metrics.jsonl: there is no validation loss")
    if not np.isfinite(curves["validation"]["loss"]).any():
        raise Damaged("metrics.jsonl: no validation loss is a number")
    last = curves["validation"]["step"][-1]
    if last < summary["steps"]:
        raise Damaged(f"metrics.jsonl ends at step {last:.0f} of {summary['steps']}")


def unfinished(summary: dict[str, Any]) -> str:
    """What became of a run that did not complete."""
    if summary["status"] == "running":
        return "still running, or killed"
    error = str(summary.get("error") or "").strip().splitlines()
    return f"{summary['status']}: {error[0]}" if error else summary["status"]
