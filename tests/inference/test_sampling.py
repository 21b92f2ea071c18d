"""Drawing the next token: against the definitions, written out one token at a time."""

import math
from itertools import accumulate

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from seqlab.errors import UserError
from seqlab.inference.sampling import Sampling

LOGITS = st.lists(st.integers(-32, 32).map(lambda n: n / 4), min_size=1, max_size=9, unique=True)
"""Far enough apart that float32 tells which is likelier."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_definition(logits: list[float], sampling: Sampling) -> list[float]:
    """The probabilities, likeliest token first, with k and p as their papers say it."""
    weights = {i: math.exp(logit / sampling.temperature) for i, logit in enumerate(logits)}
    order = sorted(weights, key=weights.get, reverse=True)[: sampling.top_k]
    total = sum(weights[i] for i in order)
    kept, mass = [], 0.0
    for i in order:
        if sampling.top_p is not None and mass >= sampling.top_p:
            break
        kept.append(i)
        mass += weights[i] / total
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(logits))]


@settings(deadline=None)
@given(LOGITS, st.floats(0.3, 3), st.none() | st.integers(1, 12), st.none() | st.sampled_from([0.1, 0.4, 0.73, 0.97]))
def test_probabilities(logits, temperature, top_k, top_p):
    sampling = Sampling(temperature, top_k, top_p)
    masses = accumulate(sorted(by_definition(logits, Sampling(temperature, top_k)), reverse=True))
    assume(top_p is None or all(abs(mass - top_p) > 1e-5 for mass in masses))  # else rounding decides
    weights = sampling.probabilities(torch.tensor([logits]))[0]
    expected = by_definition(logits, sampling)
    torch.testing.assert_close((weights / weights.sum()).tolist(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("shares", "top_p", "kept"),
    [
        ([0.3, 0.1, 0.1, 0.5], 0.8, [0, 3]),
        ([0.3, 0.1, 0.1, 0.5], 0.9, [0, 1, 3]),
        ([0.1] * 10, 0.3, [0, 1, 2]),
        ([0.1] * 10, 0.7, list(range(7))),
        ([0.001, 0.2, 0.7, 0.099], 0.999, [1, 2, 3]),
        ([0.5, 0.5 - 1e-9, 1e-9], 1.0, [0, 1, 2]),
    ],
)
def test_the_fewest_that_hold_p(shares, top_p, kept):
    """A set that holds exactly p is enough, however its sum is rounded; 1 leaves nothing out."""
    logits = torch.tensor([shares], dtype=torch.float64).log().float()
    for shift in (0.0, 7.25, -20.5):
        assert Sampling(top_p=top_p).probabilities(logits + shift)[0].nonzero().flatten().tolist() == kept


@given(st.lists(st.integers(0, 2).map(float), min_size=1, max_size=9), st.integers(1, 10))
def test_exactly_k_are_left_of_equals(logits, top_k):
    """Those with the lower ids."""
    expected = by_definition(logits, Sampling(top_k=top_k))
    found = Sampling(top_k=top_k).probabilities(torch.tensor([logits]))[0]
    assert len(found.nonzero()) == min(top_k, len(logits))
    torch.testing.assert_close(found.tolist(), expected, rtol=1e-4, atol=1e-6)


def test_one_of_equals_is_always_the_same():
    drawn = Sampling(top_k=1).draw(torch.tensor([[1.0, 5.0, 5.0, 5.0]]).expand(100, -1), generator())
    assert set(drawn.tolist()) == {1}


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-38, 1e-45, 1e-300, 5e-324])
@pytest.mark.parametrize("settings", [{}, {"top_k": 2}, {"top_p": 0.9}])
def test_the_smallest_temperatures_are_greedy(temperature, settings):
    logits = torch.tensor([[-3.0, 2.0, 1.5, -200.0], [80.0, 81.0, 10.0, 5.0]])
    sampling = Sampling(temperature=temperature, **settings)
    assert sampling.draw(logits, generator()).tolist() == [1, 1]
    equal = Sampling(temperature=temperature).probabilities(torch.tensor([[4.0, 1.0, 4.0]]))
    assert equal.tolist() == [[0.5, 0.0, 0.5]]


def test_rows_are_independent():
    logits = torch.randn(4, 20, generator=generator())
    sampling = Sampling(0.7, 6, 0.8)
    together = sampling.probabilities(logits)
    for row, alone in zip(together, logits.split(1), strict=True):
        torch.testing.assert_close(row, sampling.probabilities(alone)[0])


@settings(deadline=None)
@given(LOGITS)
def test_greedy_is_the_likeliest(logits):
    token = Sampling(temperature=0).draw(torch.tensor([logits]), generator())
    assert token.tolist() == [logits.index(max(logits))]


def test_one_token_left_is_greedy():
    logits = torch.randn(50, 30, generator=generator())
    for sampling in (Sampling(top_k=1), Sampling(top_p=1e-6), Sampling(temperature=1e-4)):
        assert torch.equal(sampling.draw(logits, generator()), logits.argmax(dim=-1))


def test_draws_have_the_probabilities():
    """Of 40,000 draws, each share within five standard deviations."""
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    sampling, n = Sampling(temperature=1.5, top_k=3), 40_000
    drawn = sampling.draw(logits.expand(n, -1), generator(1))
    for share, p in zip(
        (drawn.bincount(minlength=4) / n).tolist(), by_definition([0, 1, 2, -1], sampling), strict=True
    ):
        assert abs(share - p) <= 5 * math.sqrt(p * (1 - p) / n)


def test_half_precision_and_repeatability():
    logits = torch.randn(3, 40, generator=generator()).bfloat16()
    a, b, c = (Sampling().draw(logits, generator(seed)) for seed in (5, 5, 6))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_nothing_is_drawn_from_what_is_no_distribution():
    """Not even the first token; the rows beside it are as ever."""
    logits = torch.tensor([[0.0, math.nan, 1.0], [0.0, math.inf, 1.0], [-math.inf] * 3, [-math.inf, 0.0, -math.inf]])
    for sampling in (Sampling(), Sampling(top_k=2), Sampling(top_p=0.5)):
        assert sampling.draw(logits, generator()).tolist() == [3, 3, 3, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature=-0.1: must be 0 or more"),
        ({"temperature": math.inf}, "temperature=inf"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0: must be at least 1"),
        ({"top_p": 0.0}, "top_p=0.0: must lie above 0"),
        ({"top_p": 1.1}, "top_p=1.1"),
    ],
)
def test_mistakes(settings, message):
    with pytest.raises(UserError, match=message):
        Sampling(**settings)
