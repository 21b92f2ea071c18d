"""A corpus of a few lines, and runs on it."""

from pathlib import Path

import pytest

from seqlab.data.text import TextData
from support import Job

LINES = "the cat sat on the mat .\nthe dog <unk> the cat , and the cat ran .\n" * 40


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
def data(corpus, tmp_path) -> TextData:
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
