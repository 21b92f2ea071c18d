"""Updates launched one ahead of their outcomes, so that the device has work while Python reads and counts.

Only where outcomes come late (``Update.late``). Elsewhere, as on a CPU, an update is complete when its launch returns.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator

from seqlab.training.counters import Outcome
from seqlab.training.prefetch import Prefetch
from seqlab.training.update import Update


def updates(
    update: Update,
    batches: Prefetch,
    rate: Callable[[int], float],
    first: int,
    pauses_after: Callable[[int], bool],
) -> Iterator[tuple[Outcome, float, float]]:
    """Make update number ``first``; where outcomes come late, go on until training pauses.

    Args:
        update: makes them.
        batches: of the updates, in order.
        rate: the factor on the learning rates, from an update's number.
        first: the number of updates made before.
        pauses_after: whether no update may be launched yet after so many.

    Yields:
        For each update in order its outcome, the seconds since the one before or since the start, and those of them
        that were waited for its batch. After the last one nothing is left to be read.
    """

    def launch(number: int) -> tuple[Callable[[], Outcome], float]:
        began = time.perf_counter()
        batch = batches.take()
        waited = time.perf_counter() - began
        return update.launch(batch, rate(number)), waited

    began, number = time.perf_counter(), first
    launched = deque([launch(number)])
    while launched:
        if update.late and not pauses_after(number + 1):
            number += 1
            launched.append(launch(number))
        outcome_of, waited = launched.popleft()
        outcome, ended = outcome_of(), time.perf_counter()
        yield outcome, ended - began, waited
        began = ended
