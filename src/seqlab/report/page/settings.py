"""The configurations and results of all runs, each different value once."""

import json
from collections.abc import Sequence
from typing import Any

from seqlab.config.overrides import flatten
from seqlab.report.runs import BySection, Run

RESULT = "result: "
ENCODER = json.JSONEncoder(default=str)

FACTS = (
    "status",
    "parameters",
    "steps",
    "tokens",
    "wall_seconds",
    "scan_backend",
    "precision",
    "device_name",
    "data_description",
    "data_fingerprint",
    "versions",
    "git_commit",
    "command",
)
"""Entries of the summary that may explain differences which the configuration does not."""


def settings_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Each setting and fact once, with its different values and the index of each run's (left out if all are equal)."""
    section_in_text = BySection(lambda name, section: in_text(flatten(section, name)))
    known: list[dict[str, str]] = []
    for run in runs:
        known.append({})
        for name, section in run.config.items():
            known[-1] |= section_in_text(name, section)
        known[-1] |= in_text({f"{RESULT}{key}": value for key, value in facts_of(run).items()})
    found = []
    keys = dict.fromkeys(key for one in known for key in one)
    for key in sorted(keys, key=lambda key: key.startswith(RESULT)):
        texts = [one.get(key) for one in known]
        index = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        entry = {"key": key, "values": list(index)}
        found.append(entry if len(index) == 1 else entry | {"of": [index[text] for text in texts]})
    return found


def facts_of(run: Run) -> dict[str, Any]:
    """A run's facts and losses, as a flat mapping."""
    facts = {name: run.summary[name] for name in FACTS if name in run.summary}
    losses = {f"{name} loss": run.summary[name].get("loss") for name in ("best_validation", "test")}
    return flatten(facts) | losses


def in_text(flat: dict[str, Any]) -> dict[str, str]:
    """Settings with their values as text."""
    return {key: as_text(value) for key, value in flat.items()}


def as_text(value: Any) -> str:
    """A setting nearly as YAML shows it."""
    return value if isinstance(value, str) else ENCODER.encode(value)
