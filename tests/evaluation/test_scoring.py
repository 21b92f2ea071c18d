"""Continuations in batches against one forward pass for each."""

import pytest
import torch

from seqlab.errors import UserError
from seqlab.evaluation import scoring
from seqlab.evaluation.scoring import Answer, answers, rows_of
from support import built_model

PAIRS = [
    ([1, 2, 3], [4]),
    ([5], [6, 0, 1]),
    ([1, 2, 3], [5]),  # shares its row with the first
    ([0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3], [4, 5]),  # longer than the model reads
    ([1, 2], [3, 4]),  # and this one as well
    ([2], []),
]
LENGTH = 9


def alone(model: torch.nn.Module, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    if not continuation:
        return 0.0, True
    tokens = torch.tensor((context + continuation)[-LENGTH - 1 :])
    with torch.no_grad():
        logs = model(tokens[None, :-1])[0].log_softmax(dim=-1)[len(tokens) - 1 - len(continuation) :]
    wanted = torch.tensor(continuation, dtype=torch.int64)
    return logs.gather(1, wanted[:, None]).sum().item(), torch.equal(logs.argmax(dim=-1), wanted)


@pytest.mark.parametrize("model", ["mamba", "transformer"])
@pytest.mark.parametrize(("batch_size", "most"), [(1, 1), (3, 2**20)])
def test_answers_are_those_of_each_alone(model, batch_size, most, monkeypatch):
    monkeypatch.setattr(scoring, "LOGITS", most)
    model = built_model(f"model={model}", "size=tiny").double().eval()
    with torch.no_grad():
        likeliest = int(model(torch.tensor([[6, 6]]))[0, -1].argmax())
    pairs = [*PAIRS, ([6, 6], [likeliest])]
    counts = []
    found = answers(model, pairs, length=LENGTH, batch_size=batch_size, on_answers=counts.append)
    assert sum(counts) == len(pairs) - 1  # the empty one is known
    for pair, answer in zip(pairs, found, strict=True):
        likelihood, greedy = alone(model, *pair)
        assert answer == Answer(pytest.approx(likelihood, rel=1e-12), greedy)
    assert found[-1].greedy and not found[0].greedy == found[2].greedy == True  # noqa: E712


def test_continuations_of_one_context_share_a_row():
    assert [len(row.asked) for row in rows_of(PAIRS, LENGTH)] == [1, 3, 1]


def test_a_continuation_longer_than_the_model_reads_is_refused():
    with pytest.raises(UserError, match="length=2: a continuation of 3 tokens does not fit"):
        answers(built_model("model=mamba", "size=tiny"), PAIRS, length=2, batch_size=1)
