"""Encoded corpora on disk: one file each, written whole or not at all, and memory-mapped.

    <SHA-256 of all that follows, in hexadecimal>\\n
    {"vocabulary": ["the", ...], "dtype": "<u2", "lengths": {"train": 2088628, ...}}     \\n
    <the tokens of each split, little-endian, one split after the other>

The second line is padded so that the tokens start at a multiple of 64 bytes.
"""

import errno
import hashlib
import json
import os
import secrets
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from seqlab.errors import UserError

SUM_LENGTH = 65
ALIGNMENT = 64
DTYPES = ("<u2", "<u4")
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


@dataclass(frozen=True)
class Encoded:
    """The vocabulary of a corpus, and the tokens of each split as indices into it: (N,) uint16 or uint32."""

    vocabulary: list[str]
    splits: dict[str, np.ndarray]


def cache_folder(cache_dir: str | None) -> Path:
    """The folder given, else that in ``SEQLAB_CACHE_DIR``, else ``~/.cache/seqlab``."""
    return Path(cache_dir or os.environ.get("SEQLAB_CACHE_DIR") or "~/.cache/seqlab").expanduser()


def below(folder: Path, name: str | Path, key: str) -> Path:
    """A file to write beneath a folder of the cache; a name that leads out of it is refused, whoever wrote it."""
    path = folder / name
    if not Path(os.path.normpath(path)).is_relative_to(os.path.normpath(folder)):
        remedy = "Write a name without .. and without / in front, or give the files with data.dir=..."
        raise UserError(key, name, f"leads out of {folder}, where it would be written", remedy)
    return path


def store(path: Path, encoded: Encoded) -> None:
    """Write an entry under a temporary name and rename it, so that nobody ever sees half of one."""
    dtype = np.dtype(DTYPES[len(encoded.vocabulary) > 2**16])
    lengths = {split: len(tokens) for split, tokens in encoded.splits.items()}
    header = json.dumps({"vocabulary": encoded.vocabulary, "dtype": dtype.str, "lengths": lengths}).encode()
    header += b" " * (-(SUM_LENGTH + len(header) + 1) % ALIGNMENT) + b"\n"
    body = [tokens.astype(dtype).tobytes() for tokens in encoded.splits.values()]
    digest = hashlib.sha256(header)
    for part in body:
        digest.update(part)
    write_whole(path, digest.hexdigest().encode() + b"\n", header, *body)


def load(path: Path) -> Encoded | None:
    """Map an entry into memory; None where there is none, or where it is damaged."""
    try:
        with path.open("rb") as file:
            expected = file.read(SUM_LENGTH).decode(errors="replace").strip()
            start = file.tell()
            if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                return None
            file.seek(start)
            header = file.readline()
    except FileNotFoundError:
        return None
    facts = json.loads(header)
    if facts["dtype"] not in DTYPES:
        return None
    tokens = np.memmap(path, dtype=facts["dtype"], mode="r", offset=start + len(header))
    ends = list(accumulate(facts["lengths"].values()))
    parts = np.split(np.asarray(tokens), ends[:-1])
    return Encoded(facts["vocabulary"], dict(zip(facts["lengths"], parts, strict=True)))


def write_whole(path: Path, *parts: bytes) -> None:
    """Write a file under a temporary name beside it, then rename it over whatever is there."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = temporary.open("xb")
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        rule = f"the cache folder cannot be written ({error.strerror})"
        remedy = "Name another with data.cache_dir=... or SEQLAB_CACHE_DIR"
        raise UserError("data.cache_dir", path.parent, rule, remedy) from error
    try:
        with file:
            file.writelines(parts)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
