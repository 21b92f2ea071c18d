"""The benchmark of whole commands, on two that take half a second."""

import json
import os

import pytest

from seqlab.commands import benchmark_commands as benchmark
from support import ROOT


def test_two_cases_of_two_checkouts(tmp_path, capsys):
    out = tmp_path / "new" / "commands.json"
    arguments = ["--cases", "cfg,typo", "--rounds", "1", "--before", str(ROOT), "--out", str(out)]
    assert benchmark.main(arguments) == 0
    found = json.loads(out.read_text())
    assert [(row["case"], row["cost"]) for row in found["rows"]] == [
        (case, cost) for case in ("cfg", "typo") for cost in ("cpu_seconds", "wall_seconds", "peak_bytes")
    ]
    for row in found["rows"]:
        ((before,), (after,)) = (row["samples"][build] for build in ("before", "after"))
        assert (row["before"], row["after"], row["times"]) == (before, after, before / after)
        assert after > 0
    assert found["versions"]["torch"]
    shown = capsys.readouterr().out
    assert "times" in shown
    assert "MiB" in shown


def test_a_command_is_ended_once_it_is_where_it_should_be(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import pathlib, sys, time\n"
        "(pathlib.Path(sys.argv[1]) / 'run').mkdir()\n"
        "(pathlib.Path(sys.argv[1]) / 'run' / 'metrics.jsonl').write_text('{\"split\": \"train\"}')\n"
        "time.sleep(60)\n"
    )
    (tmp_path / "ready").mkdir()
    case = benchmark.Case("script.py {work}", until=benchmark.made_a_step)
    sample = benchmark.measure(case, tmp_path, tmp_path / "ready")
    assert sample.wall_seconds < 30
    assert sample.cpu_seconds < sample.wall_seconds + 1


def test_the_wish_to_stop_ends_the_command_too(tmp_path, monkeypatch):
    (tmp_path / "script.py").write_text("import time; time.sleep(60)")
    (tmp_path / "ready").mkdir()
    started = []

    def interrupted(until, work, pid):
        started.append(pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "wait_for", interrupted)
    with pytest.raises(KeyboardInterrupt):
        benchmark.measure(benchmark.Case("script.py", until=benchmark.made_a_step), tmp_path, tmp_path / "ready")
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)


@pytest.mark.parametrize("until", [None, benchmark.began_a_job])
def test_a_command_that_fails_says_why(tmp_path, until):
    (tmp_path / "script.py").write_text("raise ValueError('no such thing')")
    (tmp_path / "ready").mkdir()
    with pytest.raises(SystemExit, match=r"(?s)script.py ended with 1:.*no such thing"):
        benchmark.measure(benchmark.Case("script.py", until=until), tmp_path, tmp_path / "ready")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cases", "halp"], "--cases=halp: is not among the names it takes.\nChoose from help, cfg, typo"),
        (["--before", "nowhere"], "--before=nowhere: is no checkout, it has no train.py"),
        (["--rounds", "0"], "--rounds=0: has to be a whole number from 1 on"),
    ],
)
def test_mistakes(arguments, said, capsys):
    assert benchmark.main(arguments) == 2
    assert said in capsys.readouterr().err
