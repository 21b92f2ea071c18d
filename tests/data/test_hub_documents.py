"""A data set of the hub as one's own text, through the library itself, which reads it from a folder."""

import json

import pytest
from own_texts import documents_of, text_of

from seqlab.data.documents import Record
from seqlab.data.splitting import split_by_hash
from seqlab.errors import UserError


@pytest.fixture
def hub(tmp_path, monkeypatch) -> str:
    """A data set of two splits in the library's own layout, of one configuration."""
    import datasets

    folder = tmp_path / "texts"
    folder.mkdir()
    for split, numbers in {"train": range(60), "validation": range(60, 70)}.items():
        lines = [json.dumps({"id": i, "body": text_of(i)}) + "\n" for i in numbers]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    files = "".join(f"\n  - split: {split}\n    path: {split}.jsonl" for split in ("train", "validation"))
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: v1\n  data_files:{files}\n---\n")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "library")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return str(folder)


@pytest.mark.parametrize("streaming", [True, False])
def test_a_data_set_of_the_hub(own, hub, monkeypatch, streaming):
    """Its splits as they are, and test cut from training; encoded once, and from then on without the library."""
    settings = {"hub": hub, "config": "v1", "field": "body", "streaming": streaming, "tokens": "byte"}
    data = own(None, **settings)
    assert documents_of(data, "validation") == [text_of(i) for i in range(60, 70)]
    tested = [text_of(i) for i in range(60) if split_by_hash(Record(text_of(i)), {"test": 0.1}) == "test"]
    assert documents_of(data, "test") == tested and len(documents_of(data, "train")) == 60 - len(tested)
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("asked again"))
    assert own(None, **settings).fingerprint == data.fingerprint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hub": "seqlab-nobody/nothing"}, r"data\.hub=seqlab-nobody/nothing: cannot be read \(\w+Error: .*network"),
        ({"hub": "seqlab-nobody/nothing", "tokens": "bpe"}, r"data\.hub=seqlab-nobody/nothing: cannot be read"),
        ({"config": "v2"}, r"data\.hub=.*texts: cannot be read \(ValueError: .*\n.*data\.config="),
        ({"field": "text"}, r"data\.field=text: of the columns of .*texts with text in them there are: body"),
        ({"files": "my.txt"}, r"data\.files=my\.txt: is a text, and so is hub="),
        ({"hub": None, "files": "my.txt"}, r"data\.config=v1: is of a data set on the hub, and there is none"),
    ],
)
def test_a_data_set_that_cannot_be_had(own, hub, tmp_path, caplog, settings, message):
    """Nothing is said before of one that is not there."""
    caplog.set_level("INFO", "seqlab")
    settings = {
        "files": None,
        "hub": hub,
        "config": "v1",
        "revision": None,
        "streaming": None,
        "tokens": "byte",
    } | settings
    with pytest.raises(UserError, match=f"(?s)^{message}") as refused:
        own(settings.pop("files"), **settings)
    assert len(str(refused.value).splitlines()) == 2
    assert settings.get("hub") == hub or not caplog.messages
    assert not list((tmp_path / "cache").glob("text/*"))
