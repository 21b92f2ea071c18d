"""Names as a picture shows them: short, printable, wrapped."""

import textwrap
from collections.abc import Sequence

MOST_LINES = 4


def plain(text: str, longest: int = 70) -> str:
    """Text for matplotlib: printable, in a few lines, and without an underscore at the start, which hides a label."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    if len(text) > longest:
        text = textwrap.fill(text, longest, max_lines=MOST_LINES, placeholder="…")
    return f" {text}" if text.startswith("_") else text


def shortened(texts: Sequence[str], longest: int) -> list[str]:
    """Names of at most about ``longest`` letters: without their common beginning, then without ends.

    Names that differ later than at ``longest`` letters stay as long as it takes to distinguish them.
    """
    if max(map(len, texts), default=0) <= longest:
        return list(texts)
    different = list(dict.fromkeys(texts))
    common = alike_for(different) if len(different) > 1 else 0
    bodies = {text: text if common < 2 else f"…{text[common:]}" for text in different}

    def cut(text: str) -> str:
        body = bodies[text]
        alike = (alike_for([body, other]) for one, other in bodies.items() if one != text)
        end = max(longest - 1, *(n + 1 for n in alike), 0)
        return body if end >= len(body) - 1 else f"{body[:end]}…"

    return [cut(text) for text in texts]


def alike_for(texts: Sequence[str]) -> int:
    """How many letters all texts share at the beginning."""
    columns = zip(*texts, strict=False)
    return next((i for i, letters in enumerate(columns) if len(set(letters)) > 1), min(map(len, texts)))
