"""Each probe solved from its inputs alone, position by position, knowing nothing of how they were made.

A solver maps one example's inputs to {answer's position: (answer, position of what it was read from)}.
"""

from typing import Any

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
    """A key's first coming is before its value; its second is a query."""
    is_key = [data.fillers <= token < data.fillers + data.n_keys for token in inputs]
    stored, answers = {}, {}
    for t, key in enumerate(inputs):
        if is_key[t] and key in stored:
            assert key not in {inputs[asked] for asked in answers}
            answers[t] = stored[key]
        elif is_key[t]:
            assert not answers, "a pair after a query"
            assert inputs[t + 1] >= data.fillers + data.n_keys
            stored[key] = inputs[t + 1], t
    assert len(answers) == len(stored)
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


SOLVERS = {
    "copying": solve_copying,
    "selective_copying": solve_copying,
    "induction_heads": solve_induction_heads,
    "mqar": solve_mqar,
    "fuzzy_recall": solve_recall,
    "noisy_recall": solve_recall,
}


def solve(inputs: list[int], data: Any) -> Answers:
    """The answers of one example of a task whose answers stand in its sequence."""
    return SOLVERS[data.name](inputs, data)


def check_solved(batch: Any, data: Any) -> None:
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
