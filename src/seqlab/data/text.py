"""Language modelling of a published corpus, whose files and sizes are known."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal

from pydantic import PositiveInt

from seqlab.data.corpora import Corpus
from seqlab.data.encoding import Vocabulary
from seqlab.data.windows import TextWindows, Windows


class TextData(TextWindows):
    """Windows of tokens of a text corpus, and the tokens that follow them.

    By characters and with ``length`` 4, the text "To be, or" holds such windows as::

        inputs    T o _ b     the training stream draws windows at random (``sampled``), or lays them end to end
        targets   o _ b e     from a random phase and hands them out in random order (``contiguous``)

    ``contiguous`` training windows treat the split as a ring, its first token following its last, so that every epoch
    has the same number of them. In an epoch every token is predicted once, except fewer than ``length`` tokens, which
    differ from epoch to epoch. ``carried`` reads on from batch to batch, as ``TextWindows`` says. Validation and test
    windows start at the first token, do not overlap and end with the last token.

    A byte order mark is dropped and CR LF becomes LF; ``sha256`` is that of the file's bytes as they are.

    Args:
        name: of the corpus, for messages and file names.
        unit: what a token is. Words are separated by white space, and each line ends with ``<eos>``; bytes are those of
            the files, of any kind.
        folder: of the corpus's files, below ``dir``.
        files: ``file`` (a name in the folder), ``sha256`` or ``sha1`` and ``tokens`` for each of train, validation and
            test, or for ``all`` when ``fractions`` splits one file. Leave out the sum to take a file as it is.
        fractions: shares of the characters, or bytes, of the one file that go to train, validation and test, in order;
            of two the second goes to validation and test alike, as some published figures are.
        vocab_size: the number of different tokens that the corpus must have; None for any.
        download: source of files that ``dir`` does not have, as in ``seqlab.data.download.fetch``.
        dir: the folder that contains the folders of corpora.
        cache_dir: folder for encoded corpora and downloads; by default ``$SEQLAB_CACHE_DIR`` or ``~/.cache/seqlab``.
        length: positions in a window.
        windows: how the training stream chooses windows.
        metrics: what to measure besides the loss, by name.

    Raises:
        UserError: a split is not longer than ``length``, or the corpus cannot be read (``Corpus.encoded``).
    """

    def __init__(
        self,
        *,
        name: str,
        unit: Literal["character", "byte", "word"],
        folder: str,
        files: dict[str, dict[str, Any]],
        length: int,
        windows: Windows,
        fractions: list[float] | None = None,
        vocab_size: PositiveInt | None = None,
        download: dict[str, Any] | None = None,
        dir: str | None = None,
        cache_dir: str | None = None,
        metrics: dict[str, Any] | None = None,
    ):
        corpus = Corpus(name, unit, folder, files, fractions, vocab_size, download, dir, cache_dir)
        self._key, encoded, sizes = corpus.encoded()
        self._splits, self._bytes = encoded.splits, sizes
        super().__init__(name, Vocabulary(encoded.vocabulary, unit), length, windows, metrics)
        self.check_sizes()

    @staticmethod
    def find(settings: Mapping[str, Any]) -> None:
        """Find the files that would be read, with these settings; those that are not there are downloaded.

        Raises:
            UserError: they cannot be had.
        """
        given = {**settings, "source": settings.get("download")}
        Corpus(**{one.name: given.get(one.name) for one in fields(Corpus)}).find()

    @property
    def fingerprint(self) -> str:
        """A hash of the tokens of all splits; it does not depend on the windows."""
        return self._key[:12]
