"""The code in docs/ runs as it is written."""

import re

import pytest

from support import ROOT


@pytest.mark.parametrize("page", ["selective_scan"])
def test_the_python_of_a_page_runs(page):
    """All blocks of a page in order, as one program whose line numbers are the page's."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    program, line = "", 0
    for block in blocks:
        begins = text[: block.start(1)].count("\n")
        program += "\n" * (begins - line) + block[1]
        line = begins + block[1].count("\n")
    assert program
    exec(compile(program, f"docs/{page}.md", "exec"), {})
