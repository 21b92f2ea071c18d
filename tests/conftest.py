"""Running the real command line inside the test process."""

import gc
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

# Read when triton is first imported, which torch.utils.flop_counter does: its kernels then run on the CPU.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from quick_composition import quick_composition
from seqlab.data.text import TextData
from support import LINES, ROOT, SMALL, Job, run_sweep


@pytest.fixture(autouse=True, scope="session")
def _all_garbage_at_the_end() -> Iterator[None]:
    yield
    gc.unfreeze()  # or Triton's binding would report leaks


@pytest.fixture(autouse=True, scope="module")
def _young_garbage_alone(_all_garbage_at_the_end) -> None:
    """Each job searches for garbage at its end: not in what was there before the file of tests, which takes 0.4 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _quick_composition() -> Iterator[None]:
    with quick_composition():
        yield


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a test encodes stays out of the person's own cache."""
    monkeypatch.setenv("SEQLAB_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))
    yield


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Job]:
    """Run ``python train.py`` with overrides, in this process; by default in a fresh folder on the small data."""
    for name in ("HYDRA_FULL_ERROR", "SEQLAB_COMMAND", "SEQLAB_SWEEP"):  # which cli.run sets; put back afterwards
        monkeypatch.setenv(name, "1")

    def run(*overrides: str, folder: str = "run", small: bool = True) -> Job:
        target = tmp_path / folder
        resumed = any(override.startswith("resume=") for override in overrides)
        arguments = [*(SMALL if small and not resumed else []), *overrides]
        if not resumed:
            arguments.append(f"hydra.run.dir={target}")
        monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), *arguments])
        with pytest.raises(SystemExit) as exit_info:
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        return Job(target, exit_info.value.code)

    run.small = SMALL
    return run


@pytest.fixture
def sweep(tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[..., tuple[int, str, str]]:
    """Run a sweep into a folder of the test's own; returns the exit status and what it printed and logged."""

    def run(*overrides: str, default: bool = False) -> tuple[int, str, str]:
        capsys.readouterr()
        status = run_sweep(None if default else tmp_path / "sweep", *overrides)
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def environment() -> dict[str, str]:
    """The environment for a run in a process of its own."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}


@pytest.fixture
def corpus(tmp_path: Path) -> dict[str, list[str]]:
    """The overrides that train on the corpus, by characters and by words."""
    files = {"tiny_shakespeare/input.txt": LINES}
    files |= {f"ptb/ptb.{split}.txt": LINES for split in ("train", "valid", "test")}
    for name, text in files.items():
        path = tmp_path / "corpora" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    given = [f"data.dir={tmp_path / 'corpora'}", "data.vocab_size=null", "data.length=16"]
    roles = {"tiny_shakespeare": ["all"], "ptb": ["train", "validation", "test"]}
    return {
        name: [f"data={name}", *given, *(f"data.files.{r}.{k}=null" for r in names for k in ("sha256", "tokens"))]
        for name, names in roles.items()
    }


@pytest.fixture
def word_data(corpus, tmp_path) -> TextData:
    """The corpus by words, outside a run."""
    files = {split: {"file": f"ptb.{short}.txt"} for split, short in
             (("train", "train"), ("validation", "valid"), ("test", "test"))}  # fmt: skip
    where = {"dir": str(tmp_path / "corpora"), "folder": "ptb", "files": files}
    return TextData(name="lines", unit="word", length=8, windows="contiguous", **where)


@pytest.fixture
def trained(train, corpus):
    """Train a model on the corpus for a few steps; returns its run."""

    def run(name: str, model: str = "mamba", *overrides: str) -> Job:
        arguments = ["trainer=smoke", "trainer.steps=3", f"model={model}", *corpus[name], *overrides]
        job = train(*arguments, folder=f"{name}_{model}", small=False)
        assert job.status == 0
        return job

    return run
