"""scripts/compare.py as a person runs it: what it leaves, what it refuses, and how long it takes."""

import json
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import rich

from seqlab.benchmarks.run_trees import write_run
from seqlab.commands import compare as command
from seqlab.report import page, plots
from support import ROOT

SCRIPT = ROOT / "scripts" / "compare.py"


@pytest.fixture
def compare(monkeypatch, tmp_path, capsys):
    """Run the script with arguments in this process and this folder; returns its exit status, output and errors.

    Pictures and the page have tests of their own and are left out here.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plots, "write", lambda comparison, folder: [])
    monkeypatch.setattr(page, "write", lambda comparison, folder: folder / "index.html")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return exit_info.value.code, *capsys.readouterr()

    return run


def test_everything_under_outputs_is_compared_without_arguments(compare, tmp_path):
    for seed in (1, 2):
        write_run(tmp_path / "outputs" / "sweep" / f"seed={seed}", seed=seed)
    status, out, errors = compare()
    assert (status, errors) == (0, "")
    (folder,) = (tmp_path / "outputs" / "comparisons").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", folder.name)
    assert {path.name for path in folder.iterdir()} == {
        *("comparison.csv", "differences.csv", "comparison.md", "comparison.tex")
    }
    assert f"Written to {folder.relative_to(tmp_path)}: comparison.csv, differences.csv, " in out
    status, out, _ = compare("--out", "outputs/again")
    status, out, _ = compare("outputs", "--out", "third")
    assert status == 0
    assert "Passed over" not in out


def test_a_shell_that_expands_globs_gives_the_same(compare, tmp_path):
    write_run(tmp_path / "sweep" / "seed=1")
    (tmp_path / "sweep" / "multirun.yaml").write_text("hydra: {}\n")
    (tmp_path / "sweep" / "sweep.json").write_text("{}\n")
    status, out, _ = compare("sweep/multirun.yaml", "sweep/seed=1", "sweep/sweep.json", "--out", "here")
    assert status == 0
    assert "Passed over" not in out


def test_without_the_plots_extra_there_are_tables(compare, monkeypatch, tmp_path):
    absent = ("matplotlib", "plotly")
    monkeypatch.setattr(command, "find_spec", lambda name: None if name in absent else name)
    write_run(tmp_path / "run")
    status, out, errors = compare("run", "--out", "here")
    assert status == 0
    assert "Written to here: comparison.csv, differences.csv, comparison.md, comparison.tex\n" in out
    for name in absent:
        assert re.search(rf"^No .* without {name}: pip install 'seqlab\[plots\]' adds it\.$", errors, re.MULTILINE)


def test_runs_that_are_not_alike_are_named_and_strict_refuses_them(compare, tmp_path):
    write_run(tmp_path / "a", model="mamba")
    write_run(tmp_path / "b", model="lstm", tokens=1)
    status, out, _ = compare(".", "--out", "here")
    assert status == 0
    assert out.index("The runs differ in tokens seen. ") < out.index("synthetic: results")
    status, out, errors = compare(".", "--out", "there", "--strict")
    assert (status, out) == (2, "")
    assert errors.startswith("folder=.: the runs there differ in tokens seen. ")
    assert "--strict" in errors and "1: lstm" in errors
    assert len(errors.splitlines()) <= 2
    assert not Path("there").exists()
    assert compare("a", "--out", "there", "--strict")[0] == 0


def test_equal_budgets(compare, tmp_path):
    write_run(tmp_path / "runs" / "a")
    write_run(tmp_path / "runs" / "b", seed=2)
    status, out, _ = compare("runs", "--at", "tokens=12000", "--out", "here")
    assert status == 0
    assert "validation loss at 12.0 k tokens" in " ".join(out.split())
    status, out, _ = compare("runs", "--at", "params", "--out", "here")
    assert status == 0
    assert "At equal parameters" in out


def test_mistakes_are_a_line_or_two(compare, tmp_path):
    write_run(tmp_path / "runs" / "failed", status="failed", error="no memory")
    (tmp_path / "file").write_text("")
    write_run(tmp_path / "good")
    for arguments, message in (
        ([], "outputs/=missing"),
        (["runs"], "no completed run is there (runs/failed: failed: no memory)"),
        (["nowhere"], "folder=nowhere"),
        (["good", "--at", "epochs"], "--at=epochs"),
        (["good", "--at", "tokens=few"], "--at=tokens=few"),
        (["good", "--at", "tokens=1e30"], "--at=tokens=1e+30: no run can be read there"),
        (["good", "--at", "params=1e30"], "--at=params=1e+30: no architecture can be read there"),
        (["good", "--sideways"], "unrecognized arguments: --sideways"),
        (["good", "--out", "file"], "--out=file"),
        (["good", "--out", "/proc/x"], "--out=/proc/x: no file can be written there ("),
    ):
        status, out, errors = compare(*arguments)
        assert (status, out) == (2, "")
        assert message in errors
        assert len(errors.splitlines()) <= 2


def test_folders_passed_over_for_one_reason_are_one_line_with_a_count(compare, tmp_path):
    write_run(tmp_path / "runs" / "good")
    for i in range(30):
        (tmp_path / "runs" / f"empty{i:02}" / ".hydra").mkdir(parents=True)
    status, out, _ = compare("runs", "--out", "here")
    assert status == 0
    assert "Passed over: 30" in out and "runs/empty00 and 29 more" in out
    assert "empty07" not in out
    assert "empty07" in Path("here/comparison.md").read_text()


def test_help_tells_what_it_leaves(compare):
    status, out, _ = compare("--help")
    assert status == 0
    assert "comparison.csv" in out and "--strict" in out


def test_real_runs_from_the_shell(tmp_path, environment, train):
    for model in ("linear", "mlp"):
        for seed in (1, 2):
            train(f"model={model}", f"seed={seed}", folder=f"outputs/sweep/{model}{seed}")
    command = [sys.executable, SCRIPT, "--strict"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "no difference shown" in done.stdout or "is better" in done.stdout
    (folder,) = (tmp_path / "outputs" / "comparisons").iterdir()
    names = {path.name for path in folder.iterdir()}
    assert {"index.html", "comparison.csv", "comparison.md", "comparison.tex"} <= names
    assert {".png", ".svg"} <= {Path(name).suffix for name in names}


def test_progress_is_shown_on_a_terminal_and_gone_at_the_end(compare, monkeypatch, tmp_path):
    write_run(tmp_path / "run")
    monkeypatch.setattr(type(rich.get_console()), "is_terminal", True)
    monkeypatch.setattr(rich.get_console(), "is_interactive", True)
    monkeypatch.setenv("TERM", "xterm")
    _, out, errors = compare("run", "--out", "here")
    assert "reading runs" in errors and "1/1" in errors
    assert "writing the page" in errors
    assert "reading runs" not in out


HOSTILE = ("<b>x</b>", "</script><script>hacked()</script>", "<img src=x onerror=hacked()>", "![a](http://a.example/b)")


class Elements(HTMLParser):
    """The elements of a page, and the text of those that hold data."""

    def __init__(self, text: str):
        super().__init__()
        self.names: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.names and self.names[-1] == "script":
            self.scripts[-1] += data


def test_names_in_folders_configurations_and_summaries_are_text_in_every_file(tmp_path, monkeypatch):
    """From run folders to the files of a comparison: no name becomes markup on the way."""
    pytest.importorskip("plotly")
    monkeypatch.setattr(plots, "write", lambda comparison, folder: [])  # which tests/analysis/test_plots.py sees to
    main = runpy.run_path(str(SCRIPT))["main"]

    def written(names, out):
        for i, name in enumerate(names):
            folder = tmp_path / out / name.replace("/", "_")
            settings = {"model.comment": name, f"trainer.{name.replace('.', '')}": 1}
            write_run(folder / "run", model=name, data=name, settings=settings, device_name=name, command=name)
            write_run(folder / "again", model=name, data=name, loss=3.0, data_description=name)
            (folder / "damaged").mkdir()
            (folder / "damaged" / "summary.json").write_text(json.dumps({"status": name, "seed": i}))
        assert main([str(tmp_path / out), "--out", str(tmp_path / f"{out}_files")]) == 0
        return tmp_path / f"{out}_files"

    plain, hostile = written(("a", "b", "c", "d"), "plain"), written(HOSTILE, "hostile")
    pages = [Elements((folder / "index.html").read_text()) for folder in (plain, hostile)]
    assert pages[0].names == pages[1].names
    data = json.loads(next(text for text in pages[1].scripts if text.startswith("{")))
    assert {group["model"] for group in data["groups"]} == set(HOSTILE)
    markdown = (hostile / "comparison.md").read_text()
    assert not re.search(r"<[a-zA-Z/!]|(?<!\\)(!\[|\]\()", markdown)
    assert "&lt;b&gt;x&lt;/b&gt;" in markdown
