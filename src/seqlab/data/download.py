"""Corpus files from the network: plain files below a pinned address, or rows of a data set on the Hugging Face hub.

The libraries are imported only when something is fetched, since that takes a second.
"""

import errno
import logging
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from typing import Any
from zipfile import ZipFile

from seqlab.errors import UserError

CONNECT_SECONDS = 10
ADDRESSES = ({"url"}, {"zip"})
HUB_KEYS = {"hub", "config", "revision", "blank_row", "row_end"}


class DownloadError(Exception):
    """The files could not be fetched; the message is one short line."""


def check_source(source: Mapping[str, Any]) -> None:
    """Check the keys of a ``source`` of ``fetch``.

    Raises:
        UserError: it describes neither an address nor a data set on the hub.
    """
    if set(source) not in ADDRESSES and not {"hub", "revision"} <= set(source) <= HUB_KEYS:
        rule = "must be either `url`, or `zip`, or `hub` and `revision` (and if need be config, blank_row, row_end)"
        remedy = "Correct the data YAML, or set download=null and give the files with dir=..."
        raise UserError("download", dict(source), rule, remedy)


def fetch(source: Mapping[str, Any], files: Mapping[str, str]) -> dict[str, bytes]:
    """The contents of a corpus's files, by role.

    Args:
        source: where they are. ``url``: the address of the folder that holds them. Or ``zip``: that of an archive of
            them. Or ``hub``, ``config`` and
            ``revision``: a data set with a column ``text``, whose split ``train`` is the file if there is only one;
            ``blank_row`` and ``row_end`` are as in ``join_rows``.
        files: the name of the file for each role (train, validation, test, or all).

    Raises:
        DownloadError: any failure but a full disk.
        OSError: the disk is full.
    """
    try:
        if "url" in source:
            return {role: fetch_file(source["url"].rstrip("/") + "/" + name) for role, name in files.items()}
        if "zip" in source:
            with ZipFile(BytesIO(fetch_file(source["zip"]))) as archive:
                return {role: archive.read(name) for role, name in files.items()}
        splits = {role: "train" if role == "all" else role for role in files}
        rows = fetch_rows(source["hub"], source.get("config"), source["revision"], set(splits.values()))
        blank, end = source.get("blank_row", ""), source.get("row_end", "")
        return {role: join_rows(rows[split], blank, end) for role, split in splits.items()}
    except Exception as error:  # each network library has errors of its own
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        reason = textwrap.shorten(str(error), 120, placeholder=" ...")
        raise DownloadError(f"{type(error).__name__}: {reason}") from error


def fetch_file(url: str) -> bytes:
    """The bytes at an address."""
    from huggingface_hub.utils import get_session

    with quiet():
        response = get_session().get(url, timeout=CONNECT_SECONDS)
        response.raise_for_status()
        return response.content


def fetch_rows(hub: str, config: str | None, revision: str, splits: set[str]) -> dict[str, list[str]]:
    """The rows of a data set on the hub, by split; from the library's own cache if they are there."""
    import datasets
    from huggingface_hub import constants, utils

    with quiet(datasets, utils):
        if not datasets.config.HF_HUB_OFFLINE:
            utils.get_session().head(constants.ENDPOINT, timeout=CONNECT_SECONDS)  # load_dataset would retry at length
        loaded = datasets.load_dataset(hub, config, revision=revision)
        return {split: loaded[split][:]["text"] for split in splits}


def join_rows(rows: Iterable[str], blank: str, end: str) -> bytes:
    """The bytes of the file that was cut into these rows.

    Args:
        blank: the text of an empty row.
        end: what was cut from the end of every row.
    """
    return "".join((row or blank) + end for row in rows).encode()


@contextmanager
def quiet(*libraries: Any) -> Iterator[None]:
    """Keep the download libraries' messages, and the progress bars of those given, off the terminal."""
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub", "httpx", "httpx2")]
    levels = [logger.level for logger in loggers]
    shown = [library for library in libraries if not library.are_progress_bars_disabled()]
    for library in shown:
        library.disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for library in shown:
            library.enable_progress_bars()
