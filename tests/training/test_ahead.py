"""Updates launched one ahead of their outcomes: what is seen from outside is what it would be without."""

import math

import pytest
import torch
from fits import build, run, stop_at, transformer, weights
from test_trainer import Broken

from seqlab.errors import Diverged, Interrupted


def late(trainer):
    """Let outcomes come late, as on a GPU. Returns the list that will name launches and readings as they happen."""
    events, original = [], trainer.update.launch

    def launch(batch, rate):
        number, outcome_of = sum(what == "launch" for what, _ in events), original(batch, rate)
        events.append(("launch", number))
        return lambda: events.append(("read", number)) or outcome_of()

    trainer.update.late, trainer.update.launch = True, launch
    return events


def fresh(folder, **settings):
    torch.manual_seed(0)
    return build(folder, model=transformer("model.dropout=0.1"), **{"steps": 9, "log_every": 4} | settings)


def without_time(records):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def state(trainer):
    """The counters but for the time."""
    return {key: value for key, value in vars(trainer.counters).items() if "seconds" not in key}


@pytest.mark.parametrize("bad", [set(), {0}, {1, 2}, {5, 6, 8}])
@pytest.mark.parametrize("every", [{"log_every": 4}, {"log_every": 1}, {"checkpoint_every": 2, "evaluate_every": 5}])
def test_records_and_weights_are_the_same(tmp_path, bad, every):
    seen = []
    for name in ("at_once", "late"):
        records, falling = [], lambda step, total: 1 - step / total
        trainer = fresh(tmp_path / name, data=Broken(bad), schedule=falling, **every)
        if name == "late":
            late(trainer)
        run(trainer, records.append)
        saved = sorted(path.name for path in (tmp_path / name / "checkpoints").iterdir())
        seen.append((without_time(records), state(trainer), saved, weights(trainer.model).tolist()))
    assert repr(seen[0]) == repr(seen[1])  # NaN is like itself only as text
    assert len(seen[1][0]) > 3


def test_the_next_update_is_launched_first_and_none_is_left_at_a_pause(tmp_path):
    trainer = fresh(tmp_path, steps=6, log_every=3, evaluate_every=6)
    events = late(trainer)
    run(trainer, lambda record: events.append((record["split"], record["step"])))
    assert events == [
        *[("launch", 0), ("launch", 1), ("read", 0), ("launch", 2), ("read", 1), ("read", 2), ("train", 3)],
        *[("launch", 3), ("launch", 4), ("read", 3), ("launch", 5), ("read", 4), ("read", 5), ("train", 6)],
        ("validation", 6),
    ]


def test_the_time_is_divided_among_the_updates(tmp_path):
    trainer = fresh(tmp_path, evaluate_every=9)
    late(trainer)
    run(trainer)
    counters = trainer.counters
    assert 0 <= counters.data_seconds < counters.seconds < counters.wall_seconds
    assert counters.starting_steps == 5
    assert 0 < counters.starting_seconds < counters.seconds


def test_it_gives_up_at_the_same_step(tmp_path):
    trainer = fresh(tmp_path, data=Broken({4, 5, 6}), steps=20, evaluate_every=20, max_skipped=3)
    late(trainer)
    with pytest.raises(Diverged, match="3 steps in a row, up to step 7"):
        run(trainer)
    assert (trainer.counters.step, trainer.counters.skipped) == (7, 3)
    assert math.isfinite(trainer.counters.loss_sum)


@pytest.mark.parametrize("step", [1, 2, 5, 8, 9])
def test_a_stopped_run_continues_bitwise(tmp_path, step):
    settings = {"log_every": 20, "evaluate_every": 9}
    whole = fresh(tmp_path / "whole", **settings)
    late(whole)
    run(whole)
    stopped = fresh(tmp_path / "stopped", **settings)
    events = late(stopped)
    stop_at(stopped, step)
    with pytest.raises(Interrupted) as ending:
        run(stopped)
    assert ending.value.step == step
    assert sorted(events) == sorted((what, number) for what in ("launch", "read") for number in range(step))
    torch.manual_seed(99)
    again = fresh(tmp_path / "stopped", **settings)
    late(again)
    again.restore()
    run(again)
    assert torch.equal(weights(again.model), weights(whole.model))
