"""``torchrun train.py``: two processes make one run. They are forked here, with what torchrun would tell them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import forks
from seqlab.invocation import processes
from seqlab.runs import torchrun
from seqlab.training.objective import Objective
from support import ROOT, SMALL, Job

RUN = (
    *SMALL,
    "schedule=constant",
    "model=transformer_moe",
    "size.d_model=16",
    "size.n_heads=2",
    "size.d_ff=32",
    "model.feedforward.dropout=0",
)
FEW = (*SMALL, "model=linear")
OFTEN = ("trainer.log_every=1", "trainer.checkpoint_every=2", "trainer.batch_size=4", "trainer.evaluate_every=2")


@contextmanager
def mistaken(mistake: str | None) -> Iterator[None]:
    """Within, the second process has a loss that is not finite, or raises an exception."""

    def forward(self: Objective, *batch: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        if mistake == "raises":
            raise ZeroDivisionError("of this rank alone")
        loss, after = whole(self, *batch)
        return loss * float("nan"), after

    whole = Objective.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seqlab.cli.main.end", sys.exit)  # another run follows
        if mistake and processes()[0] == 1:
            patch.setattr(Objective, "forward", forward)
        yield


def in_turn(runs: list[tuple[str, str | None, tuple[str, ...]]]) -> None:
    """In each of two processes: runs one after the other, each of a port, a mistake and its command."""
    for port, mistake, arguments in runs:
        os.environ["MASTER_PORT"] = port
        with mistaken(mistake), pytest.raises(SystemExit) as ending:
            forks.train(*arguments)
        print(f"\n=== {ending.value.code}", flush=True)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()  # as the end of a process would


def together(folder: Path, *runs: tuple[str | None, tuple[str, ...]]) -> list[list[tuple[str, int]]]:
    """What each of two processes wrote in each of its runs, and its exit status."""
    ended = forks.as_torchrun(folder, in_turn, [(forks.free_port(), *run) for run in runs])
    assert [status for status, _ in ended] == [0, 0], ended
    found = []
    for _, screen in ended:
        first, *parts = screen.split("\n=== ")
        texts = [first, *(part.partition("\n")[2] for part in parts)]
        found.append([(text, int(part.split()[0])) for text, part in zip(texts, parts, strict=False)])
    return found


def numbers(job: Job, split: str) -> list[dict[str, float]]:
    kept = [record for record in job.records if record["split"] == split]
    return [{name: value for name, value in record.items() if name not in ("split", "seconds")} for record in kept]


def test_two_processes_make_one_run(train, tmp_path):
    """Begun by one, gone on with by two and by one again: the records of a run by one; and mistakes, each told once."""
    job = train(*RUN, *OFTEN, "trainer.steps=2", folder="counts", small=False)
    at = {name: f"hydra.run.dir={tmp_path / name}" for name in ("uneven", "raises", "diverges")}
    first, second = together(
        tmp_path / "screens",
        (None, (f"resume={job.folder}", "trainer.steps=4", "trainer.parallel=fsdp")),
        (None, (*FEW, "trainer.batch_size=9", at["uneven"])),
        ("diverges", (*FEW, "trainer.max_skipped=2", "trainer.steps=9", at["diverges"])),
        ("raises", (*FEW, at["raises"])),
    )
    assert [status for _, status in first] == [0, 2, 1, 2]
    assert [status for _, status in second] == [0, 2, 1, 1]
    assert [said for said, _ in second] == [
        "",
        "",
        "",
        "Rank 1 failed, and with it the run: ZeroDivisionError: of this rank alone\n",
    ]
    said = [said.strip() for said, _ in first]
    assert said[1].splitlines() == [
        "trainer.batch_size=9: is the batch of all together, and does not divide evenly among 2 processes.",
        "Start another number of processes, or a new run with trainer.batch_size=10.",
    ]
    assert "not finite in 2 steps in a row, up to step 2, on rank 1 alone; " in said[2]
    assert said[3].startswith("torchrun=a process of this run: it has ended")
    assert len(said[3].splitlines()) == 2
    assert [Job(tmp_path / name, 0).summary["status"] for name in ("diverges", "raises")] == ["diverged", "failed"]

    assert train(f"resume={job.folder}", "trainer.steps=6").status == 0
    whole = train(*RUN, *OFTEN, "trainer.steps=6", folder="whole", small=False)
    for split in ("train", "validation"):
        for ours, theirs in zip(numbers(job, split), numbers(whole, split), strict=True):
            assert ours == pytest.approx(theirs, rel=2e-5)
    assert job.summary["test"] == pytest.approx(whole.summary["test"], rel=2e-5)


def by_forks(packed: bytes, cfg: object, log: Path) -> tuple[int, None]:
    """As ``torchrun.run``, by forked processes."""
    file = log.with_suffix(".packed")
    file.write_bytes(packed)
    ended = forks.as_torchrun(log.with_suffix(""), job, file)
    log.write_text("".join(said for _, said in ended))
    return max(status for status, _ in ended), None


def job(file: Path) -> None:
    from seqlab.commands.job import main

    sys.argv = ["job", str(file)]
    main()


def test_the_jobs_of_a_sweep_in_several_processes(train, tmp_path, monkeypatch, capsys):
    """A good one and one that is refused, each told as any job is; and the same command finds them."""
    monkeypatch.setattr(torchrun, "run", by_forks)
    command = "-m", *FEW, "sweep.processes=2", "trainer.batch_size=4,9", f"hydra.sweep.dir={tmp_path / 'sweep'}"
    command = *command, "hydra.sweep.subdir=${trainer.batch_size}"
    assert train(*command, small=False).status == 1
    good, bad = (Job(tmp_path / "sweep" / size, 0) for size in "49")
    assert good.summary["status"] == "completed"
    assert bad.summary["status"] == "failed"
    assert "does not divide evenly among 2 processes" in bad.summary["error"]
    out = capsys.readouterr().out
    assert "1 completed, 1 failed" in out
    one = train(*FEW, "trainer.batch_size=4", folder="one", small=False)
    assert good.summary["test"] == pytest.approx(one.summary["test"], rel=2e-5)


@pytest.mark.slow
def test_the_launcher_itself(tmp_path, environment):
    """torchrun with a sweep's job; and rank 1 killed: the run goes on; and once more: all end, with the rank named."""
    folder, python = tmp_path / "sweep", [sys.executable, str(ROOT / "train.py")]
    swept = [*python, "-m", *FEW, "sweep.processes=2", "trainer.batch_size=4", f"hydra.sweep.dir={folder}"]
    assert subprocess.run([*swept, "hydra.sweep.subdir=job"], env=environment).returncode == 0
    assert Job(folder / "job", 0).summary["status"] == "completed"
    killed = "import os, sys; sys.path.insert(0, sys.argv.pop(1)); import forks; rank = os.environ['RANK']\n"
    killed += "forks.train_until('killed' if rank == '1' else '', 3, *sys.argv[1:])"
    (tmp_path / "killed.py").write_text(killed)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "--max-restarts=1",
        str(tmp_path / "killed.py"),
    ]
    arguments = [
        str(ROOT / "tests"),
        *FEW,
        "trainer.steps=1000000",
        "trainer.checkpoint_every=2",
        "trainer.batch_size=4",
        f"hydra.run.dir={tmp_path / 'killed'}",
    ]
    ended = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode != 0
    assert "torchrun=a process of this run: it has ended or cannot be reached" in ended.stderr
    assert "Continuing from" in ended.stderr
    assert "rank      : 1" in ended.stderr
    assert "SIGKILL" in ended.stderr
