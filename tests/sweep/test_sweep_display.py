"""What a sweep's screen shows, from jobs as they stand in files."""

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from seqlab.sweep import display
from seqlab.sweep.entries import Entry, read, write_sweep
from seqlab.sweep.jobs import Job, read_jobs, seconds_left


def shown(renderable, width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def job(seed: int, status: str, **known) -> Job:
    return Job({"model": "mamba", "seed": str(seed)}, Path(str(seed)), status, **known)


def test_the_screen_keeps_to_its_height():
    jobs = [job(i, "completed", step=9, total=9, validation=1.5, test=1.25, seconds=3) for i in range(100)]
    jobs.append(job(100, "running", step=3, total=9))
    text = shown(display.live(jobs, 200, 60.0, height=30))
    assert len(text.splitlines()) <= 30
    assert "79 more above" in text
    assert "running" in text
    assert "100 of 200 done, 1 running, 0 failed, 1 min 00 s, about 1 min 00 s left" in text


def test_lists_in_the_names_of_models_are_shown():
    """Rich would take brackets for a style."""
    name, none = "hybrid model.pattern=[gru,mamba]", {"validation": None, "test": None}
    model = {"name": name, "rate": None, "below": None, "above": None, "on_grid": [], "chosen": []}
    assert f" {name} " in shown(display.rates_table({"rates": [0.1], "models": [model]}))
    trial = none | {"settings": {"model.pattern": "[gru]"}, "folder": "x=[gru]"}
    text = shown(display.search_table({"trials": 1, "studies": [{"name": name, "trials": [], "best": trial}]}))
    assert f" {name} " in text and " pattern=[gru] " in text and " x=[gru] " in text


def test_nothing_yet():
    assert "0 of 3 done" in shown(display.live([], 3, 0.0, height=30))
    assert "0 done" in shown(display.live([], None, 0.0, height=30))


@pytest.mark.parametrize(
    ("jobs", "total", "left"),
    [
        ([job(1, "completed", step=10, total=10)], 4, 30.0),
        ([job(1, "completed", step=10, total=10), job(2, "running", step=5, total=10)], 2, 10 / 3),
        ([job(1, "kept", step=10, total=10), job(2, "completed", step=10, total=10)], 4, 20.0),
        ([job(1, "failed"), job(2, "completed", step=10, total=10)], 3, 10.0),  # a failure at once says nothing
        ([job(1, "completed", began_at=5, step=10, total=10)], 2, 20.0),  # half a job took the ten seconds
        ([job(1, "running")], 2, None),
        ([job(1, "completed", step=10, total=10)], None, None),
    ],
)
def test_time_left(jobs, total, left):
    assert seconds_left(jobs, total, 10.0) == pytest.approx(left)


def test_short_names_stay_apart():
    assert display.short_names(["model", "trainer.batch_size"]) == ["model", "batch_size"]
    assert display.short_names(["data.seed", "seed"]) == ["data.seed", "seed"]


@pytest.mark.parametrize(("seconds", "said"), [(7.6, "8 s"), (65, "1 min 05 s"), (7860, "2 h 11 min")])
def test_duration(seconds, said):
    assert display.duration(seconds) == said


def test_jobs_are_read_from_their_folders(tmp_path):
    """A completed one, one of an earlier sweep, one that runs, one that was refused, and rubbish beside them."""
    earlier = Entry(9, "old", ["seed=9"])
    earlier.write(tmp_path)
    os.utime(next((tmp_path / ".jobs").iterdir()), ns=(0, 0))
    since = write_sweep(tmp_path, ["seed=1,2,3"])
    for number in (1, 2, 3):
        Entry(number, f"s/{number}", ["model=mamba", f"seed={number}"]).write(tmp_path)
        (tmp_path / "s" / str(number)).mkdir(parents=True)
    (tmp_path / ".jobs" / "rubbish.json").write_text("{")

    def leave(number: int, name: str, *content: dict) -> None:
        (tmp_path / "s" / str(number) / name).write_text("".join(json.dumps(line) + "\n" for line in content))

    completed = {"status": "completed", "steps": 8, "total_steps": 8, "best_validation_loss": 0.5}
    leave(1, "summary.json", completed | {"test": {"loss": 0.25}, "wall_seconds": 4.0})
    leave(2, "summary.json", {"status": "running", "steps": 2, "total_steps": 8})
    train, validation = {"step": 6, "split": "train"}, {"step": 4, "split": "validation", "loss": 0.75}
    leave(2, "metrics.jsonl", *[{"step": 1, "split": "train", "loss": 1.0}] * 1000, validation, train)
    leave(3, "summary.json", completed)
    entries = [entry for entry in read(tmp_path) if entry.number < 9]
    entries[0].end(tmp_path, "completed")
    entries[2].end(tmp_path, "failed", "seed=3: another run")
    first, second, third = read_jobs(tmp_path, [], since)
    assert (first.name, first.status, first.step, first.validation, first.test) == ("seed=1", "completed", 8, 0.5, 0.25)
    assert (second.status, second.began_at, second.step, second.validation) == ("running", 2, 6, 0.75)
    assert (second.work, second.done) == (0.5, 0.75)
    assert (third.status, third.error, third.validation) == ("failed", "seed=3: another run", None)
    leave(2, "summary.json", completed)
    entries[1].end(tmp_path, "completed")
    again = read_jobs(tmp_path, [], since, [first, second, third])
    assert [(job.status, job.began_at) for job in again] == [("completed", 0), ("completed", 2), ("failed", 0)]
    write_sweep(tmp_path, ["seed=1,2,3"])
    listed = json.loads((tmp_path / "sweep.json").read_text())["jobs"]
    assert [entry["folder"] for entry in listed] == ["s/1", "s/2", "s/3", "old"]
