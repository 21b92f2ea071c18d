"""The interval does what it says: measured by simulation, and against tables and a bootstrap written plainly."""

import numpy as np
import pytest

from seqlab.report.statistics import FEWEST_TO_RESAMPLE, NORMAL_T, RESAMPLES, estimate, intervals

# The 97.5 % quantile of Student's t with n - 1 degrees of freedom, from any printed table.
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447}
SAMPLES = 4000
LAWS = {"normal": 0.0, "uniform": 0.5, "exponential": 1.0, "lognormal": np.exp(0.5)}


def draw(law: str, n: int) -> np.ndarray:
    """Samples (n, SAMPLES) from a law."""
    generator = np.random.default_rng(sum(map(ord, law)) + n)
    if law == "uniform":
        return generator.random((n, SAMPLES))
    return getattr(generator, {"normal": "standard_normal", "exponential": "exponential"}.get(law, law))(
        size=(n, SAMPLES)
    )


def coverage(law: str, n: int) -> float:
    """In how many of the samples the interval holds the law's mean."""
    held = []
    for samples in np.split(draw(law, n), 40, axis=1):
        _, low, high = intervals(samples)
        held.append((low <= LAWS[law]) & (LAWS[law] <= high))
    return float(np.mean(held))


@pytest.mark.parametrize("n", [2, 3, 5, 7, 8, 12])
def test_the_interval_holds_the_truth_in_95_of_100_cases_when_seeds_vary_normally(n):
    assert 0.935 <= coverage("normal", n) <= 0.965  # 4,000 samples: 0.95 within 0.0034 times four


@pytest.mark.parametrize(
    ("law", "n", "least"),
    [
        ("uniform", 3, 0.91),
        ("uniform", 10, 0.94),
        ("exponential", 3, 0.85),
        ("exponential", 10, 0.91),
        ("lognormal", 3, 0.80),
        ("lognormal", 10, 0.88),
    ],
)
def test_what_it_holds_when_they_do_not_is_what_the_docs_say(law, n, least):
    assert coverage(law, n) >= least


def test_percentiles_of_resampled_means_would_be_too_narrow():
    x = draw("normal", 3)[:, :1000]
    picks = np.random.default_rng(0).integers(3, size=(2000, 3))
    low, high = np.quantile(x[picks].mean(axis=1), [0.025, 0.975], axis=0)
    assert np.mean((low <= 0) & (high >= 0)) < 0.80


@pytest.mark.parametrize("n", STUDENT)
def test_the_parametric_bootstrap_is_students_interval(n):
    draws = np.random.default_rng(n).standard_normal((n, 1_000_000))
    t = np.abs(draws.mean(axis=0)) / (draws.std(axis=0, ddof=1) / np.sqrt(n))
    assert np.mean(t > NORMAL_T[n]) == pytest.approx(0.05, abs=0.001)
    values = np.random.default_rng(n).normal(5, 2, size=n)
    found = estimate(values)
    half = STUDENT[n] * np.std(values, ddof=1) / np.sqrt(n)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.std == pytest.approx(np.sqrt(sum((v - found.mean) ** 2 for v in values) / (n - 1)))
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), rel=1e-3)
    assert found.half_width == pytest.approx(half, rel=1e-3)
    assert found.n == n


def test_resampling_agrees_with_a_studentised_bootstrap_written_plainly():
    values = np.random.default_rng(4).exponential(size=12)
    mean = values.mean()
    generator, errors = np.random.default_rng(99), []
    for _ in range(40_000):
        sample = generator.choice(values, size=len(values))
        errors.append((sample.mean() - mean) / (sample.std(ddof=1) / np.sqrt(len(sample))))
    low_t, high_t = np.quantile(errors, [0.025, 0.975])
    error = values.std(ddof=1) / np.sqrt(len(values))
    found = estimate(values)
    width = (high_t - low_t) * error
    assert found.low == pytest.approx(mean - high_t * error, abs=0.06 * width)
    assert found.high == pytest.approx(mean - low_t * error, abs=0.06 * width)
    assert found.high - mean > 1.2 * (mean - found.low)  # the law has its tail above
    assert len(values) >= FEWEST_TO_RESAMPLE
    assert RESAMPLES >= 4000


@pytest.mark.parametrize("n", [2, 5, 9])
def test_the_same_values_give_the_same_interval_and_their_order_hardly_matters(n):
    values = np.random.default_rng(n).random(n)
    assert estimate(values) == estimate(list(values))
    turned = estimate(values[::-1])
    assert (turned.mean, turned.std) == pytest.approx((estimate(values).mean, estimate(values).std))
    assert turned.low == pytest.approx(estimate(values).low, abs=0.1 * turned.half_width)


@pytest.mark.parametrize("n", [3, 9])
def test_units_do_not_matter(n):
    values = np.random.default_rng(n).random(n)
    one, other = estimate(values), estimate(1000 * values - 7)
    assert (other.low, other.high) == pytest.approx((1000 * one.low - 7, 1000 * one.high - 7))


def test_several_samples_at_once_have_the_interval_of_each():
    for n in (3, 10):
        samples = np.random.default_rng(n).random((n, 250))
        mean, low, high = intervals(samples)
        for i in (0, 99, 100, 249):
            one = estimate(samples[:, i])
            assert (mean[i], low[i], high[i]) == pytest.approx((one.mean, one.low, one.high))


def test_one_value_has_no_interval():
    found = estimate([2.5])
    assert (found.mean, found.std, found.low, found.high, found.half_width, found.n) == (2.5, *[None] * 4, 1)


@pytest.mark.parametrize("n", [2, 9])
def test_values_that_are_all_alike_have_an_interval_of_no_width(n):
    found = estimate([0.25] * n)
    assert (found.mean, found.std, found.low, found.high) == (0.25, 0, 0.25, 0.25)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")], [[1.0, 2.0]]])
def test_what_has_no_mean_is_refused(values):
    with pytest.raises(ValueError, match="finite values"):
        estimate(values)
