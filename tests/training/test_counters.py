"""What is counted of a run's updates."""

import pytest

from seqlab.training.counters import Counters
from seqlab.training.update import Outcome

TAKEN = Outcome(loss=1.0, grad_norm=1.0, taken=True, hopeless=False)


def test_the_rate_leaves_out_the_updates_after_each_start():
    counters = Counters()
    assert counters.steps_per_second is None
    counters.updated(TAKEN, 30.0, 0.0, starting=True)
    assert counters.steps_per_second == pytest.approx(1 / 30)  # there is nothing else yet
    for _ in range(4):
        counters.updated(TAKEN, 0.5, 0.0, starting=False)
    counters.updated(TAKEN, 20.0, 0.0, starting=True)  # it was stopped, and goes on
    assert counters.steps_per_second == pytest.approx(2.0)
    assert counters.seconds == 52.0
