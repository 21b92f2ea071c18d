"""What a log and a progress bar do where nothing can be written: they end no run, and a fault of ours is still seen."""

import errno
import io
import logging
import sys
from pathlib import Path

import pytest
import rich

from seqlab import console
from seqlab.training.progress import ProgressBar

FULL = Path("/dev/full")  # on Linux


class Refusing(io.StringIO):
    """A stream whose file cannot be written."""

    def __init__(self, error: OSError):
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


BROKEN = {
    "on a full disk": Refusing(OSError(errno.ENOSPC, "No space left on device")),
    "without a reader": Refusing(BrokenPipeError(errno.EPIPE, "Broken pipe")),
    "closed": closed(),
    "absent": None,
}


@pytest.mark.parametrize("stream", BROKEN.values(), ids=BROKEN)
def test_the_console_loses_what_it_cannot_write(stream, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        console.say("said")
        console.complain("amiss")
        console.ConsoleHandler().handle(logging.makeLogRecord({"msg": "logged", "levelno": logging.ERROR}))


@pytest.mark.parametrize("stream", BROKEN.values(), ids=BROKEN)
def test_so_does_the_progress_bar(stream, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        patch.setattr(rich.get_console(), "_force_terminal", True)
        with ProgressBar("training", total=3) as bar:
            assert not bar.progress.disable
            bar.step(1, 0.5, 0.5)
            bar.progress.refresh()


def test_without_a_bar_a_wait_is_a_line_in_the_log(caplog):
    with caplog.at_level(logging.INFO), ProgressBar("training", total=3) as bar:
        bar.say("compiling 20 kernels")
    assert caplog.messages == ["training: compiling 20 kernels."]


def test_it_is_standard_error_as_it_is_now(capsys):
    console.say("heard")
    assert capsys.readouterr().err == "heard\n"


@pytest.mark.skipif(not FULL.exists(), reason="there is no file here that is always full")
def test_a_log_file_loses_what_it_cannot_write(capsys):
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
