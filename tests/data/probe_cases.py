"""Every probe in a small size, and with mixed difficulty. A new probe is one entry in ``CASES``; all tests take it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hydra.utils import get_object

from data.probe_solvers import Answers, solve_copying, solve_induction_heads, solve_mqar, solve_recall
from seqlab.data.probes.base import Probe
from support import compose_config, options

FRESH = {"n_train": None, "epoch_size": 40, "n_validation": 9, "n_test": 7, "seed": 0}
FIXED = FRESH | {"n_train": 40}


def shipped() -> dict[str, type[Probe]]:
    """The probes in conf/data, found by glob."""
    targets = {name: get_object(compose_config(f"data={name}").data["_target_"]) for name in options("data")}
    return {name: target for name, target in targets.items() if issubclass(target, Probe)}


class Case(NamedTuple):
    """What tests need of a probe.

    settings: a small size.
    digest: of the bytes at that size: that of the first run of the tests, which holds the data to it from then on.
    example: settings of the example in the class's docstring, for a probe with a solver.
    solver: finds the answers in an example's inputs, and the place that each was read from. Only a probe whose answers
        cannot be found from the inputs alone has none (compression, memorization), and is checked by tests of its own.
    """

    settings: dict[str, Any]
    digest: str
    example: dict[str, Any] | None = None
    solver: Callable[[list[int], Any], Answers] | None = None


CASES = {
    "copying": Case(
        {"length": 14, "vocab_size": 7, "data_tokens": 4},
        "daae08e3dd3f",
        {"length": 10, "data_tokens": 3, "vocab_size": 6},
        solve_copying,
    ),
    "selective_copying": Case(
        {"length": 30, "vocab_size": 7, "data_tokens": 4},
        "1158e2dc0958",
        {"length": 10, "data_tokens": 3, "vocab_size": 6},
        solve_copying,
    ),
    "induction_heads": Case(
        {"length": 12, "vocab_size": 6}, "df0206ae5e89", {"length": 9, "vocab_size": 6}, solve_induction_heads
    ),
    "mqar": Case(
        {"length": 30, "pairs": 4, "vocab_size": 21, "alpha": 0.1},
        "26f8c2c9d3b1",
        {"length": 14, "pairs": 3, "vocab_size": 13, "alpha": 0.01},
        solve_mqar,
    ),
    "fuzzy_recall": Case(
        {"length": 47, "pairs": 4, "vocab_size": 8, "noise_vocab_size": 2, "key_tokens": 2, "value_tokens": 3},
        "db4c51ecd4d8",
        {"length": 16, "pairs": 2, "vocab_size": 6, "noise_vocab_size": 1, "key_tokens": 2, "value_tokens": 2},
        solve_recall,
    ),
    "noisy_recall": Case(
        {"length": 33, "pairs": 4, "vocab_size": 12, "noise_vocab_size": 5},
        "8501ad4a4bb1",
        {"length": 14, "pairs": 2, "vocab_size": 6, "noise_vocab_size": 3},
        solve_recall,
    ),
    "compression": Case({"length": 12, "vocab_size": 7, "data_tokens": 6}, "163d3e81c3b7"),
    "memorization": Case({"length": 12, "vocab_size": 21}, "e64de90bffe0"),
}
PUBLISHED = {"mad_recall", "mad_fuzzy_recall"}
"""Probes that draw what others have published, whose distributions test_probes_published.py compares."""

PROBES = shipped()
SMALL: dict[type[Probe], dict[str, Any]] = {PROBES[name]: case.settings for name, case in CASES.items()}
TASKS = [pytest.param(task, settings, id=task.name) for task, settings in SMALL.items()]
RECALLED = [p for p in TASKS if CASES[p.id].solver]

MIXED = [
    pytest.param(PROBES[name], CASES[name].settings | mixture, id=name)
    for name, mixture in {
        "copying": {"mixture": [{"data_tokens": 1}, {"data_tokens": 7}, {"data_tokens": 3}]},
        "mqar": {"mixture": [{"pairs": 1}, {"pairs": 7}], "fillers": 3},
        "noisy_recall": {"mixture": [{"pairs": 2}, {"pairs": 3}, {"pairs": 2}]},
        "fuzzy_recall": {
            "mixture": [{"key_tokens": 1, "pairs": 3}, {"key_tokens": 2}, {"key_tokens": 3, "value_tokens": 1}]
        },
    }.items()
]


def many(data: Probe, count: int) -> Any:
    return next(data.evaluation_batches("test", count))


def solve(inputs: list[int], data: Probe) -> Answers:
    """The answers of one example of a task whose answers stand in its sequence."""
    return CASES[data.name].solver(inputs, data)


def check_solved(batch: Any, data: Probe) -> None:
    """Every target follows from the inputs alone, and nothing else is a target."""
    inputs, targets = (part.tolist() for part in batch)
    if data.name == "compression":
        for row, asked in zip(inputs, targets, strict=True):
            assert row[-1] == data.vocab_size - 1
            assert asked[-1] == [token for token in row[:-1] if token != 0]
            assert all(token == -100 for answers in asked[:-1] for token in answers)
    elif data.name == "memorization":
        for row, asked in zip(inputs, targets, strict=True):
            assert row[1::2] == [data.vocab_size - 1] * len(row[1::2])
            assert asked[::2] == [-100] * len(asked[::2])
            assert max(row[::2]) < data.n_facts <= min(asked[1::2])
    else:
        for row, asked in zip(inputs, targets, strict=True):
            expected = {t: answer for t, (answer, _) in solve(row, data).items()}
            assert {t: token for t, token in enumerate(asked) if token != -100} == expected
