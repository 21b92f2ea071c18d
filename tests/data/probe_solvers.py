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
