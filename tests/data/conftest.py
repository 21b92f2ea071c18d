"""Small corpora on disk, and the settings that describe them."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seqlab.data import download
from seqlab.data.own_text import OwnText
from support import configured_data

WORDS = ["the", "a", "cat", "dog", "bird", "sees", "hears", "likes", "old", "young", "<unk>", "and", "or"]


def sentences(count: int, seed: int) -> str:
    """Lines of one to nine words."""
    rng = random.Random(seed)
    return "".join(" ".join(rng.choices(WORDS, k=rng.randint(1, 9))) + "\n" for _ in range(count))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetching fails at once."""

    def fail(*_: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(download, "fetch_file", fail)
    monkeypatch.setattr(download, "fetch_rows", fail)


@pytest.fixture
def words(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Settings of ``TextData`` for a corpus of words in three files, which are written now; overrides come last."""
    folder = tmp_path / "data" / "toy"
    folder.mkdir(parents=True)
    for seed, (split, lines) in enumerate({"train": 200, "validation": 40, "test": 50}.items()):
        (folder / f"{split}.txt").write_bytes(sentences(lines, seed).encode())

    def settings(**overrides: Any) -> dict[str, Any]:
        return {
            "name": "toy",
            "unit": "word",
            "folder": "toy",
            "files": {split: {"file": f"{split}.txt"} for split in ("train", "validation", "test")},
            "length": 16,
            "windows": "contiguous",
            "dir": str(tmp_path / "data"),
            "cache_dir": str(tmp_path / "cache"),
            **overrides,
        }

    return settings


@pytest.fixture
def characters(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Settings of ``TextData`` for a single file by characters, which is written now; overrides come last."""
    folder = tmp_path / "data" / "letters"
    folder.mkdir(parents=True)
    (folder / "all.txt").write_bytes((sentences(100, 3) + "naïve — “Ω”\r\t\n\n").encode())

    def settings(**overrides: Any) -> dict[str, Any]:
        return {
            "name": "letters",
            "unit": "character",
            "folder": "letters",
            "files": {"all": {"file": "all.txt"}},
            "fractions": [0.8, 0.1, 0.1],
            "length": 16,
            "windows": "sampled",
            "dir": str(tmp_path / "data"),
            "cache_dir": str(tmp_path / "cache"),
            **overrides,
        }

    return settings


@pytest.fixture
def own(tmp_path) -> Callable[..., OwnText]:
    """The data of a command line; ``files`` as they are given."""

    def build(files: Any, **settings: Any) -> OwnText:
        usual = {"length": 8, "windows": "sampled", "fractions": [0.7, 0.2, 0.1], "cache_dir": str(tmp_path / "cache")}
        usual |= {"field": "text", "tokens": "auto", "vocab_size": None, "end_token": None}
        return configured_data(OwnText, usual | {"files": files} | settings)

    return build
