"""Documents of one's own text, and what its tokens say that they were."""

import random

from seqlab.data.own_text import OwnText


def text_of(number: int) -> str:
    """One of many short documents, all different; in some are characters of several bytes."""
    words = random.Random(number).choices(
        ["naïve", "dog", "Ω", "the", "sees", "cat", "don't", "1789", "日本", "."], k=12
    )
    return f"{number} {' '.join(words)}\n"


def stream(data: OwnText, split: str) -> list[int]:
    """All tokens of a split, through its windows."""
    batches = list(data.evaluation_batches(split, 1))
    return [*batches[0].inputs.flatten()[:1].tolist(), *(i for b in batches for i in b.targets.flatten().tolist())]


def documents_of(data: OwnText, split: str) -> list[str]:
    """The texts between the tokens that end documents; one stands before the first too."""
    ids, found = stream(data, split), []
    assert ids[0] == ids[-1] == data.end_of_document
    for i in ids:
        if i == data.end_of_document:
            found.append([])
        else:
            found[-1].append(i)
    return [data.decode(one) for one in found[:-1]]
