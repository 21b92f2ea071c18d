"""The notebook in docs/ runs as it is written, and shows what it shows there.

``jupyter nbconvert --to notebook --execute --inplace docs/first_comparison.ipynb`` makes its outputs anew. Here its
cells run in a forked process that has imported torch: a kernel takes as long to start as all of them together.
"""

import json

import forks
from support import ROOT

NOTEBOOK = ROOT / "docs" / "first_comparison.ipynb"


def code_cells() -> list[dict]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def run_cells() -> None:
    """Print for each cell a line of JSON: what it printed, its displays, how often one was drawn again, its result."""
    import rich
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    from seqlab import console  # noqa: F401  # which makes the shared console

    rich.get_console().is_jupyter = True  # as in a kernel
    shell = InteractiveShell.instance()
    shell.displayhook.write_output_prompt = shell.displayhook.write_format_data = lambda *data: None
    for cell in code_cells():
        with capture_output() as shown:
            done = shell.run_cell("".join(cell["source"]))
        done.raise_error()
        displays = [sorted(one.data) for one in shown.outputs if not one.update]
        result = {} if done.result is None else shell.display_formatter.format(done.result)[0]
        print(json.dumps([shown.stdout.strip(), displays, len(shown.outputs) - len(displays), result]))


def test_the_notebook_shows_what_it_showed(tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.chdir(tmp_path)
    status, said = forks.finish(tmp_path / "screen", run_cells)
    assert status == 0, said
    for cell, line in zip(code_cells(), said.splitlines(), strict=True):
        before = {kind: [one for one in cell["outputs"] if one["output_type"] == kind] for kind in
                  ("stream", "display_data", "execute_result")}  # fmt: skip
        printed, displays, redrawn, result = json.loads(line)
        assert printed == "".join(text for one in before["stream"] for text in one["text"]).strip()
        assert displays == [sorted(one["data"]) for one in before["display_data"]]
        assert redrawn >= len(displays)  # progress bars
        assert sorted(result) == [kind for one in before["execute_result"] for kind in sorted(one["data"])]
        if cell["id"] == "comparison":
            assert "gru is better" in result["text/html"]
            assert 'src="data:image/png;base64,' in result["text/html"]
