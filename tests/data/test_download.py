"""Downloads, with the network replaced: what is asked for, what is made of it, and how failures are told."""

import errno
import json
import logging
import sys
import time
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

import forks
from seqlab.data import download
from seqlab.data.download import DownloadError, check_source, fetch, fetch_rows, join_rows
from seqlab.data.text import TextData
from seqlab.errors import UserError, under
from support import CONF

FILES = {"train": "ptb.train.txt", "test": "ptb.test.txt"}
HUB = {"hub": "someone/texts", "config": "v1", "revision": "abc", "blank_row": " \n"}


def test_plain_files_are_fetched_from_below_the_address(monkeypatch):
    monkeypatch.setattr(download, "fetch_file", lambda url: url.encode())
    contents = fetch({"url": "https://example.org/data/"}, FILES)
    assert contents["train"] == b"https://example.org/data/ptb.train.txt"
    assert contents["test"] == b"https://example.org/data/ptb.test.txt"


def test_files_are_taken_from_an_archive(monkeypatch):
    content = BytesIO()
    with ZipFile(content, "w") as archive:
        archive.writestr("text8", " anarchism")
    monkeypatch.setattr(download, "fetch_file", lambda url: content.getvalue())
    assert fetch({"zip": "https://example.org/text8.zip"}, {"all": "text8"}) == {"all": b" anarchism"}
    with pytest.raises(DownloadError, match="KeyError"):
        fetch({"zip": "https://example.org/text8.zip"}, {"all": "text9"})


def test_rows_of_the_hub_become_the_file_again(monkeypatch):
    asked = []

    def rows(*arguments):
        asked.append(arguments)
        return {"train": ["", " = Title = \n", "", " A naïve line . \n"], "test": [" x \n"]}

    monkeypatch.setattr(download, "fetch_rows", rows)
    assert fetch(HUB, FILES)["train"] == " \n = Title = \n \n A naïve line . \n".encode()
    assert asked == [("someone/texts", "v1", "abc", {"train", "test"})]


def test_a_single_file_is_the_training_split_on_the_hub(monkeypatch):
    monkeypatch.setattr(download, "fetch_rows", lambda *_: {"train": ["one", "two"]})
    assert fetch({"hub": "a/b", "revision": "c", "row_end": "\n"}, {"all": "x.txt"}) == {"all": b"one\ntwo\n"}


def test_joining_rows_undoes_cutting_a_file_into_lines():
    text = " \n = Valkyria = \n \n \n text \n"
    rows = ["" if line == " \n" else line for line in text.splitlines(keepends=True)]
    assert join_rows(rows, " \n", "") == text.encode()


def test_any_failure_becomes_one_short_line(monkeypatch):
    def fail(url):
        raise RuntimeError("first line\nsecond line " + "word " * 100)

    monkeypatch.setattr(download, "fetch_file", fail)
    with pytest.raises(DownloadError, match=r"^RuntimeError: first line second line (word )+\.\.\.$") as info:
        fetch({"url": "https://example.org"}, FILES)
    assert len(str(info.value)) < 150


def test_a_full_disk_is_not_a_failed_download(monkeypatch):
    def fail(url):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "fetch_file", fail)
    with pytest.raises(OSError, match="No space left"):
        fetch({"url": "https://example.org"}, FILES)


@pytest.mark.parametrize("source", [{}, {"hub": "a/b"}, {"url": "x", "revision": "y"}, {**HUB, "split": "train"}])
def test_a_source_that_is_neither_is_refused(source):
    with pytest.raises(UserError, match=r"^download=.*either `url`, or `zip`, or `hub` and `revision`"):
        check_source(source)


def test_loggers_are_quiet_only_while_fetching():
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    with pytest.raises(KeyError), download.quiet():
        assert logger.level == logging.ERROR
        raise KeyError
    assert logger.level == before


def test_the_library_reads_a_data_set_by_configuration_and_split(tmp_path, monkeypatch):
    import datasets

    splits = {"train": [" a \n", "", " b \n"], "validation": [" c \n"], "test": [""]}
    for split, rows in splits.items():
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    files = "".join(f"\n  - split: {split}\n    path: {split}.jsonl" for split in splits)
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n- config_name: v1\n  data_files:{files}\n---\n")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert fetch_rows(str(tmp_path), "v1", "abc", {"train", "test"}) == {
        "train": splits["train"],
        "test": splits["test"],
    }
    assert not datasets.are_progress_bars_disabled()


def open_data(path: Path, folder: Path) -> None:
    """Open a corpus that is in no folder, and print why that failed."""
    assert not {"datasets", "huggingface_hub"} & sys.modules.keys()
    settings = yaml.safe_load(path.read_text())
    del settings["_target_"]
    try:
        with under("data", settings):
            TextData(**settings | {"dir": str(folder), "cache_dir": str(folder), "metrics": {}})
    except UserError as error:
        print(error)


@pytest.mark.parametrize("name, offline", [("wikitext2", "0"), ("wikitext2", "1"), ("ptb", "0")])
def test_without_files_or_network_the_real_libraries_give_up_at_once(tmp_path, monkeypatch, name, offline):
    """In a process that has not imported them, since they read the environment as they are."""
    unreachable = {"HTTPS_PROXY": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "NO_PROXY": ""}
    for key, value in {"HF_HUB_OFFLINE": offline, "HF_HOME": str(tmp_path / "hub"), **unreachable}.items():
        monkeypatch.setenv(key, value)
    start = time.monotonic()
    status, said = forks.finish(tmp_path / "screen", open_data, CONF / "data" / f"{name}.yaml", tmp_path)
    assert time.monotonic() - start < 20
    assert status == 0, said
    rule, remedy = said.splitlines()
    assert rule.startswith(f"data.dir={tmp_path}: ")
    assert f"train.txt, {'wikitext-2' if name == 'wikitext2' else 'ptb'}/" in rule
    assert f"not found in {tmp_path}, and the download failed (" in rule
    assert all(part in remedy for part in ("data.dir=...", "SEQLAB_DATA_DIR", "network"))
