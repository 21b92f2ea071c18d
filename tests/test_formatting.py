"""Numbers in words."""

import ast
import re
from pathlib import Path

import pytest

from seqlab.errors import Diverged
from seqlab.formatting import counted

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("number", "words"), [(0, "0 seeds"), (1, "1 seed"), (2, "2 seeds"), (10_000, "10,000 seeds")])
def test_one_thing_has_no_plural(number, words):
    assert counted(number, "seed") == words


def test_a_run_that_gives_up_at_once_says_so_in_the_singular(tmp_path):
    assert "not finite in 1 step in a row" in str(Diverged(7, 1, tmp_path))


def test_threads_are_counted_in_one_way_everywhere():
    """Of the scripts and of what a run writes: no count of threads has its noun beside it."""
    found = []
    for path in [*ROOT.glob("scripts/*.py"), *(ROOT / "src" / "seqlab").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                text = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
                found += [f"{path.name}: {text}"] if re.search(r"\{\} threads\b", text) else []
    assert found == []
