"""Cache entries: whole or not there, whatever happens to them and however many write them."""

import errno
import hashlib
from pathlib import Path

import numpy as np
import pytest

import forks
from seqlab.data.cache import Encoded, cache_folder, load, store, write_whole
from seqlab.errors import UserError


def corpus(size: int = 5) -> Encoded:
    vocabulary = [f"wörd {i}\n" for i in range(size)]
    rng = np.random.default_rng(0)
    return Encoded(vocabulary, {"train": rng.integers(0, size, 100), "test": rng.integers(0, size, 17)})


def mapped(array: np.ndarray) -> bool:
    """Whether an array is a view of a memory map."""
    while isinstance(array, np.ndarray) and not isinstance(array, np.memmap):
        array = array.base
    return isinstance(array, np.memmap)


@pytest.mark.parametrize("size, dtype", [(5, np.uint16), (2**16, np.uint16), (2**16 + 1, np.uint32)])
def test_what_was_stored_comes_back_memory_mapped(tmp_path, size, dtype):
    encoded = corpus(size)
    store(tmp_path / "new" / "entry", encoded)
    loaded = load(tmp_path / "new" / "entry")
    assert loaded.vocabulary == encoded.vocabulary
    assert list(loaded.splits) == ["train", "test"]
    for split, tokens in loaded.splits.items():
        assert tokens.dtype == dtype
        assert mapped(tokens)
        assert np.array_equal(tokens, encoded.splits[split])


def test_the_tokens_are_aligned(tmp_path):
    for length in range(1, 70):
        encoded = Encoded(["v" * length], {"train": np.zeros(3, np.int64)})
        store(tmp_path / "entry", encoded)
        loaded = load(tmp_path / "entry")
        assert loaded.splits["train"].ctypes.data % 64 == 0
        assert loaded.vocabulary == encoded.vocabulary


def test_numpy_reads_the_tokens(tmp_path):
    encoded = corpus()
    store(tmp_path / "entry", encoded)
    assert np.array_equal(np.load(tmp_path / "entry"), np.concatenate(list(encoded.splits.values())))


def test_an_absent_entry_is_none(tmp_path):
    assert load(tmp_path / "entry") is None


def test_an_entry_of_the_former_format_is_none(tmp_path):
    rest = b'{"vocabulary": ["a"], "dtype": "<u2", "lengths": {"train": 3}}\n' + bytes(6)
    (tmp_path / "entry").write_bytes(hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest)
    assert load(tmp_path / "entry") is None


@pytest.mark.parametrize("place", [0, 70, 200, -1])
def test_a_flipped_bit_is_noticed(tmp_path, place):
    path = tmp_path / "entry"
    store(path, corpus())
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert load(path) is None


@pytest.mark.parametrize("length", [0, 10, 65, 100, -1])
def test_a_truncated_entry_is_noticed(tmp_path, length):
    path = tmp_path / "entry"
    store(path, corpus())
    path.write_bytes(path.read_bytes()[:length])
    assert load(path) is None


def test_a_failed_write_leaves_nothing(tmp_path):
    def parts():
        yield b"half"
        raise OSError(errno.ENOSPC, "No space left on device")

    write_whole(tmp_path / "entry", b"before")
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "entry", *[b"half"], *parts())
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]
    assert (tmp_path / "entry").read_bytes() == b"before"


def test_a_full_disk_is_not_disguised(tmp_path, monkeypatch):
    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def writelines(self, parts):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.open", lambda *_: Full())
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "entry", b"content")


def test_a_folder_that_cannot_be_written_is_the_users_to_mend(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"data\.cache_dir=.*file: the cache folder cannot be written"):
        write_whole(tmp_path / "file" / "entry", b"content")


def test_the_argument_comes_before_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SEQLAB_CACHE_DIR", "/from/environment")
    assert str(cache_folder("/given")) == "/given"
    assert str(cache_folder(None)) == "/from/environment"
    monkeypatch.delenv("SEQLAB_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / ".cache" / "seqlab"


def write_and_read(path: Path) -> None:
    encoded = Encoded(["a", "b"], {"train": np.arange(200_000) % 2})
    for _ in range(40):
        store(path, encoded)
        assert load(path).splits["train"].sum() == 100_000


def test_processes_that_write_one_entry_at_once_leave_a_whole_one(tmp_path):
    path = tmp_path / "folder" / "entry"
    jobs = [forks.start(tmp_path / "screen", write_and_read, path) for _ in range(2)]
    for job in jobs:
        job.join()
    assert ([job.exitcode for job in jobs], (tmp_path / "screen").read_text()) == ([0, 0], "")
    assert [path.name for path in path.parent.iterdir()] == ["entry"]
