"""Reading the folders of runs; those that cannot be compared are listed with the reason."""

import json
import math
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, FiniteFloat, ValidationError, create_model

from seqlab.config.renamed import with_present_names
from seqlab.report.curves import Damaged, read_curves
from seqlab.report.find_runs import find_runs

THREADS = 4
LARGE = 2**28
"""Bytes of metrics from which several threads read. Long files are read and split while another is parsed; short files
are only parsed, which holds Python's global lock."""

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

SECTION = re.compile(rb"^(?=[A-Za-z_]\w*:[ \n])", re.MULTILINE)
"""Where a top-level key begins, as ``yaml.safe_dump`` writes it."""

SEVERAL_DOCUMENTS = re.compile(rb"^(?:---|\.\.\.|%)", re.MULTILINE)


@dataclass(frozen=True)
class Run:
    """A completed run.

    Args:
        folder: its path.
        config: ``config.yaml`` as plain containers. Runs share its sections, so it must not be changed.
        summary: ``summary.json``.
        curves: by split and column, float64 arrays (records,) in the order of the steps; see ``seqlab.report.curves``.
    """

    folder: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    curves: dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Skipped:
    """A folder that is left out, and why; with the configuration and summary of a run that did not complete."""

    folder: Path
    why: str
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)


class Foreign(ValueError):
    """Files of another project that happen to have a run's file names."""


def read(paths: Sequence[Path], advance: Callable[[int, int], None] | None = None) -> tuple[list[Run], list[Skipped]]:
    """Every completed run below the paths, in the order of their folders, and what was passed over.

    Args:
        paths: folders of runs, sweeps, folders above them, or globs of any of these.
        advance: called with (folders read, folders in all) after each folder.

    Raises:
        UserError: a path does not exist or matches nothing.
    """
    folders, passed_over = find_runs(paths)
    results: list[Run | Skipped] = []
    with ThreadPoolExecutor(THREADS) as pool:
        map_each = pool.map if sum(map(metrics_size, folders)) >= LARGE else map
        for result in map_each(read_folder, folders):
            results.append(result)
            if advance is not None:
                advance(len(results), len(folders))
    runs = [result for result in results if isinstance(result, Run)]
    skipped = [result for result in results if isinstance(result, Skipped)]
    return runs, skipped + [Skipped(folder, why) for folder, why in passed_over]


def metrics_size(folder: Path) -> int:
    """Bytes of a run's metrics."""
    try:
        return (folder / "metrics.jsonl").stat().st_size
    except OSError:
        return 0


def read_folder(folder: Path) -> Run | Skipped:
    """A run, or why it cannot be compared. Never raises, whatever the folder holds."""
    summary: dict[str, Any] = {}
    config: dict[str, Any] = {}
    try:
        summary = read_summary(folder)
        check(Begun, summary)
        if summary["status"] == "failed" and not (folder / "config.yaml").exists():  # before it began
            return Skipped(folder, unfinished(summary), config, summary)
        config = read_config(folder)
        if summary["status"] != "completed":
            return Skipped(folder, unfinished(summary), config, summary)
        check(Completed, summary)
        curves = parse_file(folder, "metrics.jsonl", read_curves)
        check_curves(curves, summary)
    except Foreign as error:
        return Skipped(folder, str(error))
    except Damaged as error:
        return Skipped(folder, f"damaged: {error}", config, summary)
    return Run(folder, config, summary, curves)


def parse_file(folder: Path, name: str, parse: Callable[[bytes], Any]) -> Any:
    """A file of a run, parsed.

    Raises:
        Damaged: it is missing, cannot be read or cannot be parsed.
    """
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


def parse_json(text: str | bytes) -> Any:
    """JSON, with ``None`` for numbers that are not finite."""

    def number(literal: str) -> float | None:
        return value if math.isfinite(value := float(literal)) else None

    return json.loads(text, parse_constant=lambda _: None, parse_float=number)


def read_summary(folder: Path) -> dict[str, Any]:
    """``summary.json`` as a mapping.

    Raises:
        Foreign: the folder is none of a run.
        Damaged: the file cannot be used.
    """
    if not (folder / "summary.json").exists() and not (folder / "metrics.jsonl").exists():
        raise Foreign("no summary.json: a job that did not begin, or another project's")
    summary = parse_file(folder, "summary.json", parse_json)
    if not isinstance(summary, dict):
        raise Damaged("summary.json is no mapping")
    if not {"status", "model", "data", "seed"} & set(summary):
        raise Foreign("another project's: summary.json has no status, model, data or seed")
    return summary


def read_config(folder: Path) -> dict[str, Any]:
    """``config.yaml`` as a mapping, with the sections that a run is built from.

    Raises:
        Damaged: the file cannot be used, or lacks such a section.
    """
    config = parse_file(folder, "config.yaml", parse_config)
    if not isinstance(config, dict):
        raise Damaged("config.yaml is no mapping")
    for name in ("data", "model", "trainer"):
        if not isinstance(config.get(name), dict):
            raise Damaged(f"config.yaml: {name} is no mapping")
    return config


def parse_config(content: bytes) -> Any:
    """A configuration with the present names of its parts.

    Most sections are equal in many runs' files, so each different one is parsed once. Sections that two files share are
    the same object in both.

    Raises:
        yaml.YAMLError: it cannot be parsed.
    """
    before, *sections = SECTION.split(content)
    if sections and not before and not SEVERAL_DOCUMENTS.search(content):
        with suppress(yaml.YAMLError, ValueError):  # a section may need the whole file, such as for its anchors
            return {name: node for section in sections for name, node in parse_section(section).items()}
    return with_present_names(yaml.load(content, LOADER))


@lru_cache(maxsize=4096)
def parse_section(content: bytes) -> dict[str, Any]:
    """A top-level key with everything beneath it."""
    return with_present_names(yaml.load(content, LOADER))


Metrics = dict[str, float | None]


def measured(row: Any) -> Any:
    """The metrics of a further test; empty if it could not be run and has only an ``error``."""
    return {} if isinstance(row, dict) and set(row) == {"error"} else row


MaybeMeasured = Annotated[Metrics, BeforeValidator(measured)]


class Strict(BaseModel):
    """A model without conversions: a number in quotes is refused."""

    model_config = ConfigDict(strict=True)


class Begun(Strict):
    """The entries of ``summary.json`` that every run has."""

    status: str
    model: str
    data: str
    seed: int


class MetricsWithLoss(Strict, extra="allow"):
    """Metrics by name, among them a finite loss."""

    __pydantic_extra__: Metrics
    loss: FiniteFloat


class RuleFields(Strict, extra="forbid"):
    """The rule of a target, as in ``runs/targets.py``."""

    at_least: float | None = None
    at_most: float | None = None
    published: float | None = None
    models: list[str] | None = None


class JudgedTarget(Strict):
    """A target with the run's value and the result."""

    metric: str
    rule: RuleFields
    value: float | None
    reached: bool | None


NEEDED = ("parameters", "parameters_without_embeddings", "tokens", "flops", "wall_seconds", "steps")
NUMBERS = (
    *("active_parameters", "trainable_parameters", "tokens_per_second", "peak_memory_bytes", "state_bytes"),
    *("further_seconds", "chance"),
)
TEXTS = ("scan_backend", "precision", "device", "device_name", "data_fingerprint", "data_description")

Completed = create_model(
    "Completed",
    __base__=Strict,
    **dict.fromkeys(NEEDED, (float, ...)),
    **dict.fromkeys(("test", "best_validation"), (MetricsWithLoss, ...)),
    **dict.fromkeys(NUMBERS, (float | None, None)),
    **dict.fromkeys(TEXTS, (str | None, None)),
    test_slices=(dict[str, dict[str, MaybeMeasured]] | None, None),
    further_tests=(dict[str, MaybeMeasured] | None, None),
    test_loss_by_position=(list[float | None] | None, None),
    targets=(list[JudgedTarget] | None, None),
)
"""The entries that a comparison needs of a completed run, and the types of those that only some runs have."""


def check(model: type[BaseModel], summary: dict[str, Any]) -> None:
    """Validate a summary.

    Raises:
        Damaged: an entry is missing or has a wrong type; names the first one.
    """
    try:
        model.model_validate(summary)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            raise Damaged(f"summary.json: {name} is missing") from None
        rule = first["msg"].removeprefix("Input should be ")
        raise Damaged(f"summary.json: {name} is {json.dumps(first['input'])[:40]}, not {rule}") from None


def check_curves(curves: dict[str, dict[str, np.ndarray]], summary: dict[str, Any]) -> None:
    """Validate a completed run's curves, arrays (records,) by split and column.

    Raises:
        Damaged: there is no finite validation loss, or the metrics stop before the run did.
    """
    if "validation" not in curves or "loss" not in curves["validation"]:
        raise Damaged("metrics.jsonl: there is no validation loss")
    if not np.isfinite(curves["validation"]["loss"]).any():
        raise Damaged("metrics.jsonl: no validation loss is a number")
    last = curves["validation"]["step"][-1]
    if last < summary["steps"]:
        raise Damaged(f"metrics.jsonl ends at step {last:.0f} of {summary['steps']}")


def unfinished(summary: dict[str, Any]) -> str:
    """The status of a run that did not complete, with the first line of its error."""
    if summary["status"] == "running":
        return "still running, or killed"
    error = str(summary.get("error") or "").strip().splitlines()
    return f"{summary['status']}: {error[0]}" if error else summary["status"]


class BySection:
    """A function of a section, computed once however many configurations share the section.

    Args:
        work: called with the section's key and value.
    """

    def __init__(self, work: Callable[[str, Any], Any]):
        self.work = work
        self.known: dict[tuple[str, int], tuple[Any, Any]] = {}

    def __call__(self, key: str, section: Any) -> Any:
        """The result for a section."""
        place = key, id(section)
        if place not in self.known:
            self.known[place] = section, self.work(key, section)  # the section too: its id must not be reused
        return self.known[place][1]
