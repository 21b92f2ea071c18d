"""Commands as they are typed: help, the order of arguments, paths, sweeps, torchrun, and what a start imports."""

import gc
import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

import forks
from seqlab.cli import main
from seqlab.config.command_line import in_order, quoted_path
from seqlab.errors import resume_command
from support import ROOT, script


def test_help_and_cfg(environment, tmp_path):
    shown = script("--help", environment=environment, folder=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"^model=\n", shown.stdout, re.MULTILINE)
    assert re.search(r"^  mamba +Mamba-1", shown.stdout, re.MULTILINE)
    composed = script("model=lstm", "--cfg", "job", environment=environment, folder=tmp_path)
    assert composed.returncode == 0, composed.stderr
    assert "seqlab.models.mixers.LSTM" in composed.stdout


def test_help_that_nobody_reads_to_its_end(environment, tmp_path):
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, str(ROOT / "train.py"), "--help"]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, stdout=write_end, stderr=subprocess.PIPE, text=True)
    os.close(write_end)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_the_m_may_stand_anywhere():
    """Hydra itself takes it in front and at the end."""
    for given in (["a=1", "-m", "b=2"], ["--multirun", "a=1", "b=2"], ["a=1", "b=2", "-m"]):
        assert in_order(given) == ["-m", "a=1", "b=2"]
    assert in_order(["a=1", "--cfg", "job"]) == ["a=1", "--cfg", "job"]
    assert in_order(["--cfg", "job", "a=1", "-m"]) == ["-m", "a=1", "--cfg", "job"]


def test_how_to_resume_is_typed_as_it_is_printed():
    for folder in ("outputs/a b", "it's", 'say "it"', "a=1,b=2"):
        printed = shlex.split(resume_command(folder))[2]
        (argument,) = in_order([printed])
        assert OverridesParser.create().parse_override(argument).value() == folder


@pytest.mark.parametrize("path", ["a b/model=x,seed=1", 'say "it"', 'back\\"slash,', "plain", "'quoted=1'"])
def test_a_path_reaches_hydra_as_it_was_typed(path):
    argument = quoted_path(f"resume={path}")
    value = OverridesParser.create().parse_override(argument).value()
    assert value == path.strip("'")
    assert quoted_path("resume=${other},x") == "resume=${other},x"
    assert quoted_path(f"prompt={path}") == f"prompt={path}"
    assert quoted_path("data.dir=one,two", swept=True) == "data.dir=one,two"


@pytest.mark.parametrize(
    ("typed", "taken"),
    [
        ("data.files=my, text=1.txt", 'data.files="my, text=1.txt"'),
        (f"data.files=[{'a,' * 200}]", f"data.files=[{'a,' * 200}]"),
        ("data.files={train:my.txt}", "data.files={train:my.txt}"),
        ("data.files=[~/a.txt,b.txt]", "data.files=[/home/me/a.txt,b.txt]"),
        ("data.dir=~/corpora", "data.dir=/home/me/corpora"),
        ("hydra.run.dir=a~/b", "hydra.run.dir=a~/b"),
        ("data.end_token=<|end|>", 'data.end_token="<|end|>"'),
        ("data.end_token=[SEP]", 'data.end_token="[SEP]"'),
        ("data.end_token='</s>'", "data.end_token='</s>'"),
        ("data.end_token=null", "data.end_token=null"),
    ],
)
def test_names_are_quoted_and_home_is_found_where_no_shell_does_it(monkeypatch, tmp_path, typed, taken):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "my, text=1.txt").touch()
    assert quoted_path(typed) == taken


def test_the_folder_of_a_sweeps_job_is_typed_as_it_is_called(train):
    first = train("model=linear", folder="model=linear,seed=1")
    assert first.status == 0
    assert train(f"resume={first.folder}", "trainer.steps=3").status == 0
    assert first.summary["steps"] == 3


def test_sweep(train, monkeypatch, tmp_path):
    """One folder with a folder a job, named by its overrides; a job that fails is said and does not stop the others."""
    sweep = ("-m", *train.small, "model=mlp,linear", "trainer.batch_size=64,8")
    monkeypatch.chdir(tmp_path)
    status, said = forks.finish(tmp_path / "screen", forks.train, *sweep)
    assert status == 1, said
    assert said.count("trainer.batch_size=64: must lie") == 4  # as it fails, and at the end
    assert "Traceback" not in said
    (folder,) = (tmp_path / "outputs").glob("sweep_*")
    ended = {}
    for path in folder.rglob("summary.json"):
        name = re.search(r"model=\w+,.*trainer.batch_size=\d+", path.parent.name).group()
        ended[name.split(",")[0], name[-2:]] = json.loads(path.read_text())["status"]
        assert (path.parent / "train.log").stat().st_size
    assert ended == {
        ("model=mlp", "64"): "failed",
        ("model=linear", "64"): "failed",
        ("model=mlp", "=8"): "completed",
        ("model=linear", "=8"): "completed",
    }


@pytest.mark.parametrize(("rank", "said"), [("0", "torchrun=2 processes: they train one run together"), ("1", "")])
@pytest.mark.parametrize("swept", [["-m", "seed=1,2"], ["search=rates"]])
def test_a_sweep_under_torchrun_is_refused(rank, said, swept, train, monkeypatch, caplog):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr("seqlab.cli.main.end", sys.exit)  # the process of the tests goes on
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": rank}.items():
        monkeypatch.setenv(name, value)
    job = train(*swept)
    told = [record.getMessage() for record in caplog.records]
    assert job.status == 2
    assert not job.folder.exists()
    assert [message.partition(",")[0] for message in told] == ([said] if said else [])


def test_one_process_of_torchrun_is_a_run(train, monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "1", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert train("model=linear").status == 0


def imported(source: str, environment: dict[str, str], *arguments: str) -> set[str]:
    """Every module that a Python process imports."""
    told = environment | {"PYTHONPROFILEIMPORTTIME": "1"}  # on standard error
    command = [sys.executable, *(["-c", source] if source else []), *arguments]
    ended = subprocess.run(command, env=told, capture_output=True, text=True)
    return set(re.findall(r"^import time:.*\| +(\S+)$", ended.stderr, re.MULTILINE))


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["optimizer.lrr=1"], ["model=mamab"]])
def test_what_needs_no_torch_waits_for_none(arguments, environment):
    names = imported("", environment, str(ROOT / "train.py"), *arguments)
    assert "hydra" in names
    assert not names & {"torch", "numpy", "pydantic", "joblib", "submitit", "optuna"}


def test_what_a_run_needs_is_all_that_it_imports(environment):
    names = imported("import seqlab.experiment", environment)
    assert "torch" in names
    slow = {"torchmetrics", "matplotlib", "transformers", "datasets", "pandas", "optuna", "torch._dynamo"}
    assert not names & slow, "everybody would wait for it at every start"


def test_what_is_imported_is_not_looked_through_for_garbage(monkeypatch):
    with main.importing():
        assert gc.isenabled(), "a later job of a sweep leaves garbage"
    monkeypatch.delitem(sys.modules, "torch")
    before = gc.get_freeze_count()
    try:
        with main.importing():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > before
    finally:
        gc.unfreeze()
