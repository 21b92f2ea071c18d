"""The published corpora as their YAMLs describe them; only where SEQLAB_DATA_DIR says that they lie."""

import os
from pathlib import Path

import pytest
import yaml

from seqlab.data import download
from seqlab.data.text import TextData
from support import CONF

DATA = os.environ.get("SEQLAB_DATA_DIR")
pytestmark = pytest.mark.skipif(not DATA, reason="SEQLAB_DATA_DIR does not say where the corpora lie")


def build(name: str, **overrides) -> TextData:
    settings = yaml.safe_load((CONF / "data" / f"{name}.yaml").read_text(encoding="utf-8"))
    del settings["_target_"]
    return TextData(**settings | {"dir": DATA, "metrics": {}} | overrides)


@pytest.mark.parametrize(
    "name, sizes, vocabulary",
    [
        ("tiny_shakespeare", {"train": 892315, "validation": 111539, "test": 111540}, 65),
        ("wikitext2", {"train": 2088628, "validation": 217646, "test": 245569}, 33278),
        ("ptb", {"train": 929589, "validation": 73760, "test": 82430}, 10000),
    ],
)
def test_the_published_counts(name, sizes, vocabulary):
    data = build(name)
    assert data.d_input == len(data.vocabulary) == len(set(data.vocabulary)) == vocabulary
    assert data.train_size == sizes["train"] // data.length
    for split in ("validation", "test"):
        batches = list(data.evaluation_batches(split, 512))
        assert sum(batch.targets.numel() for batch in batches) == sizes[split] - 1
        assert len(batches) == data.evaluation_size(split, 512)
    for batch in (data.train_batch(0, 64, 1), batches[-1]):
        assert 0 <= batch.inputs.min() <= batch.inputs.max() < vocabulary


@pytest.mark.parametrize("name, path", [("wikitext2", "wikitext-2/test.txt"), ("ptb", "ptb/ptb.test.txt")])
def test_words_decode_to_the_file(name, path):
    data = build(name)
    text = (Path(DATA) / path).read_text(encoding="utf-8")
    lines = "".join(" ".join(line.split()) + "\n" for line in text.split("\n")[:-1])
    known = set(data.vocabulary)
    assert {word for word in lines.split() if word not in known} == set()
    assert data.decode(data.encode(lines)) == lines


def test_wikitext_is_rebuilt_from_the_rows_of_the_hub(monkeypatch, tmp_path):
    texts = {split: f"{split[:5]}.txt" for split in ("train", "validation", "test")}
    rows = {}
    for split, file in texts.items():
        text = (Path(DATA) / "wikitext-2" / file).read_text(encoding="utf-8")
        rows[split] = ["" if line == " \n" else line for line in text.splitlines(keepends=True)]
    monkeypatch.setattr(download, "fetch_rows", lambda *_: rows)
    data = build("wikitext2", dir=None, cache_dir=str(tmp_path))
    assert data.fingerprint == build("wikitext2").fingerprint
    for file in texts.values():
        assert (tmp_path / "files" / "wikitext-2" / file).read_bytes() == (
            Path(DATA) / "wikitext-2" / file
        ).read_bytes()
