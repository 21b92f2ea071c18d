"""The metrics of a run that is taken up again: every whole record stays, and what is lost is said."""

import errno
import json
import tracemalloc

import pytest

from seqlab.errors import UserError
from seqlab.jsonio import record_of
from seqlab.training.metrics_file import MetricsFile


def record(step, split="train", **values):
    return {"step": step, "split": split, "loss": 1 / step, "tiny": 1.5e-07, "none": None} | values


def line(step, split="train", **values):
    return json.dumps(record(step, split, **values)).encode() + b"\n"


def up_to(last):
    return lambda record: record["split"] != "test" and record["step"] <= last


def opened(path, last):
    with MetricsFile(path, keep=up_to(last)):
        pass
    return path.read_bytes()


DAMAGED = {
    "cut": b'{"step": 4, "split": "tr\n',
    "random bytes": bytes([0xFF, 0xFE, 0x00, 0xD8, 0x93, 0x80]) + b"\n",
    "not UTF-8": b'{"step": 4, "split": "train", "loss\xff": 1.0}\n',
    "zeros": bytes(300) + b"\n",
    "no mapping": b"[1, 2]\n",
    "a number": b"17\n",
    "no step": b'{"split": "train", "loss": 1.0}\n',
    "no split": b'{"step": 4, "loss": 1.0}\n',
    "step in words": b'{"step": "four", "split": "train"}\n',
    "a number with two points": b'{"step": 4, "split": "train", "loss": 1.2.3}\n',
    "nested": b"[" * 100_000 + b"\n",
    "long": b'{"step": 4, "split": "train", "loss": ' + b"1" * 1_000_000 + b"\n",
    "empty": b"\n",
}


@pytest.mark.parametrize("bad", DAMAGED.values(), ids=DAMAGED)
def test_a_bad_line_costs_no_other(tmp_path, caplog, bad):
    path = tmp_path / "metrics.jsonl"
    good = [line(step) for step in (1, 2, 3, 5, 6)]
    before = b"".join(good[:3]) + bad + b"".join(good[3:]) + line(7)
    path.write_bytes(before)
    assert opened(path, last=6) == b"".join(good)
    assert "had 1 damaged lines" in caplog.text
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2
    caplog.clear()
    assert opened(path, last=6) == b"".join(good)
    assert not caplog.text


def test_a_second_damage_leaves_the_first_copy_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for _ in range(2):
        path.write_bytes(line(1) + b"bad\n" + line(2))
        opened(path, last=2)
    assert {p.name for p in tmp_path.iterdir()} == {path.name, f"{path.name}.damaged", f"{path.name}.damaged2"}


@pytest.mark.parametrize("end", [b"", line(4)[:-1], line(3, "test") + line(4) + line(5)[:20], b'{"st'])
def test_what_is_made_again_and_a_last_line_cut_short_are_dropped_in_silence(tmp_path, caplog, end):
    path = tmp_path / "metrics.jsonl"
    good = line(1) + line(2) + line(2, "validation", accuracy=0.5) + line(3)
    path.write_bytes(good + end)
    inode = path.stat().st_ino
    assert opened(path, last=3) == good
    assert (path.stat().st_ino, caplog.text, len(list(tmp_path.iterdir()))) == (inode, "", 1)


def test_a_last_record_without_the_end_of_its_line_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(1) + line(2)[:-1])
    assert opened(path, last=3) == line(1) + line(2)


def test_a_folder_of_that_name(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        MetricsFile(tmp_path / "metrics.jsonl", keep=up_to(1))


def test_a_long_file_is_read_line_by_line(tmp_path):
    """Memory is that of a line, not of the file."""
    path = tmp_path / "metrics.jsonl"
    lines = [line(step) for step in range(1, 20_001)]
    path.write_bytes(b"".join(lines))
    tracemalloc.start()
    with MetricsFile(path, keep=up_to(19_950)):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.read_bytes() == b"".join(lines[:19_950])
    assert peak < path.stat().st_size / 5


def test_what_is_written_is_read_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    values = [1e-7, 1e22, -0.0, 3, None, float("nan"), float("inf"), 5e-324]
    with MetricsFile(path, keep=up_to(0)) as file:
        file.log(record(3) | {f"value_{number}": value for number, value in enumerate(values)})
    read = record_of(path.read_bytes())
    assert [read[f"value_{number}"] for number in range(8)] == [1e-7, 1e22, -0.0, 3, None, None, None, 5e-324]


class Unclosable:
    def close(self):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_what_cannot_be_closed_hides_no_error_before_it(tmp_path):
    with pytest.raises(ZeroDivisionError) as raised, MetricsFile(tmp_path / "metrics.jsonl", keep=up_to(0)) as file:
        file.file.close()
        file.file = Unclosable()
        raise ZeroDivisionError
    assert raised.value.__context__ is None
    with pytest.raises(OSError, match="No space"), MetricsFile(tmp_path / "metrics.jsonl", keep=up_to(0)) as file:
        file.file.close()
        file.file = Unclosable()
