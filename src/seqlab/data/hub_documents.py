"""Documents of a data set on the Hugging Face hub, or in a folder that its library reads as one.

The libraries are imported only when something is read, since that takes a second.
"""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from seqlab.data.documents import SPLITS, Document, Record
from seqlab.data.download import CONNECT_SECONDS, quiet
from seqlab.data.encoding import plain
from seqlab.errors import UserError

LARGE = 5 * 10**9
"""Bytes of a data set from which on it is streamed, as one of unknown size is, and not kept on the disk."""

NAMES = {**{split: split for split in SPLITS}, **dict.fromkeys(("valid", "val", "dev"), "validation")}
"""The names that splits have on the hub, with ours."""


class Hub:
    """The rows of a data set's splits, each a document; nothing is read before it is needed.

    Args:
        name: of the data set, or its folder.
        config: its configuration, where it has several.
        revision: a commit, tag or branch; None for the newest when it is first read.
        field: the column with the text.
        streaming: read it from the network each time; None where it is larger than ``LARGE``.
    """

    def __init__(self, name: str, config: str | None, revision: str | None, field: str, streaming: bool | None):
        self.name, self.config, self.revision, self.field, self.streaming = name, config, revision, field, streaming
        self.identity: list[Any] = ["hub", name, config, revision, field]

    @cached_property
    def _loaded(self) -> tuple[dict[str, Any], int | None]:
        """The data set's splits, and its size in bytes if that is known."""
        import datasets
        from huggingface_hub import constants, utils

        where = {"path": self.name, "name": self.config, "revision": self.revision}
        with self._refused(), quiet(datasets, utils):
            if not (datasets.config.HF_HUB_OFFLINE or Path(self.name).is_dir()):
                utils.get_session().head(constants.ENDPOINT, timeout=CONNECT_SECONDS)  # the library would try at length
            size = datasets.load_dataset_builder(**where).info.dataset_size
            streaming = (size or LARGE) >= LARGE if self.streaming is None else self.streaming
            return dict(datasets.load_dataset(**where, streaming=streaming)), size

    @contextmanager
    def _refused(self) -> Iterator[None]:
        """Say in two lines that a data set cannot be had, whatever its libraries raise.

        Raises:
            UserError: in place of their errors.
        """
        try:
            yield
        except Exception as error:
            why = textwrap.shorten(str(error), 160, placeholder=" ...")
            rule = f"cannot be read ({type(error).__name__}: {why})"
            remedy = "Check its name, config=... and the network, or give the text with files=..."
            raise UserError("hub", self.name, rule, remedy) from error

    @cached_property
    def paths(self) -> dict[str, str]:
        """The data set's name of each split that it has, train among them.

        Raises:
            UserError: it has none for training.
        """
        found = {NAMES[name]: name for name in self._loaded[0] if name in NAMES}
        if "train" not in found:
            rule = f"has the splits {', '.join(self._loaded[0])}, and none is train"
            raise UserError(
                "hub", self.name, rule, "Choose another data set or config=..., or download it for files=..."
            )
        return {split: found[split] for split in SPLITS if split in found}

    @property
    def size(self) -> int | None:
        """Bytes of all splits, if they are known."""
        return self._loaded[1]

    def documents(self, role: str) -> Iterator[Document]:
        """The documents of a split.

        Raises:
            UserError: a row has no text in the field.
        """
        with self._refused():
            rows = iter(self._loaded[0][self.paths[role]])
        while True:
            with self._refused():
                row = next(rows, None)
            if row is None:
                return
            value = row.get(self.field)
            if self.field not in row or not isinstance(value, str | None):
                has = ", ".join(f"{name}" for name, each in row.items() if isinstance(each, str)) or "none"
                rule = f"of the columns of {self.name} with text in them there are: {has}"
                raise UserError("field", self.field, rule, "Name the one to take with field=...")
            if value and (text := plain(value)):
                yield Record(text)

    def only_text(self) -> None:
        """None: rows are documents."""
