"""Which documents are for training, validation and test."""

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, Protocol

from seqlab.data.documents import SPLITS, Document, cut
from seqlab.errors import UserError


class Source(Protocol):
    """Where documents come from.

    Attributes:
        name: for messages.
        size: bytes of all that is read; None if unknown.
        identity: what changes when the text may have changed, for JSON.
        paths: the parts that are given, train among them, as keys.
    """

    name: str
    size: int | None
    identity: list[Any]
    paths: dict[str, Any]

    def documents(self, role: str) -> Iterator[Document]:
        """The documents of a part."""

    def only_text(self) -> Any:
        """The text file that is all of the training text; None if that is several documents."""


def split_documents(source: Source, fractions: tuple[float, ...]) -> Iterator[tuple[str, Document]]:
    """Every document of a source, with the split that it is in.

    Parts that are given stay as they are. Of those that are not, validation and test are cut from the training text
    with their share in ``fractions``: by a hash of the document, so that equal documents are in one split, whatever
    else there is; one single text file by position, in the order train, validation, test, at the ends of lines.
    """
    wanted = dict(zip(SPLITS, fractions, strict=True))
    held_out = [split for split in SPLITS[1:] if split not in source.paths]
    if (path := source.only_text()) and held_out:
        shares = [1 - sum(wanted[split] for split in held_out), *(wanted[split] for split in held_out)]
        yield from zip(("train", *held_out), cut(path, shares), strict=True)
    else:
        for document in source.documents("train"):
            yield split_by_hash(document, {split: wanted[split] for split in held_out}), document
    for role in source.paths:
        if role != "train":
            yield from ((role, document) for document in source.documents(role))


def split_by_hash(document: Document, shares: dict[str, float]) -> str:
    """The split of a document, of those with a share, or train."""
    if not shares:
        return "train"
    content = blake2b(digest_size=8)
    for piece in document:
        content.update(piece.encode())
    place = int.from_bytes(content.digest()) / 2**64
    for split, share in shares.items():
        place -= share
        if place < 0:
            return split
    return "train"


def parse_fractions(fractions: list[float], *, or_two: bool = False) -> tuple[float, ...]:
    """Three shares, or two if these are allowed.

    Raises:
        UserError: they are not as many positive numbers that add up to 1.
    """
    if len(fractions) not in (3, 3 - or_two) or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        rule = "must be three positive shares (training, validation, test) that add up to 1"
        rule += ", or two, of which the second is validation and test alike" * or_two
        raise UserError("fractions", list(fractions), rule, "For example fractions=[0.8,0.1,0.1]")
    return tuple(fractions)
