"""Our vocabularies as a ``tokenizer.json`` of the library ``tokenizers``: the same ids of a text, and text of ids.

What is not in the vocabulary is an error there as here, unless that has ``<unk>``. No symbol is a special token: those
are found within words too.
"""

import re
from functools import cache
from typing import TYPE_CHECKING

from seqlab.data.encoding import BYTE_ORDER_MARK, END_OF_LINE, UNKNOWN

if TYPE_CHECKING:
    from tokenizers import Tokenizer


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


BY_UNIT = {"character": by_characters, "word": by_words}
"""The tokenizer of a vocabulary's symbols, by its unit."""
