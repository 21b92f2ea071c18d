"""Batches ahead of their steps: the same ones in the same order, no more than asked for, and no thread left behind."""

import threading
import time

import pytest
import torch
from fits import build, run, stop_at

from seqlab.data import Batch
from seqlab.errors import Interrupted
from seqlab.training.prefetch import AHEAD, Prefetch
from support import Echo

CPU = torch.device("cpu")


def numbered(number):
    return Batch(torch.full((2, 3), number), torch.full((2, 3), -number))


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def makes(made, count):
    """Whether so many are made, however slow the machine, and then no more."""
    until = time.monotonic() + 10
    while len(made) < count and time.monotonic() < until:
        time.sleep(0.001)
    time.sleep(0.05)
    return len(made) == count


def test_the_same_batches_in_order_and_none_past_the_last():
    made = []
    with Prefetch(lambda n: made.append(n) or numbered(n), 3, 12, device=CPU) as batches:
        taken = [batches.take() for _ in range(9)]
        assert makes(made, 9)
    assert made == list(range(3, 12))
    for n, batch in enumerate(taken, start=3):
        assert torch.equal(batch.inputs, numbered(n).inputs)
        assert torch.equal(batch.targets, numbered(n).targets)


def test_never_more_than_a_few_ahead():
    made = []
    with Prefetch(lambda n: made.append(n) or numbered(n), 0, 100, device=CPU) as batches:
        for taken in range(1, 6):
            assert makes(made, AHEAD + taken - 1)
            batches.take()
    assert not threads()


def test_an_error_is_raised_where_its_batch_is_taken():
    def make(n):
        if n == 2:
            raise ValueError("no batch number 2")
        return numbered(n)

    with Prefetch(make, 0, 5, device=CPU) as batches:
        assert [int(batches.take().inputs[0, 0]) for _ in range(2)] == [0, 1]
        with pytest.raises(ValueError, match="no batch number 2") as caught:
            batches.take()
    assert "make" in [entry.name for entry in caught.traceback]
    assert not threads()


def test_an_error_outside_ends_the_thread():
    with pytest.raises(KeyboardInterrupt), Prefetch(numbered, 0, 1000, device=CPU):
        raise KeyboardInterrupt
    assert not threads()


class Counted(Echo):
    """Notes which batches were asked for, and takes its time."""

    def __init__(self, seconds=0.0):
        super().__init__()
        self.asked, self.seconds = [], seconds

    def train_batch(self, index, batch_size, seed):
        self.asked.append((index, batch_size, threading.current_thread().name))
        time.sleep(self.seconds)
        return super().train_batch(index, batch_size, seed)


def test_a_fit_asks_for_each_batch_once_and_leaves_no_thread(tmp_path):
    data = Counted()
    trainer = build(tmp_path, data=data, steps=9)
    data.asked.clear()  # the count of FLOPs takes one too
    stop_at(trainer, 4)
    with pytest.raises(Interrupted):
        run(trainer)
    assert not threads()
    assert data.asked == [(n, 4, "prefetch_0") for n in range(len(data.asked))]
    assert len(data.asked) <= 4 + AHEAD
    data.asked.clear()
    again = build(tmp_path, data=data, steps=9)
    again.restore()
    data.asked.clear()
    run(again)
    assert data.asked == [(n, 4, "prefetch_0") for n in range(4, 9)]
    assert not threads()


def test_an_error_of_the_data_is_the_fits(tmp_path):
    data = Echo()
    trainer = build(tmp_path, data=data)
    data.train_batch = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        run(trainer)
    assert not threads()


def test_the_wait_is_measured(tmp_path):
    slow, quick = (build(tmp_path / str(s), data=Counted(s), steps=5) for s in (0.2, 0.0))
    for trainer in (slow, quick):
        run(trainer)
    assert 0.2 < slow.counters.data_seconds <= slow.counters.seconds
    assert quick.counters.data_seconds < slow.counters.data_seconds / 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_for_a_gpu_in_pinned_memory():
    with Prefetch(numbered, 0, 2, device=torch.device("cuda")) as batches:
        batch = batches.take()
    assert batch.inputs.is_pinned()
    assert batch.targets.is_pinned()
    assert torch.equal(batch.inputs.to("cuda").cpu(), numbered(0).inputs)
