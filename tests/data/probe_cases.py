"""Every probe in a small size, solved from its inputs alone. A new probe is an entry in ``CASES``; all tests take it.

A solver goes position by position and knows nothing of how its input was made. It maps one example's inputs to
{answer's position: (answer, position of what it was read from)}.
"""

from collections.abc import Callable
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
import pytest
from hydra.utils import get_object

from seqlab.data.probes.base import Probe
from support import compose_config, options

FRESH = {"n_train": None, "epoch_size": 40, "n_validation": 9, "n_test": 7, "seed": 0}
FIXED = FRESH | {"n_train": 40}

Answers = dict[int, tuple[int, int]]


def solve_copying(inputs: list[int], data: Any) -> Answers:
    marker = data.vocab_size - 1
    stored = [(token, t) for t, token in enumerate(inputs) if token not in (0, marker)]
    markers = [t for t, token in enumerate(inputs) if token == marker]
    return dict(zip(markers, stored, strict=True))


def solve_induction_heads(inputs: list[int], data: Any) -> Answers:
    special = data.vocab_size - 1
    place = inputs.index(special)
    assert inputs.count(special) == 2
    assert inputs[-1] == special
    return {len(inputs) - 1: (inputs[place + 1], place)}


def solve_mqar(inputs: list[int], data: Any) -> Answers:
    """A key (of k tokens, each of its own range) with a value after it is a pair, one without a query."""
    k, n_keys = data.key_tokens, data.n_keys
    place = [
        (token - data.fillers) // n_keys if token >= data.fillers else -1 for token in inputs
    ]  # k or more: a value
    stored, answers = {}, {}
    for t in range(k - 1, len(inputs)):
        key = tuple(inputs[t - k + 1 : t + 1])
        if place[t - k + 1 : t + 1] != [*range(k)]:
            continue
        if t + 1 < len(inputs) and place[t + 1] >= k:
            assert not answers, "a pair after a query"
            assert key not in stored or data.name == "forgetting_mqar"
            stored[key] = inputs[t + 1], t
        else:
            assert key not in {tuple(inputs[asked - k + 1 : asked + 1]) for asked in answers}
            answers[t] = stored[key]
    assert len(answers) == len(stored)
    return answers


def solve_needle(inputs: list[int], data: Any) -> Answers:
    """After the marker each key and value asks for the key's next value."""
    end = inputs.index(data.vocab_size - 1)
    needles = {}
    for t, token in enumerate(inputs[:end]):
        if data.fillers <= token < data.fillers + data.n_keys:
            needles.setdefault(token, []).append((inputs[t + 1], t))
    answers, left = {}, []
    for t in range(end + 1, len(inputs)):
        if inputs[t] < data.fillers + data.n_keys:
            assert not left, "a query before the last one was answered"
            left = list(needles.pop(inputs[t]))
        answers[t] = left.pop(0)
    assert not left
    return answers


def solve_recall(inputs: list[int], data: Any) -> Answers:
    """Runs of key tokens, each followed by a run of value tokens; a run that came before asks for what followed it."""
    kinds = "".join("kvn"[(token >= data.n_keys) + (token >= data.vocab_size)] for token in inputs)
    stored, answers, t = {}, {}, 0
    while t < len(inputs):
        if kinds[t] == "n":
            t += 1
            continue
        begin = t
        while t < len(inputs) and kinds[t] == "k":
            t += 1
        middle = t
        while t < len(inputs) and kinds[t] == "v":
            t += 1
        key = tuple(inputs[begin:middle])
        assert key
        assert t > middle
        if key in stored:
            value, source = stored.pop(key)
            answers |= {middle - 1 + i: (token, middle - 1 + i - begin + source) for i, token in enumerate(value)}
        else:
            assert not answers, "a pair after a query"
            stored[key] = inputs[middle:t], begin
    assert not stored
    return answers


def check_stacked_mqar(inputs: list[list[float]], targets: list[int], data: Any) -> None:
    """Every value that a key stood beside is the vector of the target's number."""
    width, stored = data.d_vector, {}
    for features, target in zip(inputs, targets, strict=True):
        key, value = tuple(features[:width]), features[width:]
        if any(value):
            stored[key] = value
        assert (target != -100) == (any(key) and not any(value))
        if target != -100:
            assert stored.pop(key) == data.vectors[data.n_keys + 2 + target].tolist()
    assert not stored


def check_compression(inputs: list[int], targets: list[list[int]], data: Any) -> None:
    assert inputs[-1] == data.vocab_size - 1
    assert targets[-1] == [token for token in inputs[:-1] if token != 0]
    assert all(token == -100 for answers in targets[:-1] for token in answers)


def check_memorization(inputs: list[int], targets: list[int], data: Any) -> None:
    assert inputs[1::2] == [data.vocab_size - 1] * len(inputs[1::2])
    assert targets[::2] == [-100] * len(targets[::2])
    assert max(inputs[::2]) < data.n_facts <= min(targets[1::2])


EVEN = [p for p in permutations(range(5)) if np.linalg.det(np.eye(5)[list(p)]) > 0]
GROUPS = {"parity": [(0, 1), (1, 0)], "s3": [*permutations(range(3))], "s5": [*permutations(range(5))], "a5": EVEN}
"""Permutations by token; parity is those of two points."""


def n_trained(inputs: list[int], data: Any) -> int:
    """The positions at the start of a longer test, which are not asked for."""
    return data.length if len(inputs) > data.length else 0


def check_word_problem(inputs: list[int], targets: list[int], data: Any) -> None:
    group = GROUPS[data.name]
    images = group[0]
    for t, token in enumerate(inputs):
        images = tuple(group[token][image] for image in images)
        assert targets[t] == (-100 if t < n_trained(inputs, data) else group.index(images))


def check_modular_arithmetic(inputs: list[int], targets: list[int], data: Any) -> None:
    """Each prefix that ends with a number, computed by Python."""
    symbols = [str(token) if token < data.modulus else "+-*"[token - data.modulus] for token in inputs]
    for t, target in enumerate(targets):
        asked = t % 2 == 0 and t >= n_trained(inputs, data)
        assert target == (eval("".join(symbols[: t + 1])) % data.modulus if asked else -100)


class Case(NamedTuple):
    """What tests need of a probe.

    settings: a small size.
    digest: of the bytes at that size: that of the first run of the tests, which holds the data to it from then on.
    example: settings of the example in the class's docstring, for a probe with a solver.
    solver: finds the answers in an example's inputs, and the place that each was read from.
    check: holds the targets of an example to its inputs, for a probe whose answers are not single tokens of the input
        (compression, memorization, state tracking), in place of ``solver``.
    uneven: not all labels are equally likely; the likeliest one is at chance.
    mixed: settings with difficulties that take turns, for a probe that is tested with a mixture too.
    """

    settings: dict[str, Any]
    digest: str
    example: dict[str, Any] | None = None
    solver: Callable[[list[int], Any], Answers] | None = None
    check: Callable[[list[int], list, Any], None] | None = None
    uneven: bool = False
    mixed: dict[str, Any] | None = None


CASES = {
    "copying": Case(
        {"length": 14, "vocab_size": 7, "data_tokens": 4},
        "daae08e3dd3f",
        {"length": 10, "data_tokens": 3, "vocab_size": 6},
        solve_copying,
        mixed={"mixture": [{"data_tokens": 1}, {"data_tokens": 7}, {"data_tokens": 3}]},
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
        mixed={"mixture": [{"pairs": 1}, {"pairs": 7}], "fillers": 3},
    ),
    "compositional_mqar": Case(
        {"length": 60, "pairs": 9, "vocab_size": 33, "alpha": 0.1},
        "ead5f3f613f0",
        {"length": 24, "pairs": 4, "vocab_size": 16, "alpha": 0.01},
        solve_mqar,
        mixed={"mixture": [{"pairs": 1}, {"pairs": 4}], "fillers": 3},
    ),
    "forgetting_mqar": Case(
        {"length": 37, "pairs": 5, "updates": 3, "vocab_size": 21, "alpha": 0.1},
        "4bd9ce5e0750",
        {"length": 18, "pairs": 3, "updates": 2, "vocab_size": 13, "alpha": 0.01},
        solve_mqar,
        mixed={"mixture": [{"pairs": 1, "updates": 1}, {"pairs": 6}], "fillers": 3},
    ),
    "stacked_mqar": Case(
        {"length": 17, "pairs": 4, "passes": 2, "vocab_size": 21, "d_vector": 4},
        "57b9725a3e24",
        check=check_stacked_mqar,
    ),
    "needle": Case(
        {"length": 50, "keys": 4, "values": 2, "queries": 3, "vocab_size": 24, "fillers": 5},
        "45f32ffb8b5a",
        {"length": 15, "keys": 2, "values": 2, "vocab_size": 12, "fillers": 2},
        solve_needle,
        mixed={"mixture": [{"values": 1}, {"keys": 1, "queries": 1, "values": 3}, {"queries": 1}]},
    ),
    "fuzzy_recall": Case(
        {"length": 47, "pairs": 4, "vocab_size": 8, "noise_vocab_size": 2, "key_tokens": 2, "value_tokens": 3},
        "db4c51ecd4d8",
        {"length": 16, "pairs": 2, "vocab_size": 6, "noise_vocab_size": 1, "key_tokens": 2, "value_tokens": 2},
        solve_recall,
        mixed={"mixture": [{"key_tokens": 1, "pairs": 3}, {"key_tokens": 2}, {"key_tokens": 3, "value_tokens": 1}]},
    ),
    "noisy_recall": Case(
        {"length": 33, "pairs": 4, "vocab_size": 12, "noise_vocab_size": 5},
        "8501ad4a4bb1",
        {"length": 14, "pairs": 2, "vocab_size": 6, "noise_vocab_size": 3},
        solve_recall,
        mixed={"mixture": [{"pairs": 2}, {"pairs": 3}, {"pairs": 2}]},
    ),
    "compression": Case({"length": 12, "vocab_size": 7, "data_tokens": 6}, "163d3e81c3b7", check=check_compression),
    "memorization": Case({"length": 12, "vocab_size": 21}, "e64de90bffe0", check=check_memorization),
    "parity": Case({"length": 12}, "fa2e70b26e48", {"length": 8}, check=check_word_problem),
    "s3": Case({"length": 13}, "0beba7641fb7", {"length": 7}, check=check_word_problem),
    "s5": Case({"length": 12}, "5111dabec1ce", {"length": 5}, check=check_word_problem),
    "a5": Case({"length": 13}, "bc94cedc0b12", {"length": 5}, check=check_word_problem),
    "modular_arithmetic": Case(
        {"length": 12, "modulus": 5},
        "f06e774a6834",
        {"length": 9, "modulus": 5},
        check=check_modular_arithmetic,
        uneven=True,
    ),
}
PUBLISHED = {"mad_recall", "mad_fuzzy_recall"}
"""Probes that draw what others have published, whose distributions test_probes_published.py compares."""


def shipped() -> dict[str, type[Probe]]:
    """The probes in conf/data, found by glob."""
    targets = {name: get_object(compose_config(f"data={name}").data["_target_"]) for name in options("data")}
    return {name: target for name, target in targets.items() if issubclass(target, Probe)}


PROBES = shipped()
SMALL: dict[type[Probe], dict[str, Any]] = {PROBES[name]: case.settings for name, case in CASES.items()}
TASKS = [pytest.param(task, settings, id=task.name) for task, settings in SMALL.items()]
RECALLED = [p for p in TASKS if CASES[p.id].solver]
MIXED = [pytest.param(PROBES[name], case.settings | case.mixed, id=name) for name, case in CASES.items() if case.mixed]


def many(data: Probe, count: int) -> Any:
    return next(data.evaluation_batches("test", count))


def solve(inputs: list[int], data: Probe) -> Answers:
    """The answers of one example of a task whose answers stand in its sequence."""
    return CASES[data.name].solver(inputs, data)


def check_solved(batch: Any, data: Probe) -> None:
    """Every target follows from the inputs alone, and nothing else is a target."""
    inputs, targets = (part.tolist() for part in batch)
    for row, asked in zip(inputs, targets, strict=True):
        if check := CASES[data.name].check:
            check(row, asked, data)
        else:
            expected = {t: answer for t, (answer, _) in solve(row, data).items()}
            assert {t: token for t, token in enumerate(asked) if token != -100} == expected
