"""What a log and a progress bar do where nothing can be written: they end no run, and a fault of ours is still seen."""

import contextlib
import errno
import io
import logging
import os
import sys
from pathlib import Path

import pytest
import rich

from seqlab import console
from seqlab.training.progress import ProgressBar

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="only Linux has a file that is always full")


@pytest.fixture(params=["full", "closed", "gone", "none"])
def broken_stderr(request, monkeypatch):
    """Standard error on a full disk, closed, without a reader, and absent."""
    stream = None
    if request.param == "full" and not FULL.exists():
        pytest.skip("only Linux has a file that is always full")
    if request.param == "full":
        stream = FULL.open("w")
    elif request.param == "closed":
        stream = io.StringIO()
        stream.close()
    elif request.param == "gone":
        read_end, write_end = os.pipe()
        os.close(read_end)
        stream = os.fdopen(write_end, "w")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        yield
    with contextlib.suppress(OSError, AttributeError):
        stream.close()


def test_the_console_loses_what_it_cannot_write(broken_stderr):
    console.say("said")
    console.complain("amiss")
    console.ConsoleHandler().handle(logging.makeLogRecord({"msg": "logged"}))


def test_so_does_the_progress_bar(broken_stderr, monkeypatch):
    monkeypatch.setattr(rich.get_console(), "_force_terminal", True)
    with ProgressBar("training", total=3) as bar:
        assert not bar.progress.disable
        bar.step(1, 0.5, 0.5)
        bar.progress.refresh()


def test_it_is_standard_error_as_it_is_now(capsys):
    console.say("heard")
    assert capsys.readouterr().err == "heard\n"


@needs_full
def test_a_log_file_loses_what_it_cannot_write(capsys, monkeypatch):
    handler = console.LogFile(FULL)
    for _ in range(3):
        handler.handle(logging.makeLogRecord({"msg": "lost"}))
    handler.close()
    assert capsys.readouterr().err == ""


def test_a_log_file_that_cannot_be_opened_is_tried_again(tmp_path, capsys):
    """A disk may have space again."""
    path = tmp_path / "train.log"
    path.mkdir()
    handler = console.LogFile(path, delay=True)
    handler.handle(logging.makeLogRecord({"msg": "lost"}))
    path.rmdir()
    handler.handle(logging.makeLogRecord({"msg": "kept"}))
    handler.close()
    assert path.read_text() == "kept\n"
    assert capsys.readouterr().err == ""


def test_a_message_that_cannot_be_formatted_is_still_a_fault(tmp_path, capsys):
    handler = console.LogFile(tmp_path / "train.log")
    handler.handle(logging.makeLogRecord({"msg": "%d", "args": ("no number",)}))
    handler.close()
    assert "TypeError" in capsys.readouterr().err


def test_closing_it_raises_nothing(tmp_path, monkeypatch):
    handler = console.LogFile(tmp_path / "train.log")
    stream = handler.stream

    def refuse():
        raise OSError(errno.EIO, "gone")

    monkeypatch.setattr(handler, "stream", type("Stream", (), {"flush": staticmethod(refuse), "close": refuse})())
    handler.close()
    stream.close()
