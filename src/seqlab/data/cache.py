"""Encoded corpora on disk: one file each, written atomically and memory-mapped.

Symbols: N tokens. The layout of a file::

    <the tokens of all splits in a row, as ``numpy.save`` writes them>
    {"vocabulary": ["the", ...], "lengths": {"train": 2088628, ...}}
    <the 32 bytes of the SHA-256 of all before>

``numpy.load(path, mmap_mode="r")`` gives the tokens.
"""

import errno
import hashlib
import io
import json
import mmap
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from seqlab.errors import UserError

SUM_LENGTH = hashlib.sha256().digest_size
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT)


@dataclass(frozen=True)
class Encoded:
    """The vocabulary of a corpus, and the tokens of each split as indices into it: (N,) uint16 or uint32."""

    vocabulary: list[str]
    splits: dict[str, np.ndarray]


def cache_folder(cache_dir: str | None) -> Path:
    """``cache_dir``, else ``$SEQLAB_CACHE_DIR``, else ``~/.cache/seqlab``."""
    return Path(cache_dir or os.environ.get("SEQLAB_CACHE_DIR") or "~/.cache/seqlab").expanduser()


def below(folder: Path, name: str | Path, key: str) -> Path:
    """The path of a file to write below ``folder``; ``key`` is the setting that names it.

    Raises:
        UserError: the name leads out of the folder.
    """
    path = folder / name
    if not Path(os.path.normpath(path)).is_relative_to(os.path.normpath(folder)):
        remedy = "Write a name without .. and without / in front, or give the files with data.dir=..."
        raise UserError(key, name, f"leads out of {folder}, where it would be written", remedy)
    return path


def store(path: Path, encoded: Encoded) -> None:
    """Write an entry atomically."""
    dtype = "<u2" if len(encoded.vocabulary) <= 2**16 else "<u4"
    content = io.BytesIO()
    np.save(content, np.concatenate(list(encoded.splits.values())).astype(dtype))
    lengths = {split: len(tokens) for split, tokens in encoded.splits.items()}
    content.write(json.dumps({"vocabulary": encoded.vocabulary, "lengths": lengths}).encode())
    write_whole(path, content.getbuffer(), hashlib.sha256(content.getbuffer()).digest())


def load(path: Path) -> Encoded | None:
    """Map an entry into memory; None if there is none, or if it is damaged."""
    if not path.is_file() or path.stat().st_size < SUM_LENGTH:
        return None
    content = np.memmap(path, mode="r")
    if hashlib.sha256(content[:-SUM_LENGTH]).digest() != content[-SUM_LENGTH:].tobytes():
        return None
    tokens = np.load(path, mmap_mode="r")
    facts = json.loads(content[tokens.offset + tokens.nbytes : -SUM_LENGTH].tobytes())
    parts = np.split(np.asarray(tokens), list(accumulate(facts["lengths"].values()))[:-1])
    return Encoded(facts["vocabulary"], dict(zip(facts["lengths"], parts, strict=True)))


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Say in two lines that a folder of the cache cannot be written.

    Raises:
        UserError: in place of the system's refusal.
        OSError: another failure of the disk.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        rule = f"the cache folder cannot be written ({error.strerror})"
        remedy = "Name another with data.cache_dir=... or SEQLAB_CACHE_DIR"
        raise UserError("data.cache_dir", folder, rule, remedy) from error


def forget(tokens: np.ndarray) -> None:
    """Let go of the pages that were read of mapped tokens (N,): they stay in the system's cache, and are mapped anew.

    Otherwise the process's resident memory would grow up to the file's size. What is not mapped stays as it is.
    """
    while tokens is not None and not isinstance(tokens, mmap.mmap):
        tokens = getattr(tokens, "base", None)
    if tokens is not None and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        tokens.madvise(mmap.MADV_DONTNEED)


def write_whole(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file atomically: under a temporary name beside it, then renamed.

    Raises:
        UserError: the folder cannot be written.
        OSError: another failure of the disk, such as a full one.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with writable(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = temporary.open("xb")
    try:
        with file:
            file.writelines(parts)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
