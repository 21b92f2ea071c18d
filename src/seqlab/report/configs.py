"""``config.yaml`` of many runs, whose sections are alike for the most part: each different section is parsed once."""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Generic, TypeVar

import yaml

from seqlab.config.renamed import with_present_names

T = TypeVar("T")

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

SECTION = re.compile(rb"^(?=[A-Za-z_]\w*:[ \n])", re.MULTILINE)
"""Where a top-level key begins, as ``yaml.safe_dump`` writes it."""

SEVERAL_DOCUMENTS = re.compile(rb"^(?:---|\.\.\.|%)", re.MULTILINE)


def load(content: bytes) -> Any:
    """What YAML says. Sections that two files share are the same object in both, so nobody may change one.

    Raises:
        yaml.YAMLError: it cannot be parsed.
    """
    nothing, *sections = SECTION.split(content)
    if nothing or not sections or SEVERAL_DOCUMENTS.search(content):
        return with_present_names(yaml.load(content, LOADER))
    config: dict[str, Any] = {}
    try:
        for section in sections:
            config |= load_section(section)
    except (yaml.YAMLError, ValueError):  # one that only the whole file can explain, by its anchors perhaps
        return with_present_names(yaml.load(content, LOADER))
    return config


@lru_cache(maxsize=4096)
def load_section(content: bytes) -> dict[str, Any]:
    """A top-level key with all that is beneath it."""
    return with_present_names(yaml.load(content, LOADER))


class BySection(Generic[T]):
    """What is worked out of a section once, however many configurations share it.

    Args:
        work: given the section's key and what is beneath it.
    """

    def __init__(self, work: Callable[[str, Any], T]):
        self.work = work
        self.known: dict[tuple[str, int], tuple[Any, T]] = {}

    def __call__(self, key: str, section: Any) -> T:
        place = key, id(section)
        if place not in self.known:
            self.known[place] = section, self.work(key, section)  # kept, so that nothing else gets its id
        return self.known[place][1]
