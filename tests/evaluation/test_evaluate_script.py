"""``scripts/evaluate.py`` on runs and checkpoints, and its messages for mistakes."""

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from seqlab.commands import evaluate as evaluate_command
from support import LINES, ROOT

SCRIPT = ROOT / "scripts" / "evaluate.py"


@pytest.fixture
def evaluate(monkeypatch, capsys, tmp_path) -> Callable[..., tuple[int, str, str]]:
    """Run the script in this process, in a folder of its own; returns its exit status and both streams."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return ended.value.code, *capsys.readouterr()

    return run


def kept(folder: Path) -> list[dict]:
    return json.loads((folder / "evaluation.json").read_text())["evaluations"]


def test_a_run_on_its_test_split_and_on_a_text(evaluate, trained, tmp_path):
    job = trained("tiny_shakespeare", "mamba", "trainer.evaluation_batches=null")
    status, out, err = evaluate(f"run={job.folder}", "stride=16", "window=sliding,carried")
    assert status == 0 and not err
    first = kept(job.folder)[0]
    assert first["results"]["sliding"]["loss"] == pytest.approx(job.summary["test"]["loss"], rel=1e-6)
    assert first["results"]["carried"]["bits_per_byte"] > 0
    context = f"16 tokens after 1 to 16 others, {first['results']['sliding']['tokens'] - 16} after 1 to 16"
    assert context in out and first["results"]["carried"]["context"] in out
    assert {"versions", "seed", "batch_size", "precision", "parameters", "command", "date"} <= first.keys()

    (tmp_path / "own.txt").write_bytes(b"the dog ran .\r\nthe cat sat .\r\n")
    assert evaluate(f"run={job.folder}", "text=own.txt", "precision=bf16")[0] == 0
    again, second = kept(job.folder)
    assert again == first
    assert (second["text"], second["results"]["sliding"]["bytes"]) == ("own.txt", 27)


def test_a_checkpoint_with_its_own_tokenizer(evaluate, checkpoint, tmp_path):
    _, folder = checkpoint("GPT2")
    (tmp_path / "own.txt").write_text(LINES[:300])
    arguments = f"init_from={folder}", "text=own.txt"
    assert evaluate(*arguments)[0] == 0
    (one,) = kept(tmp_path / "outputs" / "evaluations" / "GPT2")
    assert (one["length"], one["stride"]) == (64, 32)
    assert one["results"]["sliding"]["tokens"] < one["results"]["sliding"]["bytes"] == 300 - 3  # "the" is the first

    (elsewhere := tmp_path / "elsewhere").mkdir()
    shutil.move(folder / "tokenizer.json", elsewhere)
    status, _, err = evaluate(*arguments)
    assert status == 2 and "holds no tokenizer.json" in err and "tokenizer=..." in err
    assert evaluate(*arguments, f"tokenizer={elsewhere}", f"out={elsewhere}")[0] == 0
    assert kept(elsewhere)[0]["results"] == one["results"]

    grown = json.loads((elsewhere / "tokenizer.json").read_text())
    grown["added_tokens"].append(grown["added_tokens"][0] | {"id": 270, "content": "<more>"})
    (elsewhere / "tokenizer.json").write_text(json.dumps(grown))
    status, _, err = evaluate(*arguments, f"tokenizer={elsewhere}")
    assert status == 2 and "has 271 tokens, and the model's vocabulary 270" in err


MISTAKES = {
    "neither": ([], "run=missing: either run or init_from"),
    "both": (["init_from=x"], "either run or init_from"),
    "windows": (["window=sliding,round"], "window=round: is none"),
    "text and tasks": (["text=a", "tasks=b"], "text=a: is read apart from tasks"),
    "of tasks": (["limit=3"], "limit=3.0: says how tasks would be measured, and that"),
    "of a text": (["tasks=x", "stride=4"], "stride=4: says how the perplexity of a text would be"),
    "no such setting": (["strid=4"], "Did you mean 'stride'?"),
    "no such file": (["text=none.txt"], "text=none.txt: cannot be read (No such file or directory)"),
    "binary": (["text=binary"], "text=binary: is not UTF-8 text (byte 0)"),
    "short": (["text=short"], "text=short: has fewer than two tokens"),
    "another alphabet": (["text=greek"], "holds the character 'λ', which is not in the vocabulary"),
    "no text": (["text=greek"], "which is no text"),
    "a tokenizer": (["tokenizer=x"], "tokenizer=x: a run has the tokens of its data"),
    "other file": (["out=other"], "is there and holds no evaluations"),
    "no place anyone can write": (["out=/proc/x"], "out=/proc/x: no file can be written there ("),
    "no place": (["out=short/deep"], "out=short/deep: no file can be written there (a file is in the way)"),
}


def test_mistakes_take_two_lines_and_leave_nothing(evaluate, trained, train, tmp_path):
    run, numbers = trained("tiny_shakespeare").folder, train("model=mlp", folder="numbers").folder
    for name, content in {"binary": b"\xff\xfe", "short": b"t", "greek": "λόγος".encode()}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "evaluation.json").write_text("[]")
    for case, (arguments, message) in MISTAKES.items():
        folder = {"neither": [], "no text": [f"run={numbers}"]}.get(case, [f"run={run}"])
        status, out, err = evaluate(*folder, *arguments)
        assert (status, len(err.splitlines())) == (2, 2), case
        assert message in err, case
        assert not out, case
    assert not (run / "evaluation.json").exists()


def test_without_the_library_tasks_say_what_to_install(evaluate, monkeypatch):
    monkeypatch.setattr(evaluate_command, "find_spec", lambda name: None)
    status, _, err = evaluate("run=x", "tasks=hellaswag")
    assert status == 2
    assert err == "tasks=hellaswag: lm-evaluation-harness is not installed.\npip install 'seqlab[evaluate]'.\n"
