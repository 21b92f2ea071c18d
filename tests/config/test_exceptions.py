"""Folders and disks that cannot be used: two lines each, of which setting and what helps, through the entry point."""

import errno
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from seqlab.config.exceptions import REFUSALS, is_out_of_memory, message_of, translate
from seqlab.sweep import entries
from seqlab.training import checkpoint
from support import run_sweep


@pytest.fixture
def said(capsys, caplog):
    """What was written on standard error, or logged before Hydra sets up its own log."""

    def read() -> list[str]:
        lines = (capsys.readouterr().err or caplog.messages[-1]).strip().splitlines()
        return [line for line in lines if not line.startswith(("A new sweep", "Going on with", "Step "))]

    return read


@pytest.fixture
def typed(monkeypatch):
    """A command line that was typed."""

    def type_it(*arguments: str) -> None:
        monkeypatch.delenv("SEQLAB_COMMAND", raising=False)
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])

    return type_it


@pytest.mark.parametrize("number", REFUSALS, ids=errno.errorcode.get)
def test_each_refusal_of_the_system_is_two_lines(number, typed):
    place = "/proc/seqlab" if number == errno.ENOENT else "there"  # where that is no file which somebody forgot
    typed(f"hydra.run.dir={place}")
    message = message_of(OSError(number, os.strerror(number), f"{place}/summary.json"))
    key, path = message.partition(":")[0].split("=")
    assert (key, Path(path).name) == ("hydra.run.dir", "summary.json")
    assert len(message.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "path", "key"),
    [
        (["hydra.run.dir=a/b"], "a", "hydra.run.dir"),
        (["hydra.run.dir='a=b'"], "a=b/train.log", "hydra.run.dir"),
        (["-m", "hydra.sweep.dir=a"], "a/1", "hydra.sweep.dir"),
        ([], "outputs", "hydra.run.dir"),
        (["--multirun"], "outputs/sweep", "hydra.sweep.dir"),
        (["hydra.mode=MULTIRUN"], "outputs/sweep", "hydra.sweep.dir"),
        (["resume=outputs/a"], "outputs/a/config.yaml.tmp", "resume"),
        (["run=a"], "a/checkpoints", "run"),
        (["data.dir=/data", "hydra.run.dir=/runs/a"], "/data/ptb", "data.dir"),
        (["data.dir=/data", "hydra.run.dir=/runs/a"], "/elsewhere", "file"),
    ],
)
def test_a_path_is_that_of_the_setting_which_it_comes_from(arguments, path, key, typed):
    typed(*arguments)
    assert message_of(OSError(errno.EROFS, "read-only", path)).startswith(f"{key}={path}: ")


@pytest.mark.parametrize("key", ["name", "data_name", "hydra.run.dir"])
def test_a_name_that_is_too_long_is_that_of_the_setting_which_has_it(key, typed):
    typed("model=mlp", f"{key}={'a' * 300}")
    folder = f"outputs/{'a' * 300}_synthetic" if key != "hydra.run.dir" else "a" * 300
    message = message_of(OSError(errno.ENAMETOOLONG, "File name too long", folder))
    assert message.startswith(f"{key}={Path(folder).name}: the name is too long")


def test_a_job_in_a_process_of_its_own_knows_the_command(typed, monkeypatch):
    typed("worker")
    monkeypatch.setenv("SEQLAB_COMMAND", "python train.py -m 'hydra.sweep.dir=my sweep'")
    assert message_of(OSError(errno.EROFS, "read-only", "my sweep/1")).startswith("hydra.sweep.dir=my sweep/1: ")
    monkeypatch.setenv("SEQLAB_COMMAND", "python -m seqlab train model=mamba")  # this -m makes no sweep
    assert message_of(OSError(errno.EROFS, "read-only", "outputs")).startswith("hydra.run.dir=outputs: ")


def test_a_refusal_of_no_path_is_a_full_disk_or_a_fault():
    assert message_of(OSError(errno.ENOSPC, "full")).startswith("disk=full: ")
    assert message_of(Exception("I/O error: No space left on device (os error 28)")).startswith("disk=full: ")
    assert translate(OSError(errno.EPERM, "not permitted")) is None
    assert translate(OSError(errno.ENOENT, "no such file", str(Path(__file__).parent / "nowhere"))) is None
    assert translate(OSError(errno.ENOENT, "no such file")) is None
    assert translate(Exception("Not permitted (os error 1)")) is None


@pytest.mark.parametrize("place", ["", "/within"])
def test_a_run_in_the_place_of_a_file(place, train, tmp_path, said):
    (tmp_path / "file").touch()
    assert train("model=linear", folder=f"file{place}").status == 2
    lines = said()
    assert lines[0] == f"hydra.run.dir={tmp_path}/file{place}: a file is there, or in its path, and a folder is needed."
    assert len(lines) == 2
    assert (tmp_path / "file").is_file()


@pytest.mark.parametrize("name", [".hydra", "checkpoints", "summary.json", ".lock", "metrics.jsonl"])
def test_a_run_whose_files_cannot_be_made(name, train, tmp_path, said):
    """A file where it needs a folder, and a folder where it needs a file."""
    path = tmp_path / "run" / name
    path.parent.mkdir()
    path.touch() if name in (".hydra", "checkpoints") else path.mkdir()
    assert train("model=linear").status == 2
    assert len(said()) == 2


def test_a_resumed_run_whose_folder_cannot_be_written(train, monkeypatch, said):
    job = train("model=linear")
    before = job.summary
    said()

    def refuse(path, *arguments, **settings):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert train(f"resume={job.folder}", "trainer.steps=3").status == 2
    lines = said()
    assert lines[0].startswith(f"resume={job.folder}")
    assert lines[0].endswith("that file system is read-only.")
    assert len(lines) == 2
    assert job.summary == before


@pytest.mark.parametrize("name", ["", "sweep.json", "multirun.yaml", "seed=1"])
def test_a_sweep_in_the_place_of_a_file(name, tmp_path, said):
    """Nothing runs, and that is the status: with a folder where sweep.json goes, Hydra would have gone on."""
    path = tmp_path / "sweep" / name
    path.parent.mkdir(exist_ok=True)
    path.mkdir() if "." in name else path.touch()
    assert run_sweep(tmp_path / "sweep", "model=linear", "seed=1,2") == 2
    lines = said()
    assert lines[0].startswith(f"hydra.sweep.dir={path}")
    assert len(lines) == 2
    assert not entries.read(tmp_path / "sweep")


def test_a_disk_that_fills_in_mid_run(train, monkeypatch, said):
    """The log is on it too. What there is to say comes once, and the summary tells of the end."""
    write, count = checkpoint.write_through, []

    def refuse(path, content):
        count.append(path)
        if len(count) > 4:  # within the second checkpoint
            path.touch()
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    monkeypatch.setattr(checkpoint, "write_through", refuse)
    job = train("model=linear", "hydra.job_logging.handlers.file.filename=/dev/full")
    assert job.status == 2
    lines = said()
    assert lines[0] == "disk=full: there is no space left to write."
    assert len(lines) == 2
    assert job.summary["status"] == "failed"
    assert not list(job.folder.rglob("*.tmp"))


def test_a_disk_that_is_full_at_the_very_end(train, monkeypatch):
    """The summary that says so cannot be written: it is not left at what it said before, that the run goes on."""
    write = Path.write_text

    def refuse(path, text, **settings):
        if '"status": "completed"' in text or '"status": "failed"' in text:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, text, **settings)

    monkeypatch.setattr(Path, "write_text", refuse)
    job = train("model=linear")
    assert (job.status, job.summary["status"]) == (2, "failed")


def test_a_full_disk_asks_for_no_checkpoint_that_was_never_written(train, monkeypatch, said):
    """The words hold with a checkpoint and without; without a configuration there is nothing to continue."""
    monkeypatch.setattr(checkpoint, "save", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    job = train("model=linear")
    lines = said()
    assert "a run that has a checkpoint with resume=<run folder>, and any other is started again" in lines[1]
    (job.folder / "config.yaml").unlink()
    (job.folder / "checkpoints").mkdir(exist_ok=True)
    assert train("model=linear").status == 2
    lines = said()
    assert lines[0].endswith("holds a run already.")
    assert "resume" not in lines[1]
    shutil.rmtree(job.folder)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (MemoryError(), True),
        (RuntimeError("out of resource: shared memory"), False),
        (ValueError("CUDA error: out of memory"), False),
    ],
)
def test_out_of_memory_has_many_names(error, expected):
    assert is_out_of_memory(error) is expected
