"""A power law with an offset, fitted to the losses of runs with several budgets, with 95 % intervals.

Symbols: C training FLOPs; L(C) = E + (C / C0)^-a with E the loss that no budget goes below, a the exponent and C0 the
budget that leaves a loss of 1 above E (Kaplan et al. 2020, arXiv:2001.08361; Hoffmann et al. 2022, arXiv:2203.15556);
x = log C less its mean; A the loss above E at x = 0; theta = (log E, log A, a), so log L = log(E + A exp(-a x)); n the
number of runs, s their standard deviation around the curve in log L.

The estimate minimises the Huber loss of log L - log L(C) over all runs from a grid of starts (Hoffmann et al., equation
3). Huber's delta is theirs, 1e-3, or 1.345 s where seeds scatter more, where it has 95 % of the efficiency of least
squares (Huber 1964): the delta of 1e-3 alone makes the intervals of such runs a quarter wider.

The intervals are a parametric bootstrap: runs are drawn around the curve with a normal error, whose standard deviation
is s sqrt((n - 3) / chi^2) with a draw of chi^2 with n - 3 degrees of freedom, as Student's t has it, and fitted. In
simulations of 4 budgets of 3 seeds the interval of E holds the truth in 95 cases of 100, that of the curve in 95; of
runs resampled within each budget in 85 and 74, since three seeds cannot show their own spread (docs/lab_log.md).

All draws are minimised at once by Levenberg and Marquardt's method, a fifth of a second for a thousand.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from zlib import crc32

import numpy as np
from numpy import ndarray

from seqlab.report.statistics import COVERAGE, Estimate

DELTA = 1e-3
EFFICIENT = 1.345
DRAWS = 1000
F_DRAWS = 20_000
UNKNOWNS = 3
STEEPEST, FAR = 10.0, 100.0
"""Bounds of a, and of log E and log A, where numbers would overflow."""

CONVERGED = 1e-7
"""The relative gain of a step with which a search ends."""

LEAST = 1e-2
"""The lower bound of E in the search, as a share of the lowest loss."""

SHARES, EXPONENTS = (LEAST, 0.5, 0.95), (0.05, 0.3, 1.0)
"""The grid of starts: E as a share of the lowest loss, and a."""


@dataclass(frozen=True)
class PowerLaw:
    """A fitted curve.

    Args:
        theta: (log E, log A, a), (3,).
        draws: those of the bootstrap, (DRAWS, 3).
        centre: mean of log C.
        scatter: s, a relative error of the loss.
        n: runs.
        has_offset: whether E > 0 fits better than a power law without it, by an F test at 95 %.
        slope: the exponent of the power law without it.
    """

    theta: ndarray
    draws: ndarray
    centre: float
    scatter: float
    n: int
    has_offset: bool
    slope: float

    def losses(self, flops: ndarray) -> tuple[ndarray, ndarray]:
        """The curve at FLOPs (points,), and its draws: (points,) and (DRAWS, points)."""
        x = np.log(flops) - self.centre
        return np.exp(log_loss(self.theta, x)), np.exp(log_loss(self.draws, x))

    def estimate(self, value: ndarray | float, draws: ndarray) -> Estimate:
        """A value of the curve with the interval from its draws (DRAWS,)."""
        return Estimate(float(value), float(draws.std(ddof=1)), *map(float, central(draws)), self.n)

    @cached_property
    def offset(self) -> Estimate:
        """E."""
        return self.estimate(np.exp(self.theta[0]), np.exp(self.draws[:, 0]))

    @cached_property
    def exponent(self) -> Estimate:
        """a."""
        return self.estimate(self.theta[2], self.draws[:, 2])

    @cached_property
    def log_scale(self) -> Estimate:
        """log C0, natural."""
        value, draws = (
            self.centre + theta[..., 1] / np.maximum(theta[..., 2], 1e-3) for theta in (self.theta, self.draws)
        )
        return self.estimate(value, draws)

    @property
    def has_exponent(self) -> bool:
        """Whether the interval of a ends below the steepest fall that is looked for."""
        return self.exponent.high < 0.99 * STEEPEST

    @property
    def is_identified(self) -> bool:
        """Whether E and a can be told from each other, and the curve be drawn beyond the runs."""
        return self.has_offset and self.has_exponent


def central(draws: ndarray) -> ndarray:
    """The ends of the central 95 % of draws (DRAWS, ...): (2, ...)."""
    tail = (1 - COVERAGE) / 2
    return np.quantile(draws, [tail, 1 - tail], axis=0)


def fit(flops: ndarray, losses: ndarray) -> PowerLaw:
    """The power law through runs.

    Args:
        flops: of training, above 0, (n,).
        losses: above 0, (n,), n at least 4.
    """
    centre = float(np.log(flops).mean())
    x, y, n = np.log(flops) - centre, np.log(losses), len(flops)
    spare = n - UNKNOWNS
    theta = best(y, x, starts(y), DELTA)
    delta = max(DELTA, EFFICIENT * scatter_of(y, x, theta))
    theta = best(y, x, np.vstack([starts(y), theta]), delta)
    scatter = scatter_of(y, x, theta)
    random = np.random.default_rng(crc32(losses.tobytes()))  # other draws for each model: they are compared
    scale = np.minimum(1, scatter * np.sqrt(spare / random.chisquare(spare, size=(DRAWS, 1))))  # of few runs any size
    drawn = log_loss(theta, x) + scale * random.standard_normal((DRAWS, n))
    start = theta.copy()
    start[0] = max(theta[0], y.min() + np.log(0.5))  # near E = 0 its gradient vanishes
    draws, _ = minimise(drawn, x, np.tile(start, (DRAWS, 1)), delta, 60)
    straight = np.polyfit(x, y, 1)
    gain = np.square(y - np.polyval(straight, x)).sum() - spare * scatter**2
    has_offset = gain > f_bound(1, spare, COVERAGE) * scatter**2
    return PowerLaw(theta, draws, centre, scatter, n, bool(has_offset), float(-straight[0]))


def f_bound(above: int, below: int, share: float) -> float:
    """The value that a share of Fisher's F distribution lies below, by simulation.

    Args:
        above, below: degrees of freedom.
        share: between 0 and 1.
    """
    random = np.random.default_rng(0)
    ratios = random.chisquare(above, F_DRAWS) / random.chisquare(below, F_DRAWS)
    return float(np.quantile(ratios, share)) * below / above


def starts(y: ndarray) -> ndarray:
    """Where the search begins: (starts, 3), each with the mean loss at x = 0."""
    found = []
    for share, exponent in product(SHARES, EXPONENTS):
        offset = y.min() + np.log(share)
        found.append([offset, np.log(np.exp(y.mean()) - np.exp(offset)), exponent])
    return np.array(found)


def best(y: ndarray, x: ndarray, places: ndarray, delta: float) -> ndarray:
    """The parameters (3,) with the least Huber loss of y (n,) from any of several starts (starts, 3)."""
    theta, cost = minimise(np.tile(y, (len(places), 1)), x, places, delta, 100)
    return theta[cost.argmin()]


def log_loss(theta: ndarray, x: ndarray) -> ndarray:
    """log L at x (points,) of parameters (..., 3): (..., points)."""
    return np.log(np.exp(theta[..., :1]) + np.exp(theta[..., 1:2] - theta[..., 2:] * x))


def scatter_of(y: ndarray, x: ndarray, theta: ndarray) -> float:
    """The standard deviation of y around the curve at x, each (n,), with the degrees of freedom that are left."""
    return float(np.sqrt(np.square(y - log_loss(theta, x)).sum() / (len(y) - UNKNOWNS)))


def huber(residuals: ndarray, delta: float) -> ndarray:
    """The Huber loss summed over residuals (..., n): (...)."""
    size = np.abs(residuals)
    inner = np.minimum(size, delta)
    return (inner * (size - inner / 2)).sum(axis=-1)


def minimise(y: ndarray, x: ndarray, theta: ndarray, delta: float, steps: int) -> tuple[ndarray, ndarray]:
    """Parameters with the least Huber loss, for many samples at once: reweighted least squares with damping.

    Args:
        y: log losses, (samples, n).
        x: (n,).
        theta: where each sample's search begins, (samples, 3).
        delta: of the Huber loss.
        steps: of the search, at most.

    Returns:
        (samples, 3), and the Huber losses, (samples,).
    """
    theta, lowest = theta.copy(), np.tile([0.0, -FAR, 0.0], (len(y), 1))
    lowest[:, 0] = y.min(axis=-1) + np.log(LEAST)
    damping = np.full(len(y), 1e-2)
    cost = huber(y - log_loss(theta, x), delta)
    busy = np.arange(len(y))
    for _ in range(steps):
        old = theta[busy]
        new = old + damped_step(y[busy], x, old, delta, damping[busy, None])
        new = np.clip(new, lowest[busy], [FAR, FAR, STEEPEST])
        gain = cost[busy] - huber(y[busy] - log_loss(new, x), delta)
        better = gain >= 0
        theta[busy[better]] = new[better]
        damping[busy] = np.clip(damping[busy] * np.where(better, 1 / 3, 4), 1e-12, None)
        goes_on = np.where(better, gain > CONVERGED * cost[busy], damping[busy] < 1e6)
        cost[busy] -= np.where(better, gain, 0)
        busy = busy[goes_on]
    return theta, cost


def damped_step(y: ndarray, x: ndarray, theta: ndarray, delta: float, damping: ndarray) -> ndarray:
    """A step of Levenberg and Marquardt's method from theta (samples, 3), at most 1 in each parameter.

    Args:
        y: (samples, n).
        x: (n,).
        theta: (samples, 3).
        delta: of the Huber loss.
        damping: share of the diagonal that is added to it, (samples, 1).
    """
    level = log_loss(theta, x)
    residuals = y - level
    share = np.exp(theta[:, :1] - level)  # of E in L
    slopes = np.stack([share, 1 - share, (share - 1) * x], axis=1)  # (samples, 3, n)
    weighted = slopes * np.minimum(1, delta / np.maximum(np.abs(residuals), 1e-300))[:, None]
    curvature = weighted @ slopes.swapaxes(1, 2)  # (samples, 3, 3)
    diagonal = np.diagonal(curvature, axis1=1, axis2=2)
    held = damping * np.maximum(diagonal, 1e-9 * diagonal.max(axis=1, keepdims=True))
    step = np.linalg.solve(curvature + held[..., None] * np.eye(UNKNOWNS), weighted @ residuals[..., None])
    return np.clip(step[..., 0], -1, 1)
