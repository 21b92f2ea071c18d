"""What summary.json says when the disk has no space for it."""

import errno
import json
from pathlib import Path

import pytest

from seqlab.runs import summary as facts


@pytest.fixture
def full_disk(tmp_path, monkeypatch):
    """A run folder with a running summary, on a disk that takes no further file."""
    facts.write(tmp_path, {"status": "running", "steps": 3, "model": "mamba"} | {f"key{n}": n for n in range(30)})

    def refuse(path, *arguments, **settings):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", refuse)
    return tmp_path


def test_a_full_disk_leaves_no_half_file(full_disk):
    with pytest.raises(OSError, match="No space"):
        facts.write(full_disk, {"status": "failed"})
    assert [path.name for path in full_disk.iterdir()] == ["summary.json"]


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_a_run_that_ends_on_a_full_disk_says_so(full_disk, status):
    facts.write_ending(full_disk, {"status": status})
    summary = json.loads((full_disk / "summary.json").read_text())
    assert (summary["status"], summary["steps"], len(summary)) == (status, 3, 33)
