"""The code in docs/ runs as it is written."""

import re
import shlex
import subprocess
import sys

import pytest

from support import LINES, ROOT

FEW = "trainer.epochs=null", "trainer.steps=2"


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


def commands(page: str) -> list[list[str]]:
    """The indented commands of a page, of one line or of several that a backslash joins."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8").replace("\\\n", " ")
    return [shlex.split(line) for line in re.findall(r"^    ((?:python|seqlab) .*)$", text, re.MULTILINE)]


@pytest.mark.long
@pytest.mark.parametrize("page", ["own_text", "fine_tuning", "paper_table"])
def test_the_commands_of_a_guide_run(page, tmp_path, environment, corpus, monkeypatch):
    """All of them in order, as they are written but for fewer steps and a smaller text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.txt").write_text("".join(f"{i} {line}\n" for i, line in enumerate(LINES.splitlines() * 20)))
    if page == "fine_tuning":
        pytest.importorskip("transformers")
        test_the_python_of_a_page_runs(page)
    typed = commands(page)
    assert len(typed) >= 2
    for command in typed:
        program, *rest = command
        start = [sys.executable, "-m", "seqlab"] if program == "seqlab" else [sys.executable, str(ROOT / rest.pop(0))]
        for sweep in tmp_path.glob("outputs/sweep*"):
            rest = [argument.replace("<sweep>", sweep.name) for argument in rest]
        if "train" in command or "train.py" in command:
            rest += [*FEW, *(corpus["tiny_shakespeare"][1:] if page == "paper_table" else [])]
        done = subprocess.run([*start, *rest], env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
    if page == "paper_table":
        names = "comparison.tex", "tiny_shakespeare_loss.svg", "comparison.csv", "differences.csv", "index.html"
        assert all((tmp_path / "table" / name).is_file() for name in names)
