"""Our vocabularies as a ``tokenizer.json`` of the library ``tokenizers``: the same ids of a text, and text of ids.

What is not in the vocabulary is an error there as here, unless that has ``<unk>``. Special tokens are found within
words too, so no symbol is one but for what ends a document.
"""

import re
from functools import cache
from typing import TYPE_CHECKING

from seqlab.data.encoding import BYTE_ORDER_MARK, END_OF_LINE, UNKNOWN

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def tokenizer_of(symbols: list[str], unit: str, end: int | None = None) -> "Tokenizer | None":
    """The tokenizer whose tokens are the symbols of a vocabulary by their index; None for a unit that is not known.

    Args:
        symbols: of the vocabulary.
        unit: what a symbol is: ``character``, ``byte`` (number i is ``chr(i)``) or ``word``.
        end: the one that ends a document, if there is one; a text that holds it has it.
    """
    if (make := BY_UNIT.get(unit)) is None:
        return None
    tokenizer = make(symbols)
    if end is not None:
        tokenizer.add_special_tokens([symbols[end]])
    return tokenizer


@cache
def white_space() -> str:
    """A pattern for where ``str.split`` separates words; Unicode's property White_Space has less."""
    return "".join(f"\\x{{{code:x}}}" for code in range(0x110000) if chr(code).isspace())


def by_characters(symbols: list[str]) -> "Tokenizer":
    """A tokenizer whose tokens are characters, and ``symbols[i]`` is number i."""
    from tokenizers import Regex, decoders, pre_tokenizers

    tokenizer = of_plain_text(symbols)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def by_bytes(symbols: list[str]) -> "Tokenizer":
    """A tokenizer whose tokens are the bytes of UTF-8, of which GPT-2 made characters that are visible."""
    from tokenizers import Regex, decoders, pre_tokenizers

    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = {byte: chr(256 + i) for i, byte in enumerate(sorted(set(range(256)) - visible))}
    tokenizer = of_plain_text([others.get(i, symbol) for i, symbol in enumerate(symbols)])
    each = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([to_bytes, each])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def by_words(symbols: list[str]) -> "Tokenizer":
    """A tokenizer whose tokens are words between white space, and ``<eos>`` for each end of a line."""
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    tokenizer = of_plain_text(symbols)
    ends = normalizers.Replace("\n", f" {END_OF_LINE} ")
    tokenizer.normalizer = normalizers.Sequence([tokenizer.normalizer, ends])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"[{white_space()}]+"), "removed")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(Regex(rf"\A{re.escape(END_OF_LINE)}\z"), "\n"),
            decoders.WordPiece(prefix="\n\n", cleanup=False),  # a space before each but the first; none begins so
            decoders.Fuse(),
            decoders.Replace(Regex(" ?\n ?"), "\n"),
        ]
    )
    return tokenizer


def of_plain_text(symbols: list[str]) -> "Tokenizer":
    """A tokenizer that treats a byte order mark and line ends as ``seqlab.data.encoding.plain`` does."""
    from tokenizers import Regex, Tokenizer, models, normalizers

    ids = {symbol: i for i, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    mark = normalizers.Replace(Regex(rf"\A{BYTE_ORDER_MARK}"), "")
    tokenizer.normalizer = normalizers.Sequence([mark, normalizers.Replace("\r\n", "\n")])
    return tokenizer


BY_UNIT = {"character": by_characters, "byte": by_bytes, "word": by_words}
