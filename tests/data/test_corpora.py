"""A corpus's files: where they are looked for, how they are checked, and that they are encoded once."""

import hashlib
from pathlib import Path

import pytest

from seqlab.data import corpora, download
from seqlab.data.corpora import Corpus, split_text
from seqlab.data.text import TextData
from seqlab.errors import UserError
from support import configured_data


def contents(settings: dict) -> dict[str, bytes]:
    folder = Path(settings["dir"]) / settings["folder"]
    return {role: (folder / spec["file"]).read_bytes() for role, spec in settings["files"].items()}


def with_sums(settings: dict) -> dict:
    files = {
        role: {"file": settings["files"][role]["file"], "sha256": hashlib.sha256(content).hexdigest()}
        for role, content in contents(settings).items()
    }
    return {**settings, "files": files}


def test_fractions_cut_by_characters():
    pieces = split_text("0123456789", (0.7, 0.2, 0.1), "character")
    assert pieces == {"train": "0123456", "validation": "78", "test": "9"}
    assert split_text("0123456789", (0.9, 0.1), "character") == {"train": "012345678", "validation": "9", "test": "9"}


def test_fractions_cut_words_at_the_end_of_a_line():
    text = "ab\ncd\nef\ngh\nij\n"
    assert split_text(text, (0.4, 0.3, 0.3), "word") == {"train": "ab\ncd\n", "validation": "ef\ngh\n", "test": "ij\n"}
    assert "".join(split_text(text, (0.5, 0.3, 0.2), "word").values()) == text


@pytest.mark.parametrize("fractions", [[0.8, 0.1], [1.0], [0.8, 0.1, 0.2], [1.0, 0.0, 0.0], [1.2, -0.1, -0.1]])
def test_bad_fractions_are_refused(characters, fractions):
    with pytest.raises(UserError, match=r"data\.fractions=\[.*\]: must be three positive shares"):
        configured_data(TextData, characters(fractions=fractions))


def test_files_and_fractions_must_agree(characters, words):
    with pytest.raises(UserError, match=r"data\.files=all: must be train, validation, test when fractions=null"):
        configured_data(TextData, characters(fractions=None))
    with pytest.raises(UserError, match=r"data\.files=train, validation, test: must be all when fractions="):
        configured_data(TextData, words(fractions=[0.8, 0.1, 0.1]))


def test_a_file_without_a_name_is_refused(characters):
    with pytest.raises(UserError, match=r"data\.files\.all=.*must give `file`"):
        configured_data(TextData, characters(files={"all": {"path": "all.txt"}}))


def test_checksums_and_counts_that_agree_pass(words, characters):
    settings = with_sums(words())
    lines = {role: content.decode().splitlines() for role, content in contents(settings).items()}
    for role, spec in settings["files"].items():
        spec["tokens"] = sum(len(line.split()) + 1 for line in lines[role])
    distinct = {word for line in lines["train"] for word in line.split()}
    assert TextData(**settings, vocab_size=len(distinct) + 1).d_input == len(distinct) + 1

    settings = with_sums(characters())
    text = contents(settings)["all"].decode()
    settings["files"]["all"]["tokens"] = len(text)
    assert TextData(**settings, vocab_size=len(set(text))).vocabulary == sorted(set(text))


def test_a_wrong_checksum_names_file_sums_and_remedy(words):
    settings = with_sums(words())
    expected = settings["files"]["test"]["sha256"]
    path = Path(settings["dir"]) / "toy" / "test.txt"
    path.write_bytes(path.read_bytes().replace(b"cat", b"cow", 1))
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(UserError) as info:
        configured_data(TextData, settings)
    message = str(info.value)
    assert message.startswith(f"data.files.test.sha256={expected[:12]}...: test.txt in {path.parent} has the SHA-256")
    assert found[:12] in message
    assert "data.files.test.sha256=null" in message


def test_a_sha1_is_checked_too(words):
    settings = with_sums(words())
    content = contents(settings)["test"]
    settings["files"]["test"]["sha1"] = hashlib.sha1(content).hexdigest()
    TextData(**settings)
    settings["files"]["test"] = {"file": "test.txt", "sha1": "0" * 40}
    with pytest.raises(
        UserError, match=r"data\.files\.test\.sha1=000000000000\.\.\.: .* has the SHA-1 .*\n.*sha1=null"
    ):
        configured_data(TextData, settings)


def test_bytes_are_those_of_any_file(words):
    settings = words(unit="byte", length=4)
    for path in (Path(settings["dir"]) / "toy").iterdir():
        path.write_bytes(b"\xef\xbb\xbf\r\n\x89PNG na\xc3\xaf\xff" * 9)
    data = TextData(**settings)
    assert data.d_input == len(set(b"\xef\xbb\xbf\r\n\x89PNG na\xc3\xaf\xff"))
    assert data.encode("naï").tolist() == [data.vocabulary.index(chr(byte)) for byte in "naï".encode()]
    assert data.decode(data.encode("naï")) == "naï"


@pytest.mark.parametrize("key", ["data.files.validation.tokens", "data.vocab_size"])
@pytest.mark.parametrize("cached", [False, True])
def test_wrong_counts_are_refused_before_and_after_caching(words, key, cached):
    settings = words()
    if cached:
        TextData(**settings)
    if key == "data.vocab_size":
        settings["vocab_size"] = 3
    else:
        settings["files"]["validation"]["tokens"] = 3
    with pytest.raises(UserError, match=rf"{key}=3: toy has \d+ by words\.\nSet {key}=\d+, or null"):
        configured_data(TextData, settings)
    assert cached or not (Path(settings["cache_dir"]) / "tokens").exists()


def test_text_that_is_not_utf8_is_refused(words):
    settings = words()
    (Path(settings["dir"]) / "toy" / "validation.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match=r"data\.files\.validation\.file=validation\.txt: is not UTF-8 text \(byte 3\)"):
        configured_data(TextData, settings)


def test_a_word_that_training_lacks_is_refused_without_unk(words):
    settings = words()
    for name, text in {"train": "a b\n" * 50, "validation": "a\nnew\n", "test": "b\n"}.items():
        (Path(settings["dir"]) / "toy" / f"{name}.txt").write_text(text)
    with pytest.raises(UserError, match=r"data\.files\.validation=validation\.txt: holds the word 'new'"):
        configured_data(TextData, settings)


def test_a_last_line_without_an_end_counts_as_a_line(words):
    settings = words(length=2)
    for name in ("train", "validation", "test"):
        (Path(settings["dir"]) / "toy" / f"{name}.txt").write_text("a b\na b")
    data = TextData(**settings)
    assert data.decode(next(data.evaluation_batches("test", 9)).targets.flatten()) == "b\na b"


def test_missing_files_without_a_network(words, no_network, tmp_path):
    settings = words(dir=str(tmp_path / "elsewhere"), download={"url": "https://example.org/toy"})
    with pytest.raises(UserError) as info:
        configured_data(TextData, settings)
    assert str(info.value) == (
        f"data.dir={tmp_path}/elsewhere: toy/train.txt, toy/validation.txt, toy/test.txt not found in "
        f"{tmp_path}/elsewhere, and the download failed (ConnectionError: no route to host).\n"
        "Set data.dir=... or SEQLAB_DATA_DIR to the folder that holds toy/, or connect to the network."
    )
    with pytest.raises(UserError, match=rf"data\.dir=null: .* not found in {tmp_path}/cache/files, and the download"):
        configured_data(TextData, {**settings, "dir": None})


def test_only_the_files_that_are_missing_are_named(words, no_network):
    settings = words(download={"url": "https://example.org/toy"})
    (Path(settings["dir"]) / "toy" / "test.txt").unlink()
    with pytest.raises(UserError, match=r"data\.dir=.*: toy/test\.txt not found in "):
        configured_data(TextData, settings)


def test_missing_files_without_a_download(words):
    with pytest.raises(UserError, match=r"data\.dir=null: toy/train\.txt, .*, and no download is described\.\nSet"):
        configured_data(TextData, words(dir=None))


def test_downloads_are_checked_and_kept(words, monkeypatch, tmp_path):
    settings = with_sums(words(download={"url": "https://example.org/toy"}))
    expected = {f"https://example.org/toy/{role}.txt": content for role, content in contents(settings).items()}
    asked = []
    monkeypatch.setattr(download, "fetch_file", lambda url: asked.append(url) or expected[url])
    settings["dir"] = str(tmp_path / "nowhere")
    first = TextData(**settings)
    assert asked == list(expected)
    assert TextData(**settings).fingerprint == first.fingerprint
    assert len(asked) == 3

    (tmp_path / "cache" / "files" / "toy" / "train.txt").write_bytes(b"damaged")
    assert TextData(**settings).fingerprint == first.fingerprint
    assert len(asked) == 6

    settings["files"]["test"]["sha256"] = "0" * 64
    with pytest.raises(UserError, match=r"data\.files\.test\.sha256=000000000000\.\.\.: test\.txt in the download"):
        configured_data(TextData, settings)


def test_a_corpus_is_encoded_once(words, characters, monkeypatch):
    first = [TextData(**settings()) for settings in (words, characters)]
    monkeypatch.setattr(Corpus, "_encode", lambda *_: pytest.fail("encoded again"))
    for data, settings in zip(first, (words, characters), strict=True):
        again = TextData(**settings(length=8, windows="sampled"))
        assert again.vocabulary == data.vocabulary
        assert again.fingerprint == data.fingerprint


def test_a_damaged_entry_is_encoded_anew(words, tmp_path):
    data = TextData(**words())
    (entry,) = (tmp_path / "cache" / "tokens").iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(whole[:-7])
    again = TextData(**words())
    assert again.train_batch(0, 4, 0).inputs.equal(data.train_batch(0, 4, 0).inputs)
    assert entry.read_bytes() == whole


def test_whatever_changes_the_tokens_changes_the_fingerprint(words, characters):
    prints = [TextData(**characters()).fingerprint, TextData(**characters(fractions=[0.6, 0.2, 0.2])).fingerprint]
    prints += [TextData(**words()).fingerprint, TextData(**words(unit="character")).fingerprint]
    path = Path(words()["dir"]) / "toy" / "train.txt"
    path.write_bytes(path.read_bytes() + b"a\n")
    prints.append(TextData(**words()).fingerprint)
    assert len(set(prints)) == 5


def as_windows_writes(content: bytes) -> bytes:
    return b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n")


@pytest.mark.parametrize("unit", ["word", "character"])
@pytest.mark.parametrize("way", ["folder", "url", "hub"])
def test_a_byte_order_mark_and_windows_line_ends_change_nothing(words, monkeypatch, unit, way):
    """However a text comes, the same tokens, fingerprint and entry of the cache; its sum is that of the bytes."""
    settings = words(unit=unit)
    expected = TextData(**settings)
    marked = {role: as_windows_writes(content) for role, content in contents(settings).items()}
    if way == "folder":
        for role, content in marked.items():
            (Path(settings["dir"]) / "toy" / f"{role}.txt").write_bytes(content)
        settings = with_sums(settings)
    elif way == "url":
        monkeypatch.setattr(download, "fetch_file", lambda url: marked[Path(url).stem])
        settings |= {"dir": None, "download": {"url": "https://example.org/toy"}}
    else:
        rows = {role: content.decode().split("\n")[:-1] for role, content in marked.items()}
        monkeypatch.setattr(download, "fetch_rows", lambda *_: rows)
        settings |= {"dir": None, "download": {"hub": "a/b", "revision": "c", "row_end": "\n"}}
    data = TextData(**settings)
    assert data.vocabulary == expected.vocabulary and not {"\r", "\ufeff"} & set("".join(data.vocabulary))
    assert data.fingerprint == expected.fingerprint
    assert len(list((Path(settings["cache_dir"]) / "tokens").iterdir())) == 1
    for split in ("validation", "test"):
        batches = zip(data.evaluation_batches(split, 64), expected.evaluation_batches(split, 64), strict=True)
        assert all(one.targets.equal(other.targets) for one, other in batches)
    assert data.encode("\ufeffthe cat\r\n").equal(expected.encode("the cat\n"))


def test_an_entry_that_was_encoded_with_the_marks_is_not_read(words, monkeypatch):
    """A cache filled by an earlier version holds such a text under the sum of its bytes."""
    settings = words(unit="character")
    content = as_windows_writes(contents(settings)["train"])
    (Path(settings["dir"]) / "toy" / "train.txt").write_bytes(content)
    with monkeypatch.context() as earlier:
        earlier.setattr(corpora, "plain", lambda text: text)
        assert "\r" in TextData(**settings).vocabulary
    assert "\r" not in TextData(**settings).vocabulary
